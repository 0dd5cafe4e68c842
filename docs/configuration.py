"""Write docs/configuration.md: every config group, option and key, from conf/ and the schema.

    python docs/configuration.py

Types, defaults and allowed values come from the schema and from conf/. The sentences are in MEANINGS, or in a comment
behind the key; a key without a sentence is an error. tests/docs/test_docs.py compares the page with what this prints.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from omegaconf import OmegaConf

from capsule_sweeps import compose_config
from capsule_sweeps.config import schema

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "configuration.md"
GROUPS = {
    "dataset": "what is classified",
    "model": "what classifies it",
    "backbone": "the convolutions in front of the capsules",
    "capsules": "the capsule stack",
    "routing": "how children choose parents",
    "training": "the recipe",
    "tracking": "where runs are mirrored",
    "ablation": "one change to a base",
    "experiment": "sweeps with a name",
}
MEANINGS = {
    "num_routing": "routing iterations; 1 is one pass with uniform coefficients",
    "seed": "initial weights, shuffling, augmentation and dropout",
    "device": "where a run computes; `auto` takes a GPU if there is one",
    "data_dir": "downloaded and decoded images",
    "runs_dir": "the folder of the run folders",
    "selection_rule": "which accuracy is returned and tabulated",
    "debug": "train in a temporary folder and save nothing",
    "dataset.name": "the name of the data set, shown in tables and read by its source",
    "dataset.source": "the file of `capsule_sweeps/data/sources/` that reads the images",
    "dataset.root": "your images, for `dataset=folder` and `dataset=npz`",
    "dataset.base": "the digits that `multi_digits` and `affine_digits` are made of",
    "dataset.labels_per_image": "2 for images of two overlapping digits",
    "dataset.single_share": "share of images of `multi_digits` with one digit only",
    "dataset.overlay": "how two overlapping digits become one image",
    "dataset.affine_test": "transform the test images at random, once per image",
    "dataset.test_shift": "pixels by which test images are shifted to the right",
    "dataset.test_rotation": "degrees by which test images are rotated to the left",
    "dataset.num_classes": "number of classes",
    "dataset.channels": "1 (gray) or 3 (RGB)",
    "dataset.image_size": "height and width in pixels",
    "dataset.mean": "per channel; null measures it on the training images",
    "dataset.std": "per channel; null measures it on the training images",
    "dataset.crop_padding": "augmentation: pixels of padding before a random crop; 0 turns it off",
    "dataset.flip": "augmentation: flip half of the images horizontally",
    "dataset.train_size": "train on a class-balanced subset of this size; null takes all images",
    "dataset.val_size": "hold out this many training images, balanced by class",
    "capsules.name": "the name of the stack",
    "capsules.pose": "read a pose of D numbers as a √D×√D matrix, or as a vector",
    "capsules.dropout": "on the summed votes of a layer, before its LayerNorm",
    "capsules.primary.num_capsules": "types of primary capsules",
    "capsules.primary.pose_size": "numbers in a pose; a square for matrix poses",
    "capsules.primary.kernel_size": "of the convolution that makes primary capsules",
    "capsules.primary.stride": "of the convolution that makes primary capsules",
    "capsules.layers": "hidden layers: `{type, num_capsules, pose_size, kernel_size, stride}`, type conv or fc",
    "capsules.classes.pose_size": "numbers in the pose of a class capsule",
    "capsules.between": "normalization of poses in front of every layer but the first",
    "capsules.init": "initial weights of the capsule layers",
    "capsules.primary.norm": "normalization of primary capsules",
    "capsules.primary.padding": "of the convolution that makes primary capsules",
    "dataset.crop_margin": "pixels by which images are larger than `image_size`; training takes a random window",
    "dataset.views": "`small_norb`: train on familiar viewpoints and test on novel ones",
    "training.eval_every": "epochs between two evaluations",
    "training.clip_norm": "gradients with a larger norm are shortened to it; null leaves them",
    "capsules.interleaved": "mix poses and places in the windows, as Apple's published code does",
    "training.epochs": "epochs of a run",
    "training.batch_size": "images per step",
    "training.lr": "learning rate after the warm-up",
    "training.momentum": "of SGD",
    "training.weight_decay": "of SGD",
    "training.milestones": "epochs after which the learning rate is multiplied by `lr_decay`",
    "training.lr_decay": "factor at each milestone",
    "training.lr_schedule": "`steps` uses milestones; `cosine` is half a cosine down to 0",
    "training.warmup": "share of the run in which the learning rate rises from 0 to `lr`",
    "training.nesterov": "Nesterov momentum",
    "training.loss": "`margin` and `spread` are computed on sigmoid(logits)",
    "training.label_smoothing": "of the cross entropy",
    "training.ema": "decay of the averaged weights; null keeps none. `selection_rule=ema_last` needs it",
    "training.amp": "automatic mixed precision",
    "training.channels_last": "memory layout of images",
    "training.compile": "torch.compile; `auto` compiles runs of at least 2,000 steps, if it can",
    "training.checkpoint_epochs": "epochs between checkpoints; 0 saves only when a signal stops the run",
    "tracking._target_": "the class of the tracker",
    "tracking.name": "the name of the tracker",
    "tracking.project": "W&B project; null: WANDB_PROJECT, else capsule_sweeps",
    "tracking.entity": "W&B team or user; null: WANDB_ENTITY, else your own",
    "tracking.mode": "`auto` is online when a key is set and the server answers, else offline",
}


def rows(cls: type, prefix: str = "") -> Iterator[tuple[str, str, bool]]:
    """(dotted key, allowed values, signed) of every field of the schema; open groups are left out."""
    hints = get_type_hints(cls)
    for entry in fields(cls):
        key, hint = f"{prefix}{entry.name}", hints[entry.name]
        if is_dataclass(hint):
            yield from rows(hint, f"{key}.")  # type: ignore[arg-type]
        elif key not in ("backbone", "routing", "model"):
            unsigned = key in ("device", "data_dir", "runs_dir", "selection_rule", "debug") or key.startswith(
                "tracking."
            )
            yield key, values(hint, entry.metadata), not unsigned and entry.metadata.get("signed") is not False


def values(hint: Any, metadata: Any) -> str:
    names = [getattr(part, "__name__", str(part)) for part in get_args(hint) or [hint]]
    kinds = [{"NoneType": "null", "str": "text", "bool": "true or false"}.get(name, name) for name in names]
    if getattr(hint, "__origin__", None) is list:
        kinds = ["list"]
    words = re.sub("^one of ", "", metadata.get("words", ""))
    null = ", or null" if "null" in kinds and "null" not in words else ""
    return words + null if words else " or ".join(kinds)


def table(head: tuple[str, ...], lines: Iterator[tuple[str, ...]] | list[tuple[str, ...]]) -> str:
    body = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *body]) + "\n"


def sentence(key: str) -> str:
    """The comment behind a key in the schema or in conf/, for a key that MEANINGS does not have."""
    group, _, name = key.rpartition(".")
    sources = [
        ROOT / "capsule_sweeps/config/schema.py",
        *sorted((ROOT / "conf" / group.partition(".")[0]).glob("*.yaml")),
    ]
    for source in sources:
        if found := re.search(rf"^ *{name}: .* # (.*)", source.read_text(), flags=re.MULTILINE):
            return cell(found[1])
    raise ValueError(f"{key} has no sentence: add one to MEANINGS in docs/configuration.py")


def option(path: Path) -> tuple[str, str]:
    """An option of a group and the first sentence of the comment at its head."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
    comments = [line.lstrip("# ").strip() for line in lines if line.startswith("#")]
    head = [words for words in comments if not re.match("python |Cost|Accuracy", words)]
    return f"`{path.stem}`", cell(re.split(r"(?<!et al)[.;:]\s", " ".join(head), maxsplit=1)[0].strip(" ."))


