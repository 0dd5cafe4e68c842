"""`model.width=match`: a network without capsules that has as many parameters as the capsule network of a command."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

MATCH = "match"
CAPSNET = "model=capsnet"
SHAPE = ("channels", "image_size", "num_classes")  # of a data set, what models depend on


class Matched(NamedTuple):
    """A width, the parameters of the network that has it, and those of the capsule network."""

    width: int
    parameters: int
    wanted: int

    def __str__(self) -> str:
        return f"{self.width} ({self.parameters:,} parameters for {self.wanted:,})"


found: dict[str, Matched] = {}  # what `match_width` found in this process, by the model that has it


def asks_to_match(value: object) -> bool:
    """Whether a value of model.width is `match`, in any case."""
    return isinstance(value, str) and value.lower() == MATCH


def rival(point: Sequence[str]) -> list[str]:
    kept = [text for text in point if text.lstrip("+~").split("=")[0].split(".")[0].split("@")[0] != "model"]
    return [*kept, CAPSNET]


def check_match(config: DictConfig) -> None:
    """Raises ValueError for `model.width=match` with a model that has no width."""
    if "width" not in config.model:
        raise ValueError(
            f"model.width={MATCH} has no effect on model={config.model.get('name')}, which has no width: set it for "
            "model=cnn; in a sweep, hydra.sweeper.points=[{model: capsnet}, {model: cnn, model.width: match}]"
        )


def match_width(config: DictConfig, compose: Callable[[], DictConfig]) -> None:
    """Give a config with `model.width=match` the width with the nearest number of parameters to the config that
    `compose` makes. Raises ValueError where there is no such network."""
    try:
        other = compose()
        wanted = _count(_text(other))
    except ValueError as error:
        raise ValueError(
            f"model.width={MATCH} needs the capsule network of the same command, which is not possible: {error}"
        ) from error

    def parameters(width: int) -> int:
        config.model.width = width
        return _count(_text(config))

    if (least := parameters(1)) > wanted:
        raise ValueError(
            f"model.width={MATCH}: the capsule network of this command has {wanted:,} parameters, fewer than "
            f"model={config.model.name} with model.width=1 ({least:,}): set a smaller backbone or another width"
        )
    width = nearest_width(parameters, wanted)
    found[_model(config)] = Matched(width, parameters(width), wanted)


def nearest_width(cost: Callable[[int], int], wanted: int) -> int:
    """The width whose cost, which grows with it, is nearest to the wanted one."""
    low, high = 1, 2
    while cost(high) < wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) < wanted else (low, middle)
    return min((low, high), key=lambda width: abs(cost(width) - wanted))


def matched(config: DictConfig) -> Matched | None:
    """What `match_width` found for a config, if it was asked to."""
    return found.get(_model(config)) if found else None  # writing out a model takes milliseconds


def _model(config: DictConfig) -> str:
    return _text(config) + repr([config.get(key) for key in ("capsules", "routing", "num_routing")])


def _text(config: DictConfig) -> str:
    dataset = {key: config.dataset[key] for key in SHAPE}
    return OmegaConf.to_yaml({"model": config.model, "dataset": dataset, "device": "cpu"})


@cache
def _count(text: str) -> int:
    from capsule_sweeps.networks.build import num_parameters

    config = OmegaConf.create(text)
    assert isinstance(config, DictConfig)
    return num_parameters(config)
