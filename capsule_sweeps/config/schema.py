"""The typed schema of a configuration, and the resolvers that its files use."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf, __version__

from capsule_sweeps.config import milestones, selection_rules

MAX_ITERATIONS = 100  # of routing
LARGE, MANY, HUGE = 10_000, 10_000_000, 1_000_000_000
BASES = {"MNIST": "torchvision", "digits": "sklearn"}  # whose digits a data set may show → where they come from


def _rule(test: Callable[[Any], bool], words: str, default: Any = MISSING, **metadata: Any) -> Any:
    """A field whose values must pass `test`; `words` tell a user which do."""
    return field(default=default, metadata={"test": test, "words": words, **metadata})


def _at_least(low: float, high: float, **metadata: Any) -> Any:
    """A field with an upper bound, beyond which memory or time would be unbounded."""
    return _rule(lambda value: low <= value <= high, f"at least {low} and at most {high:,}", **metadata)


def _positive(default: Any = MISSING) -> Any:
    return _rule(lambda value: 0 < value < float("inf"), "greater than 0", default)


def _one_of(*options: Any, words: str = "", **metadata: Any) -> Any:
    return _rule(lambda value: value in options, words or "one of " + ", ".join(options), **metadata)


def _files(folder: str) -> list[str]:
    """The files of a folder of this package, which are the options of a key: the folder is the registry."""
    return sorted(path.stem for path in (Path(__file__).parents[1] / folder).glob("[!_]*.py"))


@dataclass
class Dataset:
    """Defaults that are the same for all data sets are here and in no file of conf/dataset."""

    name: str = MISSING
    source: str = _one_of(*_files("data/sources"))
    root: str | None = field(default=None, metadata={"signed": False})
    base: str | None = _one_of(*BASES, default=None)
    labels_per_image: int = _rule(lambda value: value in (1, 2), "1 or 2", default=1)
    single_share: float = _rule(lambda value: 0 <= value < 1, "a share, at least 0 and less than 1", default=0.0)
    overlay: str = _one_of("max", "mean", "sum", default="max")  # of the two digits of a pair
    affine_test: bool = False
    test_shift: int = 0
    test_rotation: float = _rule(lambda value: -180 <= value <= 180, "from -180 to 180 degrees", default=0.0)
    num_classes: int = _at_least(2, MANY)
    channels: int = _at_least(1, LARGE)
    image_size: int = _at_least(1, LARGE)
    mean: list[float] | None = _rule(  # null: measured on the training images, as std
        lambda value: all(abs(v) < float("inf") for v in value), "finite numbers", default=None
    )
    std: list[float] | None = _rule(
        lambda value: all(0 < v < float("inf") for v in value), "greater than 0 for every channel", default=None
    )
    views: str | None = None  # which views a source with viewpoints trains on
    crop_padding: int = _at_least(0, LARGE)
    crop_margin: int = _at_least(0, LARGE, default=0)  # pixels that training images have around a window of image_size
    flip: bool = MISSING
    # Parts of the training images, balanced by class if possible: train_size trains (null: all), val_size is held out
    train_size: int | None = _at_least(1, HUGE, default=None)
    val_size: int = _at_least(0, HUGE, default=0)
    test_size: int | None = _at_least(1, HUGE, default=None)  # a part of the test images, for quick studies; null: all


@dataclass
class Primary:
    num_capsules: int = _at_least(1, LARGE)
    pose_size: int = _at_least(1, LARGE)
    kernel_size: int = _at_least(1, LARGE)
    stride: int = _at_least(1, LARGE)
    padding: int = _at_least(0, LARGE, default=0)
    norm: str = _one_of("layer", "batch", "batch_squash", default="layer")


@dataclass
class Layer:
    type: str = _one_of("conv", "fc")
    num_capsules: int = _at_least(1, LARGE)
    pose_size: int = _at_least(1, LARGE)
    kernel_size: int | None = _at_least(1, LARGE, default=None)
    stride: int | None = _at_least(1, LARGE, default=None)
    padding: int = _at_least(0, LARGE, default=0)


@dataclass
class Classes:
    pose_size: int = _at_least(0, LARGE)  # 0: class capsules have activations only


@dataclass
class CapsulesConfig:
    name: str = MISSING
    pose: str = _one_of("matrix", "vector")
    dropout: float = _rule(lambda value: 0 <= value < 1, "at least 0 and less than 1")
    primary: Primary = field(default_factory=Primary)
    layers: list[Layer] = field(default_factory=list)
    classes: Classes = field(default_factory=Classes)
    between: str = _one_of("none", "batch", default="none")  # norm of poses in front of every layer but the first
    init: str = _one_of("normal", "kaiming", default="normal")  # initial weights of votes
    interleaved: bool = False  # windows as the first of the two published programs has them: layers.interleave


@dataclass
class Training:
    epochs: int = _at_least(1, MANY)
    batch_size: int = _at_least(1, MANY)
    lr: float = _positive()
    momentum: float = _rule(lambda value: 0 <= value < 1, "at least 0 and less than 1")
    weight_decay: float = _rule(lambda value: 0 <= value < float("inf"), "at least 0")
    milestones: list[Any] = _rule(milestones.valid, "rising epochs from 1, or fractions of the run between 0 and 1")
    lr_decay: float = _positive()
    # Fields with a default: configurations of before have none
    lr_schedule: str = _one_of("steps", "cosine", default="steps")
    warmup: float = _rule(lambda value: 0 <= value < 1, "a share of the run, at least 0 and less than 1", default=0.0)
    nesterov: bool = False
    loss: str = _one_of("cross_entropy", "binary_cross_entropy", "margin", "spread", default="cross_entropy")
    label_smoothing: float = _rule(lambda value: 0 <= value < 1, "at least 0 and less than 1", default=0.0)
    clip_norm: float | None = _positive(default=None)
    # Epochs from one evaluation to the next; the last one always has one
    eval_every: int = _at_least(1, MANY, default=1)
    ema: float | None = _rule(lambda value: 0 < value < 1, "greater than 0 and less than 1, or null", default=None)
    amp: str = _one_of("none", "bf16")
    channels_last: bool = field(default=MISSING, metadata={"signed": False})
    compile: bool | str = _one_of("auto", "on", "off", words="auto, true or false", signed=False)
    checkpoint_epochs: int = _at_least(0, MANY, signed=False)


@dataclass
class Tracking:
    """The settings that trackers share; an option of conf/tracking may have more."""

    _target_: str | None = None  # the class in capsule_sweeps.tracking; older configurations have only its name
    name: str = "none"  # ~tracking: none
    project: str | None = None
    entity: str | None = None
    mode: str = _one_of("auto", "online", "offline", "disabled", default="auto")


@dataclass
class Config:
    """The top level. backbone, routing and model are open: their classes say what their keys may be."""

    num_routing: int = _at_least(1, MAX_ITERATIONS)
    seed: int = _rule(lambda value: 0 <= value < 2**31, "a whole number from 0 to 2147483647")
    device: str = _rule(
        lambda value: re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value) is not None, "auto, cpu, cuda, cuda:N or mps"
    )
    data_dir: str = MISSING
    runs_dir: str = MISSING
    selection_rule: str = _rule(
        lambda value: value in selection_rules.names(), "one of " + ", ".join(selection_rules.names())
    )
    debug: bool = MISSING
    dataset: Dataset = field(default_factory=Dataset)
    backbone: dict[str, Any] = MISSING
    capsules: CapsulesConfig = field(default_factory=CapsulesConfig)
    routing: dict[str, Any] = MISSING
    model: dict[str, Any] = MISSING
    training: Training = field(default_factory=Training)
    tracking: Tracking = field(default_factory=Tracking)


SCHEMA = OmegaConf.structured(Config)
OmegaConf.set_struct(SCHEMA.tracking, False)

# The groups of which an option may have keys of its own. For a sweep, Hydra first composes a configuration without the
# choices that are swept over, in which such a key may be missing: any key is possible there, in a run (`closed`) only
# those of its option.
OPEN = ("backbone", "routing", "model", "tracking")
OPEN_SCHEMA = OmegaConf.structured(Config(backbone={}, routing={}, model={}))
for _group in OPEN:
    OmegaConf.set_struct(OPEN_SCHEMA[_group], False)
for _group in ("backbone", "routing", "model"):  # keep the flag, which a missing value could not be given
    OPEN_SCHEMA[_group] = MISSING


def closed(config: DictConfig) -> DictConfig:
    """The config, in which from now on an unknown key is an error in every group."""
    for group in OPEN:
        OmegaConf.set_struct(config[group], None)
    return config


# What a config can ask for as ${name:argument,…}; looked up when it is checked


def _measured(source: str, root: str | None, what: str) -> Any:
    """name, num_classes, channels, image_size or what else a source can measure of the images at dataset.root."""
    from capsule_sweeps.data.sources import find_source

    if not root:
        raise ValueError("dataset.root has no value; set dataset.root=PATH to the folder or file of your images")
    measure = getattr(find_source(source), "measure", None)
    measured = measure(Path(os.path.expanduser(root))) if measure else {}
    if what not in measured:
        raise ValueError(f"dataset.source={source} does not measure dataset.{what}; set dataset.{what} to a value")
    return measured[what]


def _layers_for(image_size: int, num_capsules: int, pose_size: int) -> list[Layer]:
    """Convolutional capsule layers for images of this size behind a backbone that halves it: 3x3 kernels, of stride 2
    until the grid is 9x9 or smaller, and one more of stride 1."""
    grid, strides = (image_size + 1) // 2, []
    while grid > 9 or (grid >= 3 and 1 not in strides):
        strides.append(2 if grid > 9 else 1)
        grid = (grid - 3) // strides[-1] + 1
    return [Layer("conv", num_capsules, pose_size, 3, stride) for stride in strides]


# The name in OmegaConf 2.4; in 2.3 it is that of an older function
_NAME = "register_new_resolver" if __version__.startswith("2.3") else "register_resolver"
register_resolver: Any = getattr(OmegaConf, _NAME)
register_resolver("measured", _measured, replace=True)
# What is no base is found by the schema
register_resolver("source_of", lambda base: BASES.get(base, "torchvision"), replace=True)
register_resolver("layers_for", _layers_for, replace=True)


@cache
def unsigned(schema: type) -> set[str]:
    """Names of the fields that steer execution only: they are no part of a run's signature."""
    return {entry.name for entry in fields(schema) if entry.metadata.get("signed") is False}
