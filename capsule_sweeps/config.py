"""Configuration: compose it with Hydra, check it against a typed schema, build objects from it.

Nothing in here imports torch. A config passes two gates before anything starts: `check` (keys, types, ranges; cheap
enough for every point of a sweep) and the constructors of the model, which know what fits what.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONF_DIR = Path(__file__).resolve().parents[1] / "conf"
TARGETS = ("capsule_sweeps.", "torch.")  # a config may name classes of these packages, and of no other
BASES = {"MNIST": "torchvision", "digits": "sklearn"}  # whose digits a data set may show → where they come from


def _rule(test: Callable[[Any], bool], words: str, default: Any = MISSING, **metadata: Any) -> Any:
    """A field whose values must pass `test`; `words` tell a user which do."""
    return field(default=default, metadata={"test": test, "words": words, **metadata})


def _at_least(low: float, **metadata: Any) -> Any:
    return _rule(lambda value: value >= low, f"at least {low}", **metadata)


def _positive() -> Any:
    return _rule(lambda value: 0 < value < float("inf"), "greater than 0")


def _one_of(*options: str, **metadata: Any) -> Any:
    return _rule(lambda value: value in options, "one of " + ", ".join(options), **metadata)


@dataclass
class Dataset:
    name: str = MISSING
    source: str = _one_of("torchvision", "folder", "sklearn")
    root: str | None = field(default=None, metadata={"signed": False})
    base: str | None = _one_of(*BASES, default=None)
    labels_per_image: int = _rule(lambda value: value in (1, 2), "1 or 2", default=1)
    affine_test: bool = False
    test_shift: int = 0
    test_rotation: float = field(
        default=0.0, metadata={"test": lambda value: -180 <= value <= 180, "words": "from -180 to 180 degrees"}
    )
    num_classes: int = _at_least(2)
    channels: int = _at_least(1)
    image_size: int = _at_least(1)
    mean: list[float] | None = _rule(lambda value: all(abs(v) < float("inf") for v in value), "finite numbers")
    std: list[float] | None = _rule(
        lambda value: all(0 < v < float("inf") for v in value), "greater than 0 for every channel"
    )
    crop_padding: int = _at_least(0)
    flip: bool = MISSING
    train_size: int | None = _at_least(1)
    val_size: int = _at_least(0)


@dataclass
class Primary:
    num_capsules: int = _at_least(1)
    pose_size: int = _at_least(1)
    kernel_size: int = _at_least(1)
    stride: int = _at_least(1)


@dataclass
class Layer:
    type: str = _one_of("conv", "fc")
    num_capsules: int = _at_least(1)
    pose_size: int = _at_least(1)
    kernel_size: int | None = _at_least(1, default=None)
    stride: int | None = _at_least(1, default=None)


@dataclass
class Classes:
    pose_size: int = _at_least(1)


@dataclass
class Capsules:
    name: str = MISSING
    pose: str = _one_of("matrix", "vector")
    dropout: float = _rule(lambda value: 0 <= value < 1, "at least 0 and less than 1")
    primary: Primary = field(default_factory=Primary)
    layers: list[Layer] = field(default_factory=list)
    classes: Classes = field(default_factory=Classes)
    interleaved: bool = False  # windows as the published code has them: capsules.interleave


@dataclass
class Training:
    epochs: int = _at_least(1)
    batch_size: int = _at_least(1)
    lr: float = _positive()
    momentum: float = _rule(lambda value: 0 <= value < 1, "at least 0 and less than 1")
    weight_decay: float = _rule(lambda value: 0 <= value < float("inf"), "at least 0")
    milestones: list[int] = _rule(
        lambda value: value == sorted(set(value)) and all(v >= 1 for v in value), "a list of rising epochs, from 1"
    )
    lr_decay: float = _positive()
    # Fields with a default: configurations of before have none
    lr_schedule: str = _one_of("steps", "cosine", default="steps")
    warmup: float = _rule(lambda value: 0 <= value < 1, "a share of the run, at least 0 and less than 1", default=0.0)
    nesterov: bool = False
    loss: str = _one_of("cross_entropy", "margin", "spread", default="cross_entropy")
    label_smoothing: float = _rule(lambda value: 0 <= value < 1, "at least 0 and less than 1", default=0.0)
    ema: float | None = _rule(lambda value: 0 < value < 1, "greater than 0 and less than 1, or null", default=None)
    amp: str = _one_of("none", "bf16")
    channels_last: bool = field(default=MISSING, metadata={"signed": False})
    compile: str = _one_of("auto", "on", "off", signed=False)
    checkpoint_epochs: int = _at_least(0, signed=False)


@dataclass
class Tracking:
    name: str = _one_of("wandb", "none")
    project: str = "capsule_sweeps"
    entity: str | None = None
    mode: str = _one_of("auto", "online", "offline", "disabled", default="auto")


@dataclass
class Config:
    """The top level. backbone, routing and model are open: their classes say what their keys may be."""

    num_routing: int = _at_least(1)
    seed: int = _rule(lambda value: 0 <= value < 2**31, "a whole number from 0 to 2147483647")
    device: str = _rule(
        lambda value: re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value) is not None, "auto, cpu, cuda, cuda:N or mps"
    )
    data_dir: str = MISSING
    runs_dir: str = MISSING
    selection_rule: str = _one_of("last", "best_val", "best_test", "ema_last")
    debug: bool = MISSING
    dataset: Dataset = field(default_factory=Dataset)
    backbone: dict[str, Any] = MISSING
    capsules: Capsules = field(default_factory=Capsules)
    routing: dict[str, Any] = MISSING
    model: dict[str, Any] = MISSING
    training: Training = field(default_factory=Training)
    tracking: Tracking = field(default_factory=Tracking)


_SCHEMA = OmegaConf.structured(Config)


# What a config can ask for as ${name:argument,…}; looked up when it is checked


def _measured(root: str | None, what: str) -> Any:
    """name, num_classes, channels or image_size of the tree of images under `root`."""
    from capsule_sweeps.class_tree import measure_class_tree

    if not root:
        raise ValueError("dataset.root has no value; say where your images are, dataset.root=…")
    return measure_class_tree(Path(root))[what]


def _source_of(base: str) -> str:
    return BASES.get(base, "torchvision")  # what is no base is found by the schema


def _layers_for(image_size: int, num_capsules: int, pose_size: int) -> list[Layer]:
    """Convolutional capsule layers for images of this size behind a backbone that halves it: 3x3 kernels, of stride 2
    until the grid is 9x9 or smaller, and one more of stride 1."""
    grid, strides = (image_size + 1) // 2, []
    while grid > 9 or (grid >= 3 and 1 not in strides):
        strides.append(2 if grid > 9 else 1)
        grid = (grid - 3) // strides[-1] + 1
    return [Layer("conv", num_capsules, pose_size, 3, stride) for stride in strides]


OmegaConf.register_new_resolver("class_tree", _measured, replace=True)
OmegaConf.register_new_resolver("source_of", _source_of, replace=True)
OmegaConf.register_new_resolver("layers_for", _layers_for, replace=True)


def compose_config(overrides: list[str]) -> DictConfig:
    """The checked, resolved configuration that `python launch.py <overrides>` runs.

    Raises ValueError (one sentence) for what cannot be composed or is out of range.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            return check(compose("config", overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_sentence(error)) from error


def forced(overrides: Sequence[str]) -> list[str]:
    """Overrides of which `group.key=value` may name any key of the schema, those too that no YAML file has."""
    return [f"++{word}" if re.match(r"\w+\.[^=]*=", word) else word for word in overrides]


def launcher_settings(overrides: list[str]) -> dict[str, Any]:
    """The settings `hydra.launcher` under these overrides, `_target_` among them. Raises ValueError as above."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            composed = compose("config", overrides, return_hydra_config=True)
            return dict(OmegaConf.to_container(composed.hydra.launcher, resolve=True))  # type: ignore[arg-type]
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_sentence(error)) from error


def sweep_points(overrides: list[str]) -> list[list[str]]:
    """The points of a sweep, each a list of overrides: every combination of the values that overrides give."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        (points,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except HydraException as error:
        raise ValueError(_sentence(error)) from error
    return points


def check(config: DictConfig) -> DictConfig:
    """The config under the typed schema, interpolations resolved and numbers in their types, without Hydra's own part.

    Raises ValueError naming the key, its value and what would be right.
    """
    try:
        typed = OmegaConf.merge(_SCHEMA, without_hydra(config) if "hydra" in config else config)
        assert isinstance(typed, DictConfig)
        OmegaConf.resolve(typed)
    except OmegaConfBaseException as error:
        raise ValueError(_sentence(error)) from error
    for key, value, metadata in _leaves(typed, Config):
        if "test" in metadata and value is not None and not _passes(metadata["test"], value):
            raise ValueError(f"{key}={value} is out of range: it must be {metadata['words']}")
    for key in ("backbone", "routing", "model"):
        if not isinstance(typed[key].get("name"), str):
            raise ValueError(f"{key}.name has no value; every option of a group has one")
    given = [values for values in (typed.dataset.mean, typed.dataset.std) if values is not None]
    if len(given) == 1 or any(len(values) != typed.dataset.channels for values in given):
        raise ValueError(
            f"dataset.mean and dataset.std need one number for each of dataset.channels={typed.dataset.channels}, "
            "or both null: measured"
        )
    if typed.dataset.root is not None and typed.dataset.source != "folder":
        raise ValueError(f"dataset.root={typed.dataset.root} is read only with dataset.source=folder: say so, too")
    if typed.dataset.labels_per_image == 2 and typed.dataset.base is None:
        raise ValueError("dataset.labels_per_image=2 needs digits to make pairs of: set dataset.base, MNIST or digits")
    if abs(typed.dataset.test_shift) >= typed.dataset.image_size:
        raise ValueError(
            f"dataset.test_shift={typed.dataset.test_shift} leaves nothing of images of "
            f"{typed.dataset.image_size}x{typed.dataset.image_size} pixels: it must be less than that, to either side"
        )
    if typed.dataset.val_size == 0 and typed.selection_rule == "best_val":
        raise ValueError("selection_rule=best_val needs images held out: set dataset.val_size, for instance 5000")
    _check_recipe(typed.training)
    if typed.training.ema is None and typed.selection_rule == "ema_last":
        raise ValueError("selection_rule=ema_last needs averaged weights: set training.ema, for instance 0.999")
    return typed


def _check_recipe(recipe: DictConfig) -> None:
    """Raises ValueError for settings of training of which one would be without effect beside another."""
    if recipe.label_smoothing and recipe.loss != "cross_entropy":
        raise ValueError(
            f"training.label_smoothing={recipe.label_smoothing} has no meaning for training.loss={recipe.loss}: "
            "set it to 0, or training.loss=cross_entropy"
        )
    if recipe.milestones and recipe.lr_schedule != "steps":
        raise ValueError(
            f"training.milestones={recipe.milestones} have no meaning for training.lr_schedule={recipe.lr_schedule}: "
            "set them to [], or training.lr_schedule=steps"
        )
    if recipe.nesterov and not recipe.momentum:
        raise ValueError("training.nesterov=true needs a momentum: set training.momentum, or training.nesterov=false")


def _passes(test: Callable[[Any], bool], value: Any) -> bool:
    try:
        return test(value)
    except TypeError:  # items of a list that cannot be compared
        return False


def without_hydra(config: DictConfig) -> DictConfig:
    """A copy of the config without Hydra's own part."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def _leaves(config: Any, schema: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value, metadata) of every field of the schema. Raises ValueError for one without a value."""
    for entry in fields(schema):
        key = prefix + entry.name
        if OmegaConf.is_missing(config, entry.name):
            raise ValueError(f"{key} has no value; give it one, {key}=…")
        value = config[entry.name]
        if entry.default_factory is list:
            for index, item in enumerate(value):
                yield from _leaves(item, Layer, f"{key}.{index}.")
        elif is_dataclass(entry.default_factory):
            yield from _leaves(value, entry.default_factory, f"{key}.")
        else:
            yield key, value, entry.metadata


def unsigned(schema: type) -> set[str]:
    """Names of the fields that steer execution only: they are no part of a run's signature."""
    return {entry.name for entry in fields(schema) if entry.metadata.get("signed") is False}


def _sentence(error: Exception) -> str:
    """What an error of Hydra or OmegaConf says, in one line, with the key in front."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    text = " ".join(re.split(r"\n    full_key:|Config search path:", str(cause))[0].split())
    if text.startswith(said := "ValueError raised while resolving interpolation: "):
        return text.removeprefix(said)
    key = str(getattr(cause, "full_key", None) or "")
    if key and key.split(".")[0] not in {*Config.__dataclass_fields__, "hydra"} and "'Config'" not in text:
        key = f"capsules.layers.*.{key}"  # of items of a list OmegaConf does not say where they are
    return f"{key}: {text}" if key and key not in text else text


def build(node: Any, *args: Any, **kwargs: Any) -> Any:
    """An object of the class that `node._target_` names, made with the node's other keys (except `name`).

    Raises ValueError for a class outside this package and torch, and for keys the class does not take.
    """
    options: Any = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else dict(node)
    target = str(options.pop("_target_", None))
    name = options.pop("name", target)
    if not target.startswith(TARGETS):
        raise ValueError(f"_target_={target} is not allowed: only classes of capsule_sweeps and torch are built")
    module, _, attribute = target.rpartition(".")
    try:
        cls = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"_target_={target} cannot be found ({error}); check its spelling") from error
    from torch.nn import Module

    if not (isinstance(cls, type) and issubclass(cls, Module) and cls.__module__.startswith(TARGETS)):
        raise ValueError(f"_target_={target} is not allowed: it is no torch.nn.Module of capsule_sweeps or torch")
    taken = signature(cls.__init__).parameters
    if unknown := [key for key in options if key not in taken and "kwargs" not in taken]:
        raise ValueError(f"{name} ({target}) has no setting {unknown[0]}: leave {unknown[0]}={options[unknown[0]]} out")
    try:
        return cls(*args, **kwargs, **options)
    except TypeError as error:
        raise ValueError(f"{name} ({target}) cannot be made with {options}: {error}") from error
