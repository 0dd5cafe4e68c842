"""Checks a composed configuration: keys, types, ranges, combinations. Cheap enough for every point of a sweep."""

import os
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from capsule_sweeps.config.errors import sentence, unknown
from capsule_sweeps.config.milestones import as_epochs
from capsule_sweeps.config.schema import BASES, MAX_ITERATIONS, SCHEMA, Config, Layer, Tracking
from capsule_sweeps.config.selection_rules import find_rule

OUR_TRACKERS = tuple(f"capsule_sweeps.tracking.{name}." for name in ("base", "tensorboard", "wandb"))
LR_DECAY = 0.1  # of every recipe in conf/training
# training.compile: YAML reads on and off as booleans, Hydra's command line and quotes do not
SPELLINGS = {True: "on", False: "off", "true": "on", "false": "off"}


def check(config: DictConfig) -> DictConfig:
    """The config under the typed schema, interpolations resolved and numbers in their types, without Hydra's own part.

    A config that Hydra composed is under the schema already; one that was stored is put there. Raises ValueError naming
    the key, its value and what would be right.
    """
    config = without_hydra(config) if "hydra" in config else config
    try:
        typed = config.copy() if OmegaConf.get_type(config) is Config else OmegaConf.merge(SCHEMA, config)
        OmegaConf.resolve(typed)
    except OmegaConfBaseException as error:
        raise ValueError(sentence(error)) from error
    assert isinstance(typed, DictConfig)
    return check_values(typed)


def check_values(typed: DictConfig, values: Any = None) -> DictConfig:
    """The same for a config that is under the schema and resolved: cheap enough for every point of a sweep.

    `values` are its values in plain dictionaries, which are read in a tenth of the time, where the caller has them.
    """
    values = values or OmegaConf.to_container(typed)
    if "compile" in typed.training and typed.training.compile in SPELLINGS:
        values["training"]["compile"] = typed.training.compile = SPELLINGS[typed.training.compile]
    for group, key in (("", "runs_dir"), ("", "data_dir"), ("dataset", "root")):
        path = values.get(group, values).get(key)
        if str(path).startswith("~"):
            (typed[group] if group else typed)[key] = home(path)
    for key, value, metadata in _leaves(values, Config):
        if "test" in metadata and value is not None and not _passes(metadata["test"], value):
            raise ValueError(f"{key}={value} is out of range: it must be {metadata['words']}")
    text = repr(values)
    if "'???'" in text:
        key = next(key for key, value in _flat(values) if "'???'" in repr(value))
        raise ValueError(f"{key} has no value; set {key}=…")
    if "${" in text:
        key, value = next((key, value) for key, value in _flat(values) if "${" in str(value))
        raise ValueError(f"{key}={value} has ${{ in it, which is reserved for interpolations: set it to another value")
    iterations = values["model"].get("num_routing", 1)
    if type(iterations) is not int or not 1 <= iterations <= MAX_ITERATIONS:
        raise ValueError(
            f"model.num_routing={iterations} must be a whole number, at least 1 and at most {MAX_ITERATIONS}"
        )
    _check_data(values["dataset"])
    _check_recipe(values["training"])
    milestones = as_epochs(values["training"]["milestones"], values["training"]["epochs"])
    if milestones != values["training"]["milestones"]:
        typed.training.milestones = milestones
    for key in ("backbone", "routing", "model"):
        for name, example in ("name", "name: mine"), ("_target_", "_target_: mine.module.Class"):
            if not isinstance(values[key].get(name), str):
                raise ValueError(f"{key}.{name} has no value; set it in the YAML file of the option, `{example}`")
    needs = find_rule(typed.selection_rule).needs
    if needs and not OmegaConf.select(typed, needs.key):
        raise ValueError(
            f"selection_rule={typed.selection_rule} needs {needs.what}: set {needs.key}, for instance {needs.example}"
        )
    return typed


def _flat(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict):
        for name, value in values.items():
            yield from _flat(value, f"{key}.{name}" if key else str(name))
            yield f"{key}.{name}", name if "${" in str(name) else ""
    else:
        yield key, values


def home(path: str) -> str:
    """The path, in which ~ is the home folder. Raises ValueError for the home folder of an unknown user."""
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError(f"{path}: the home folder of {path.partition('/')[0]} is unknown; set the whole path")
    return expanded


