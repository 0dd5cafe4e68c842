"""Several runs under several conditions in one table: `evaluate SELECTION dataset.test_shift=0,2,4 --attack fgsm`."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from omegaconf import DictConfig
from torch import Tensor, nn

from capsule_sweeps.config.points import sweep_points
from capsule_sweeps.console import bar
from capsule_sweeps.data.load import Data
from capsule_sweeps.display import counted, listed
from capsule_sweeps.evaluation.class_names import match_classes
from capsule_sweeps.evaluation.evaluate import load_test_data, values_of
from capsule_sweeps.evaluation.measure import share_correct
from capsule_sweeps.evaluation.robustness import ATTACKS, CORRUPTIONS, corrupted
from capsule_sweeps.evaluation.weights import SHOWN_AS, load_weights
from capsule_sweeps.networks.capsnet import CapsNet
from capsule_sweeps.results.columns import as_typed, in_common, settings_frame, short_names, typed
from capsule_sweeps.results.render import render
from capsule_sweeps.results.stein import first_of, interval, two_stage_note
from capsule_sweeps.results.tables import NAMED, stale_note
from capsule_sweeps.runs.learned import not_learned_note
from capsule_sweeps.runs.run import Run


class Condition(NamedTuple):
    """Overrides of the data set, and what makes its test images harder."""

    overrides: tuple[str, ...] = ()
    attack: str | None = None
    epsilon: float = 0.0
    corruption: str | None = None
    severity: int = 0


def conditions(
    overrides: Sequence[str],
    attacks: Sequence[str] = (),
    epsilons: Sequence[float] = (),
    corruptions: Sequence[str] = (),
    severities: Sequence[int] = (),
) -> list[Condition]:
    """Every combination of the values that overrides give, each clean, under each attack and under each corruption.

    Raises ValueError for an unknown attack or corruption, and for values out of range.
    """
    for option, named, known in ("attack", attacks, ATTACKS), ("corruption", corruptions, (*CORRUPTIONS, "all")):
        if unknown := [name for name in named if name not in known]:
            raise ValueError(f"--{option} {unknown[0]} is unknown: set it to one of {', '.join(known)}")
    for epsilon in epsilons:
        if not 0 < epsilon <= 1:
            raise ValueError(
                f"--epsilon {epsilon:g} is out of range: black is 0 and white is 1, so set it above 0, up to 1"
            )
    for severity in severities:
        if not 1 <= severity <= 5:
            raise ValueError(f"--severity {severity} is out of range: set it to 1 to 5")
    if epsilons and not attacks:
        raise ValueError("--epsilon has no effect without --attack: add --attack fgsm or --attack pgd")
    if severities and not corruptions:
        raise ValueError("--severity has no effect without --corruption: add --corruption all, or names")
    if "all" in corruptions:
        corruptions = CORRUPTIONS
    harder = [{"attack": name, "epsilon": size} for name, size in itertools.product(attacks, epsilons or (0.1,))]
    pairs = itertools.product(corruptions, severities or range(1, 6))
    harder += [{"corruption": name, "severity": severity} for name, severity in pairs]
    points = [tuple(point) for point in sweep_points(list(overrides))]
    return [Condition(point, **own) for point in points for own in [{}, *harder]]  # type: ignore[arg-type]


def evaluate_many(
    runs: pd.DataFrame,
    runs_dir: Path,
    asked: Sequence[Condition],
    iterations: Sequence[int] = (),
    classes_in_order: bool = False,
    weights: str | None = None,
) -> pd.DataFrame:
    """A row for each run, condition and number of iterations: run, seed, group, the settings that tell the runs apart,
    weights, the conditions, num_routing, images, and accuracy in percent.

    Where runs differ in the num_routing or the dataset that they were trained with, and are evaluated with others, the
    settings have these as trained_with and trained_on. Raises ValueError for a run without a checkpoint, and for images
    that do not fit a model.
    """
    settings = _settings(runs, asked, iterations)
    shown_as = SHOWN_AS.get(weights or "last", weights or "last")
    rows = []
    with bar("evaluating", len(runs) * len(asked)) as advance:
        for index, row in runs.iterrows():
            own = {**row.reindex(["run", "seed", "first_seeds", "group"]), **settings.loc[index], "weights": shown_as}
            run = Run(runs_dir / row.run)
            found = _accuracies(run, asked, iterations, classes_in_order, weights or "last", advance)
            rows += [{**own, **values} for values in found]
    return _with_short_names(pd.DataFrame(rows), asked)


def _settings(runs: pd.DataFrame, asked: Sequence[Condition], iterations: Sequence[int]) -> pd.DataFrame:
    """The settings that tell runs apart, on the index of `runs`, with other names for what is also a condition."""
    trained_as = {"num_routing": "trained_with"}
    if "dataset" in {name for one in asked for name in _columns(one)}:
        trained_as["dataset"] = "trained_on"
    settings = settings_frame(runs).rename(columns=trained_as)
    settings = settings.drop(columns=[name for name in trained_as.values() if settings[name].nunique() <= 1])
    return settings if iterations else settings.drop(columns="trained_with", errors="ignore")  # it is num_routing


def _accuracies(
    run: Run,
    asked: Sequence[Condition],
    iterations: Sequence[int],
    classes_in_order: bool,
    weights: str,
    advance: Callable[[int], None],
) -> Iterator[dict[str, Any]]:
    """The conditions, num_routing, images and accuracy in percent of a run, for each condition and number of
    iterations. `advance` is called after each condition."""
    model, trained, _ = load_weights(run.folder, weights)
    iterates = isinstance(model, CapsNet) and model.capsules.class_routing.iterates
    loaded: dict[tuple[str, ...], tuple[DictConfig, Data]] = {}
    for condition in asked:
        if condition.overrides not in loaded:
            config, data = load_test_data(trained, condition.overrides)
            if classes := run.record().get("classes"):
                data = match_classes(data, classes, classes_in_order)
            loaded = {condition.overrides: (config, data)}  # of one at a time: images take memory
        config, data = loaded[condition.overrides]
        if condition.corruption:
            data = corrupted(data, Path(config.data_dir), condition.corruption, condition.severity)
        for number in (iterations or [int(trained.model.num_routing)]) if iterates else [None]:
            if number is not None:
                model.capsules.num_routing = number  # type: ignore[union-attr]
            accuracy = 100 * share_correct(model, config, data.test, partial(_attacked, model, condition, data))
            images = len(data.test)
            yield {**_columns(condition), "num_routing": number, "images": images, "accuracy": accuracy}
        advance(1)


def _with_short_names(frame: pd.DataFrame, asked: Sequence[Condition]) -> pd.DataFrame:
    """The rows of all runs, without attack or corruption where there is none, and conditions under short names."""
    for kind, size in (("attack", "epsilon"), ("corruption", "severity")):
        if frame[kind].isna().all():
            frame = frame.drop(columns=[kind, size])
    keys = dict.fromkeys(name for one in asked for name in _columns(one))
    frame = frame.rename(columns=short_names([key for key in keys if key in frame], frame))
    return frame.astype({name: "Int64" for name in ("num_routing", "trained_with") if name in frame})


def _columns(condition: Condition) -> dict[str, Any]:
    unused = ("attack", "epsilon") if condition.corruption else ("corruption", "severity")
    harder = {**condition._asdict(), **dict.fromkeys(unused)}
    del harder["overrides"]
    return {**values_of(condition.overrides), **harder}


def _attacked(model: nn.Module, condition: Condition, data: Data, images: Tensor, labels: Tensor) -> Tensor:
    """Images (B, C, H, W) of test data with labels (B,) under the attack of a condition, if it has one."""
    if condition.attack is None:
        return images
    return 255 * ATTACKS[condition.attack](model, images.float() / 255, labels, condition.epsilon, data.normalization)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Over the seeds of each group: n, mean and half-width of the 95 % interval of the accuracies, in percent."""
    keys = [key for key in frame if key not in ("run", "seed", "first_seeds", "images", "accuracy")]
    groups = frame.groupby(keys, dropna=False, sort=False)
    found = groups.accuracy.agg(["count", "mean"]).reset_index()
    widths = [interval(own.set_index("seed").accuracy, first_of(own)) for _, own in groups]
    table = found.drop(columns=["group", "count", "mean"])
    return table.assign(n=found["count"], accuracy=found["mean"], **{"±": widths})


