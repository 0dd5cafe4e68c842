"""The file that the published code writes, as a finished run folder that is marked as imported.

Known about such a run are the content of the file (weights, best test accuracy and its epoch) and the importer's
settings: num_routing, and where they differ the data set and the schedule. Which of the two published programs wrote it
is found out from its accuracy on test images (windows.py), or set by capsules.interleaved. How it was trained is not
known. So no recipe and no seed is recorded, and the signature is one of what the weights compute and of the file: no
own run can have it.
"""

import io
import os
import re
import shutil
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from capsule_sweeps.config.compose import CONF_DIR, compose_config
from capsule_sweeps.display import counted
from capsule_sweeps.evaluation.published_file import Published, read_published
from capsule_sweeps.evaluation.windows import find_windows
from capsule_sweeps.networks.build import build_model
from capsule_sweeps.networks.published_weights import load_published_weights
from capsule_sweeps.runs.files import make_folder, write_atomic, write_json
from capsule_sweeps.runs.folders import check_runs_dir, find_runs
from capsule_sweeps.runs.provenance import provenance
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signature import columns, run_name, signature, signed_config

DATASETS = {(10, 3): "CIFAR10", (100, 3): "CIFAR100"}  # (classes, channels) → what the published code trains on
TAKEN = ("dataset", "capsules", "data_dir")  # groups that overrides may change, and routing.schedule
UNKNOWN = ("model.capsules.dropout", *(f"dataset.{key}" for key in ("crop_padding", "flip", "train_size", "val_size")))
WINDOWS = "model.capsules.interleaved"  # the signed key


def import_checkpoint(path: Path, num_routing: int, overrides: Sequence[str], runs_dir: Path) -> tuple[Run, bool]:
    """The run folder of a published file, and whether it is new.

    Raises ValueError (one sentence) for an invalid file or overrides, and if the file was imported already with
    other settings; nothing is on disk then.
    """
    check_runs_dir(runs_dir)
    published = read_published(path)
    config = recognize(path, published.weights, num_routing, overrides)
    config.training.compile = "off"
    try:
        with torch.device("meta"), warnings.catch_warnings():  # do the shapes fit, before memory is taken for them?
            warnings.simplefilter("ignore")  # torch's, that nothing is copied
            load_published_weights(build_model(config), published.weights)
    except ValueError as error:
        raise ValueError(f"{path} does not fit: {error}") from error
    asked = any("capsules.interleaved=" in word for word in overrides)
    if (run := already(path, sign(config, published), runs_dir, () if asked else (WINDOWS,))) is not None:
        return run, False
    windows: dict[str, Any] = {}
    if not asked:

        def make(interleaved: bool) -> nn.Module:
            return filled(with_windows(config, interleaved), published)

        interleaved, windows = find_windows(path, published.accuracy, published.precision, config, make)
        config = with_windows(config, interleaved)
    return write_run(path, published, config, windows, runs_dir), True


def with_windows(config: DictConfig, interleaved: bool) -> DictConfig:
    changed = config.copy()
    for capsules in (changed.capsules, changed.model.capsules):
        capsules.interleaved = interleaved
    return changed


def filled(config: DictConfig, published: Published) -> nn.Module:
    model = build_model(config)
    load_published_weights(model, published.weights)
    return model


def sign(config: DictConfig, published: Published) -> dict[str, Any]:
    """The signed configuration of an imported run: what its weights compute, and the file."""
    signed = {key: value for key, value in signed_config(config).items() if key.startswith(("model.", "dataset."))}
    signed = {key: value for key, value in signed.items() if key not in UNKNOWN}
    return {**signed, "imported.sha256": published.sha256}


def already(path: Path, signed: dict[str, Any], runs_dir: Path, unknown: Sequence[str]) -> Run | None:
    """The run that this file is already. Raises ValueError when that has other settings, apart from unknown ones."""
    for run in find_runs(runs_dir).values():
        there = run.record().get("signed_config", {})
        if there.get("imported.sha256") == signed["imported.sha256"]:
            keys = sorted(key for key in there.keys() | signed.keys() if there.get(key) != signed.get(key))
            if keys := [key for key in keys if key not in unknown]:
                differences = ", ".join(f"{key}: stored {there.get(key)}, requested {signed.get(key)}" for key in keys)
                raise ValueError(
                    f"{path} is imported already as {run.folder}: {differences}; remove that folder if it is wrong"
                )
            return run
    return None


