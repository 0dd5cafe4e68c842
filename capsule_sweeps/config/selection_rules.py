"""Selection rules: which accuracy counts as the accuracy of a run.

A rule is added by one more entry in `RULES`. The schema, training, `load_runs`, tables, notes, `--rule`, W&B and the
figures read this tuple whenever they need it, through the functions below.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]  # an epoch's line of metrics.jsonl


@dataclass(frozen=True)
class Needs:
    """A requirement of a rule: `what` in words, the configuration key that must be set, and an example of a value."""

    what: str
    key: str
    example: str


@dataclass(frozen=True)
class Rule:
    """`pick` returns (accuracy, epoch) for the rows of metrics.jsonl, at least one, or None without what it needs.

    The epoch is recorded as `epoch_<name>` when the rule `chooses` it; otherwise it is the last one.
    """

    name: str
    pick: Callable[[list[Row]], tuple[float, int] | None]
    needs: Needs | None
    meaning: str
    chooses: bool = False
    images: str = "test"  # the images of the accuracy

    @property
    def column(self) -> str:
        """The key in summary.json, run.json and W&B, and the column of `load_runs`."""
        return f"accuracy_{self.name}"

    @property
    def title(self) -> str:
        """What the numbers of a table are: Test accuracy or Validation accuracy."""
        return f"{self.images.capitalize()} accuracy"

    @property
    def weights(self) -> str:
        """Which of a run's weights have this accuracy: last, ema, or best (of the epoch that the rule chooses)."""
        return "best" if self.chooses else "ema" if self.needs is AVERAGE else "last"


def _last(key: str) -> Callable[[list[Row]], tuple[float, int] | None]:
    return lambda rows: (rows[-1][key], rows[-1]["epoch"]) if key in rows[-1] else None


def _best(key: str) -> Callable[[list[Row]], tuple[float, int] | None]:
    def pick(rows: list[Row]) -> tuple[float, int] | None:
        best = max((row for row in rows if key in row), key=lambda row: row[key], default=None)
        return (best["test_accuracy"], best["epoch"]) if best else None

    return pick


VALIDATION = Needs("validation images", "dataset.val_size", "200")
AVERAGE = Needs("averaged weights", "training.ema", "0.99")

RULES: tuple[Rule, ...] = (
    Rule("last", _last("test_accuracy"), None, "the last epoch"),
    Rule("best_val", _best("val_accuracy"), VALIDATION, "the epoch with the best validation accuracy", chooses=True),
    Rule(
        "best_test",
        _best("test_accuracy"),
        None,
        "the epoch with the best test accuracy, as in the published code",
        chooses=True,
    ),
    Rule("ema_last", _last("ema_test_accuracy"), AVERAGE, "the averaged weights in the last epoch"),
    Rule("val_last", _last("val_accuracy"), VALIDATION, "the last epoch, to choose settings by", images="validation"),
)


def names() -> list[str]:
    return [rule.name for rule in RULES]


def columns() -> list[str]:
    return [rule.column for rule in RULES]


def summary_keys() -> list[str]:
    """The results that a finished run records: an accuracy per rule, and the epoch of each rule that chooses one."""
    return [*columns(), *(f"epoch_{rule.name}" for rule in RULES if rule.chooses)]


def find_rule(name: str) -> Rule:
    """Raises ValueError for an unknown rule."""
    for rule in RULES:
        if rule.name == name:
            return rule
    raise ValueError(f"rule={name} is unknown: set it to one of {', '.join(names())}")


def summarize(rows: list[Row]) -> dict[str, Any]:
    """`summary_keys` of a run with these rows; None for a rule without what it needs."""
    found: dict[str, Any] = {}
    for rule in RULES:
        accuracy, epoch = rule.pick(rows) or (None, None)
        found |= {rule.column: accuracy, **({f"epoch_{rule.name}": epoch} if rule.chooses else {})}
    return found