def notes_on(runs: pd.DataFrame, evaluated: pd.DataFrame) -> list[str]:
    """Sentences on selected runs, of which some were evaluated: those left out, and those not to be compared."""
    said, names = [], list(evaluated.run[evaluated.state != "finished"])
    if left := len(runs) - len(evaluated):
        have = "has" if left == 1 else "have"
        said.append(f"Left out: {left:,} of {counted(len(runs), 'run')}, which {have} no epoch.")
    if names:
        said.append(f"Not finished: {listed(names, NAMED)}.")
    return [*said, *filter(None, (stale_note(evaluated).strip(), not_learned_note(evaluated)))]


def trained_alike(runs: pd.DataFrame, frame: pd.DataFrame) -> dict[str, Any]:
    """What the evaluated runs have in common, for a caption; num_routing and the data set of training as trained_with
    and trained_on where the conditions of `frame` have others."""
    common = in_common(runs)
    for name, other in (("num_routing", "trained_with"), ("dataset", "trained_on")):
        if name in common and not frame[name].isin([common[name]]).all():
            common[other] = common.pop(name)
    return common


def show_many(
    frame: pd.DataFrame, form: str, notes: Sequence[str] = (), common: Mapping[str, Any] | None = None
) -> str:
    """`csv` and `json`: all rows, one per run and condition; `table` and `md`: the summary over seeds, with a caption
    that has also what is `common` to the runs."""
    if form in ("csv", "json"):
        return render(frame.drop(columns=["group", "first_seeds"], errors="ignore"), form)
    said = ["Test accuracy in %; ±: half-width of the 95 % interval (t) over n seeds, none for n = 1."]
    if "first_seeds" in frame and frame.first_seeds.notna().any():
        numbers = frame.drop_duplicates("group").first_seeds
        said.append(two_stage_note(numbers, "± of these rows is t(n0 − 1)·s0/√n").strip())
    if "epsilon" in frame:
        said.append("epsilon: the largest change of a pixel, black 0 and white 1; 0 is the clean image.")
    if "severity" in frame:
        said.append("CIFAR-10-C: severity 1 to 5; rows without a corruption are clean images.")
    if "num_routing" in frame and frame.num_routing.isna().any():
        said.append("num_routing –: models without routing iterations.")
    table = summary(frame)
    conditions = [key for key in table if key not in ("n", "accuracy", "±")]
    constant = [key for key in conditions if key != "num_routing" and table[key].nunique(dropna=False) == 1]
    alike = {key: value for key, value in (common or {}).items() if key not in table}
    alike |= {key: table[key].iloc[0] for key in constant if not pd.isna(table[key].iloc[0])}
    caption = ", ".join(f"{key}={typed(value)}" for key, value in alike.items())
    shown = as_typed(table, [key for key in conditions if key not in constant]).drop(columns=constant)
    return render(shown, form, "Evaluation", " ".join([*said, *notes]), caption, one_line=True)


def abscissa(frame: pd.DataFrame) -> str:
    """The numeric condition that is the horizontal axis of a figure. Raises ValueError for none or several."""
    conditions = frame.columns[list(frame.columns).index("weights") + 1 :]  # in front of them are settings of the runs
    keys = [key for key in conditions if key not in ("images", "accuracy")]
    numeric = [key for key in keys if pd.api.types.is_numeric_dtype(frame[key]) and frame[key].nunique() > 1]
    chosen = [key for key in numeric if key != "num_routing"] or numeric
    if len(chosen) != 1:
        raise ValueError(
            f"--figure needs one numeric condition to draw over, and found {', '.join(chosen) or 'none'}: give one "
            "several values, for instance dataset.test_shift=0,2,4"
        )
    return chosen[0]


def curve_labels(frame: pd.DataFrame, over: str) -> list[str]:
    """The columns whose combinations are the curves of a figure over the column `over`; no curve mixes groups."""
    labels = [key for key in summary(frame).columns if key not in (over, "n", "accuracy", "±")]
    labels = [key for key in labels if frame[key].nunique(dropna=False) > 1]
    mixed = frame.groupby([*labels, over], dropna=False).group.nunique().max() > 1
    return [*labels, "group"] if mixed else labels