def write_run(path: Path, published: Published, config: DictConfig, windows: dict[str, Any], runs_dir: Path) -> Run:
    """The folder, made beside its place and renamed: it is there as a whole or not at all."""
    model, signed = filled(config, published), sign(config, published)
    identity = signature(signed)
    name = run_name(config, identity, "imported")
    unknown = dict.fromkeys(("seed", "epochs"))
    described = {**columns(config), "run": name, "signature": identity, "group": identity, **unknown}
    origin = {"file": path.name, "sha256": published.sha256, "time": time.time(), "commit": provenance()["commit"]}
    origin |= {"windows": windows} if windows else {}
    summary = {
        "accuracy_best_test": published.accuracy,
        "epoch_best_test": published.epoch,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "imported": origin,
    }
    record = {**described, "state": "finished", "signed_config": signed, "attempts": [], **summary}
    record["normalization"] = {key: list(config.dataset[key]) for key in ("mean", "std")}
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "epoch": published.epoch or 0, "batch": 0}, buffer)
    staged = runs_dir / f".{name}.{os.getpid()}.{threading.get_ident()}.tmp"
    try:
        make_folder(staged)
        write_atomic(staged / "config.yaml", OmegaConf.to_yaml(evaluation_only(config)).encode())
        write_atomic(staged / "checkpoint.pt", buffer.getvalue())
        write_json(staged / "run.json", record)
        write_json(staged / "summary.json", {**described, **summary})
        staged.rename(runs_dir / name)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return Run(runs_dir / name)


def evaluation_only(config: DictConfig) -> DictConfig:
    """What of a config is known, and all that evaluation needs: the published code has one loss and no bfloat16."""
    kept = {key: config[key] for key in ("num_routing", "data_dir", "dataset", "backbone", "capsules", "routing")}
    training = {"loss": "cross_entropy", "amp": "none"}
    return OmegaConf.create({**kept, "model": config.model, "training": training})


def recognize(path: Path, weights: Mapping[str, Tensor], num_routing: int, overrides: Sequence[str]) -> DictConfig:
    """The checked config of the model that these weights belong to, by their shapes; see `known_stack`.

    The data set is CIFAR10 or CIFAR100 by classes and channels, unless overrides name one; a stack that overrides
    describe is taken as it is. Raises ValueError.
    """
    for word in overrides:
        key = re.split(r"[.=]", word.lstrip("+~"))[0]
        if key not in TAKEN and not word.startswith("routing.schedule="):
            raise ValueError(
                f"{word} has no effect on an imported checkpoint: possible overrides are {', '.join(TAKEN)} and "
                "routing.schedule; num_routing is --num-routing"
            )
    resnet, num_layers = "pre_caps.pre_caps.3.0.conv1.weight" in weights, 1
    while f"capsule_layers.{num_layers}.w" in weights:
        num_layers += 1
    try:
        first, last = weights["pre_caps.pre_caps.0.weight"], weights[f"capsule_layers.{num_layers - 1}.w"]
        # A layer of matrix poses has √D rows for children of D numbers, one of vector poses has D
        matrix = weights["capsule_layers.0.w"].shape[-3] != len(weights["nonlinear_act.weight"])
        given, num_classes = first.shape[1], last.shape[-1 if matrix else -2]
    except (LookupError, TypeError) as error:
        raise ValueError(f"{path}: its shapes match no stack of the published code ({error})") from error
    words = [f"backbone={'resnet' if resnet else 'simple'}", *([] if resnet else [f"backbone.channels={len(first)}"])]
    words += [f"num_routing={num_routing}", *overrides]
    kind = f"{counted(num_classes, 'class', 'classes')} and {counted(given, 'channel')}"
    if not any(word.startswith("dataset=") for word in overrides):
        if (num_classes, given) not in DATASETS:
            raise ValueError(f"{path} has {kind}; set dataset=… to its data set")
        words.append(f"dataset={DATASETS[num_classes, given]}")
    config = compose_config(words)
    dataset = config.dataset
    if (dataset.num_classes, dataset.channels) != (num_classes, given):
        raise ValueError(
            f"{path} has {kind}, {dataset.name} has {dataset.num_classes} and "
            f"{dataset.channels}; set dataset=… to its data set"
        )
    if dataset.mean is None:
        raise ValueError(
            f"{path} does not contain the normalization of images; set dataset.mean=[…] and dataset.std=[…]"
        )
    if any(re.match(r"[+~]*capsules(=|\.(pose|primary|layers|classes))", word) for word in overrides):
        return config
    return known_stack(path, weights, words)


def known_stack(path: Path, weights: Mapping[str, Tensor], words: list[str]) -> DictConfig:
    """The config of `words` with the stack of conf/capsules that has these weights. Raises ValueError unless one has.

    Shapes do not depend on strides, so stacks that differ only in strides cannot be distinguished.
    """
    found: dict[str, DictConfig] = {}
    for name in sorted(file.stem for file in (CONF_DIR / "capsules").glob("*.yaml")):
        with suppress(ValueError), torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, that nothing is copied
            config = compose_config([*words, f"capsules={name}", "training.compile=off"])
            load_published_weights(build_model(config), weights)
            found.setdefault(str({**config.capsules, "name": None}), config)
    if len(found) != 1:
        raise ValueError(
            f"{path}: its shapes match {len(found) or 'none'} of the stacks in conf/capsules; describe its stack in "
            "conf/capsules/NAME.yaml and set capsules=NAME"
        )
    return next(iter(found.values()))
