"""The signature of a run: a hash of everything in its configuration that can change its numbers."""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from capsule_sweeps.config.moved import FIRST_SPELLING
from capsule_sweeps.config.schema import Dataset, Training, unsigned

LONGEST_NAME = 120  # letters of a folder's name before its signature; file systems take 255 bytes
# Fields that were added after runs existed, with the value that means "as before": at that value they are not signed.
NEUTRAL: dict[str, Any] = {
    "model.routing.density": "sum",
    "model.routing.norm": "layer",
    "model.head": "shared",
    "model.capsules.interleaved": False,
    "model.capsules.primary.padding": 0,
    "model.capsules.primary.norm": "layer",
    "model.capsules.layers.padding": 0,  # of any of them
    "model.capsules.between": "none",
    "model.capsules.init": "normal",
    "model.routing.class_logits": "logit",
    "model.routing.bias": False,
    "model.routing.per_share": True,
    "training.loss": "cross_entropy",
    "training.lr_schedule": "steps",
    "training.warmup": 0,
    "training.nesterov": False,
    "training.label_smoothing": 0,
    "training.clip_norm": None,
    "training.ema": None,
    "training.eval_every": 1,
    "dataset.test_size": None,
    "dataset.base": None,
    "dataset.views": None,
    "dataset.crop_margin": 0,
    "dataset.labels_per_image": 1,
    "dataset.single_share": 0,
    "dataset.overlay": "max",
    "dataset.affine_test": False,
    "dataset.test_shift": 0,
    "dataset.test_rotation": 0,
}


def signed_config(config: DictConfig) -> dict[str, Any]:
    """Everything in a checked config that can change a run's numbers, flat with dotted keys, and nothing else.

    Names are only for display (`build` does not use them), except that of the dataset, which selects what is read.
    """
    model, dataset, training = (OmegaConf.to_container(config[key]) for key in ("model", "dataset", "training"))
    signed = {
        "model": model,
        "dataset": {key: value for key, value in dataset.items() if key not in unsigned(Dataset)},  # type: ignore[union-attr]
        "training": {key: value for key, value in training.items() if key not in unsigned(Training)},  # type: ignore[union-attr]
        "seed": config.seed,
    }
    flat = {key: value for key, value in flatten(signed) if key == "dataset.name" or not key.endswith(".name")}
    classes = {key: FIRST_SPELLING.get(value, value) for key, value in flat.items() if key.endswith("_target_")}
    return without_neutral({**flat, **classes})


def without_neutral(signed: dict[str, Any]) -> dict[str, Any]:
    """A signed configuration without the fields that mean "as before"; records of some versions have them."""

    def is_neutral(key: str, value: Any) -> bool:
        key = re.sub(r"\.\d+\.", ".", key)  # the number of a layer
        return key in NEUTRAL and value == NEUTRAL[key]

    return {key: value for key, value in signed.items() if not is_neutral(key, value)}


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and leaves; lists are leaves unless they contain dicts. Whole floats become ints: 1.0 equals 1."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    if isinstance(value, dict) and value:
        entries = list(value.items())
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        entries = list(enumerate(value))
    else:
        yield prefix, [_plain(item) for item in value] if isinstance(value, list) else _plain(value)
        return
    for key, item in entries:
        yield from flatten(item, f"{prefix}.{key}" if prefix else str(key))


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def signature(flat: dict[str, Any]) -> str:
    """8 hex digits for a signed config."""
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:8]


def columns(config: DictConfig) -> dict[str, Any]:
    """The columns of tables that follow from the config. `group` is shared by runs that differ only in their seed."""
    flat = signed_config(config)
    model = config.model
    return {
        "run": run_name(config, signature(flat)),
        "signature": signature(flat),
        "group": signature({key: value for key, value in flat.items() if key != "seed"}),
        "dataset": config.dataset.name,
        "model": model.get("name"),
        "backbone": (model.get("backbone") or {}).get("name"),
        "routing": (model.get("routing") or {}).get("name"),
        "schedule": (model.get("routing") or {}).get("schedule"),
        "num_routing": model.get("num_routing"),
        "seed": config.seed,
        "epochs": config.training.epochs,
    }


def run_name(config: DictConfig, identity: str, end: str | None = None) -> str:
    """The folder's name: a readable part (`end` in place of the seed) and the signature, safe on every file system."""
    model = config.model
    parts = [config.dataset.name, model.get("name")]
    parts += [model[key].get("name") for key in ("backbone", "routing") if key in model]
    parts += [f"r{model.num_routing}"] if "num_routing" in model else []
    parts += [end or f"s{config.seed}"]
    readable = "-".join(map(str, parts))
    if len(readable) > LONGEST_NAME:  # no part hides the others
        readable = "-".join(str(part)[:24] for part in parts)
    return f"{re.sub('[^A-Za-z0-9_.+-]', '_', readable).lstrip('.-')[:LONGEST_NAME]}-{identity}"