def settings(path: Path) -> list[tuple[str, str, str]]:
    """Keys of a YAML file with their values and the comments behind them."""
    found = re.findall(r"^(\w+): (.*?)(?: # (.*))?$", path.read_text(), flags=re.MULTILINE)
    return [(f"`{key}`", f"`{value}`", cell(comment)) for key, value, comment in found if key != "_target_"]


def cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", text)


def page() -> str:
    config = compose_config([])
    listed = list(rows(schema.Config))
    if gone := MEANINGS.keys() - {key for key, _, _ in listed}:
        raise ValueError(f"MEANINGS has {', '.join(sorted(gone))}, which the schema has not")
    parts = [
        "# Configuration",
        "<!-- Written by docs/configuration.py; run it again after a change of conf/ or of the schema. -->",
        "A run is composed by [Hydra](https://hydra.cc) from config groups. `GROUP=OPTION` chooses a file of"
        " `conf/GROUP/`, `KEY=VALUE` changes one key, and `-m` sweeps over values separated by commas."
        " `python launch.py --cfg job` prints the composed configuration.",
        "## Groups",
    ]
    for group, about in GROUPS.items():
        default = config.get(group, {}).get("name", "none") if group in config else "none"
        default = "paper" if group == "training" else default
        parts.append(f"### `{group}`: {about}")
        parts.append(f"Default: `{group}={default}`.")
        options = [option(path) for path in sorted((ROOT / "conf" / group).glob("*.yaml"))]
        parts.append(table(("option", "what it is"), options))
        if group in ("model", "routing", "backbone"):
            keys = {}
            for path in sorted((ROOT / "conf" / group).glob("*.yaml"), key=lambda path: (path.stem != default, path)):
                for key, value, comment in settings(path):
                    if key != "`name`" and not value.startswith("`${"):
                        keys.setdefault(key, (f"`{group}.{key.strip('`')}`", value, comment))
            if keys:
                parts.append(table(("key", "default", "meaning"), sorted(keys.values())))
    parts += [
        "## Keys",
        "The default is that of `python launch.py` without arguments. *Signed* keys are part of a run's signature:"
        " changing one makes another run.",
    ]
    lines = []
    for key, allowed, signed in listed:
        value = OmegaConf.select(config, key)
        shown = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        plain = shown if isinstance(shown, str) else json.dumps(shown)
        text = "see `conf/capsules/`" if key == "capsules.layers" else f"`{plain}`"
        lines.append((f"`{key}`", text, cell(allowed), "yes" if signed else "no", MEANINGS.get(key) or sentence(key)))
    parts.append(table(("key", "default", "values", "signed", "meaning"), lines))
    parts.append("## `hydra.launcher`: where a sweep runs")
    parts.append("`hydra/launcher=local` (default) runs on this machine.")
    head = ("key", "default", "meaning")
    parts.append(table(head, settings(ROOT / "conf/hydra/launcher/local.yaml")))
    parts.append("`hydra/launcher=slurm` submits a job array. `slurm_cpu` and `slurm_h100` are examples to copy.")
    parts.append(table(head, settings(ROOT / "conf/hydra/launcher/slurm.yaml")))
    parts.append("## `hydra.sweeper`: which runs a sweep has")
    parts.append(table(head, settings(ROOT / "conf/hydra/sweeper/grid.yaml")))
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