def _check_data(dataset: dict[str, Any]) -> None:
    """Raises ValueError for settings of a dataset that contradict each other."""
    given = [dataset[key] for key in ("mean", "std") if dataset[key] is not None]
    if len(given) == 1 or any(len(values) != dataset["channels"] for values in given):
        raise ValueError(
            f"dataset.mean and dataset.std need one number for each of dataset.channels={dataset['channels']}, "
            "or both null: measured"
        )
    if dataset["root"] is not None:
        from capsule_sweeps.data.sources import find_source

        if not hasattr(find_source(dataset["source"]), "measure"):
            raise ValueError(
                f"dataset.root={dataset['root']} is not read with dataset.source={dataset['source']}: "
                "leave it out, or set dataset.source=folder"
            )
    if dataset["labels_per_image"] == 2 and dataset["base"] is None:
        raise ValueError(
            "dataset.labels_per_image=2 needs digits to make pairs of: set dataset.base=MNIST or dataset.base=digits"
        )
    if dataset["labels_per_image"] == 1 and (dataset["single_share"] or dataset["overlay"] != "max"):
        raise ValueError(
            "dataset.single_share and dataset.overlay have an effect only on pairs of digits: remove them, or set "
            "dataset.labels_per_image=2"
        )
    if abs(dataset["test_shift"]) >= dataset["image_size"]:
        raise ValueError(
            f"dataset.test_shift={dataset['test_shift']} leaves nothing of images of "
            f"{dataset['image_size']}x{dataset['image_size']} pixels: it must be less than that, to either side"
        )


def _check_recipe(recipe: dict[str, Any]) -> None:
    """Raises ValueError for settings of training that would have no effect because of another one."""
    if recipe["label_smoothing"] and recipe["loss"] != "cross_entropy":
        raise ValueError(
            f"training.label_smoothing={recipe['label_smoothing']} has no effect with training.loss={recipe['loss']}: "
            "set it to 0, or training.loss=cross_entropy"
        )
    if recipe["milestones"] and recipe["lr_schedule"] != "steps":
        raise ValueError(
            f"training.milestones={recipe['milestones']} have no effect with "
            f"training.lr_schedule={recipe['lr_schedule']}: set them to [], or training.lr_schedule=steps"
        )
    if recipe["nesterov"] and not recipe["momentum"]:
        raise ValueError("training.nesterov=true needs a momentum: set training.momentum, or training.nesterov=false")


def check_effects(config: DictConfig) -> None:
    """Raises ValueError for settings without effect. Runs that were made with one are still read."""
    recipe, capsules = config.training, config.model.get("capsules")
    if capsules and capsules.get("interleaved") and all(layer.type == "fc" for layer in capsules.layers):
        raise ValueError(
            "capsules.interleaved=true has no effect without a convolutional layer in capsules.layers: remove it"
        )
    if recipe.lr_decay != LR_DECAY and not (recipe.lr_schedule == "steps" and recipe.milestones):
        raise ValueError(
            f"training.lr_decay={recipe.lr_decay} has no effect without milestones: set it to {LR_DECAY}, or set "
            "training.milestones and training.lr_schedule=steps"
        )
    check_effects_on_data(config.dataset)


def check_effects_on_data(dataset: DictConfig) -> None:
    """Raises ValueError for viewpoints that the images do not have, and for digits that are those of the data set
    itself or that its source does not have."""
    base, source = dataset.base, dataset.source
    if dataset.views is not None and source != "small_norb":
        raise ValueError(
            f"dataset.views={dataset.views} has no effect with dataset.source={source}, which has no viewpoints: "
            "remove it, or set dataset=small_norb"
        )
    if base is not None and base == dataset.name:
        raise ValueError(
            f"dataset.base={base} has no effect with dataset={base}, which has these digits: remove it, or set "
            "dataset=affine_digits or dataset=multi_digits"
        )
    if base is not None and source in BASES.values() and source != BASES[base]:
        raise ValueError(
            f"dataset.base={base} is not read with dataset.source={source}: set dataset.source={BASES[base]}, or "
            "remove dataset.base"
        )


def _passes(test: Callable[[Any], bool], value: Any) -> bool:
    try:
        return test(value)
    except TypeError:  # items of a list that cannot be compared
        return False


def without_hydra(config: DictConfig) -> DictConfig:
    """A copy of the config without Hydra's own part, under the schema if it was."""
    copied = config.copy()
    with open_dict(copied):
        del copied["hydra"]
    return copied


def _leaves(config: dict[str, Any], schema: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value, metadata) of every field of the schema. Raises ValueError for one without a value, and
    for a key that is not a field, except of a tracker of the user."""
    names = [entry.name for entry in fields(schema)]
    own = schema is Tracking and not str(config.get("_target_") or OUR_TRACKERS[0]).startswith(OUR_TRACKERS)
    if not own and (added := [key for key in config if key not in names]):
        raise ValueError(unknown(f"{prefix}{added[0]}={config[added[0]]}", names))
    for entry in fields(schema):
        key = prefix + entry.name
        if config.get(entry.name, "???") == "???":  # deleted or missing
            raise ValueError(f"{key} has no value; set {key}=…")
        value = config[entry.name]
        if entry.default_factory is list:
            for index, item in enumerate(value):
                yield from _leaves(item, Layer, f"{key}.{index}.")
        elif is_dataclass(entry.default_factory):
            yield from _leaves(value, entry.default_factory, f"{key}.")
        else:
            yield key, value, entry.metadata
