"""Checks a composed configuration: keys, types, ranges, combinations. Cheap enough for every point of a sweep."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from capsule_sweeps.config.schema import _SCHEMA, Config, Layer
from capsule_sweeps.config.selection_rules import find_rule


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
    if typed.dataset.root is not None:
        from capsule_sweeps.data.sources import find_source

        if not hasattr(find_source(typed.dataset.source), "measure"):
            raise ValueError(
                f"dataset.root={typed.dataset.root} is not read with dataset.source={typed.dataset.source}: "
                "leave it out, or set dataset.source=folder"
            )
    if typed.dataset.labels_per_image == 2 and typed.dataset.base is None:
        raise ValueError("dataset.labels_per_image=2 needs digits to make pairs of: set dataset.base, MNIST or digits")
    if abs(typed.dataset.test_shift) >= typed.dataset.image_size:
        raise ValueError(
            f"dataset.test_shift={typed.dataset.test_shift} leaves nothing of images of "
            f"{typed.dataset.image_size}x{typed.dataset.image_size} pixels: it must be less than that, to either side"
        )
    _check_recipe(typed.training)
    needs = find_rule(typed.selection_rule).needs
    if needs and not OmegaConf.select(typed, needs.key):
        raise ValueError(
            f"selection_rule={typed.selection_rule} needs {needs.what}: set {needs.key}, for instance {needs.example}"
        )
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
