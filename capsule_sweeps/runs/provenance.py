"""Where numbers come from: code, versions and machine of an attempt."""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import re
import socket
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from capsule_sweeps.runs.files import read_json
from capsule_sweeps.runs.lock import slurm_job

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = "MANIFEST.json"  # in the root of a snapshot: its files with their hashes, the commit, the patch to it
SUBMISSION = "CAPSULE_SWEEPS_SUBMISSION"  # the environment variable in which a SLURM job finds its submission's name
PACKAGES = ("torch", "torchvision", "hydra-core", "omegaconf", "numpy", "wandb", "submitit")


def _built() -> set[str]:
    """The modules whose classes conf/ names: routings, backbones, models."""
    texts = [path.read_text() for path in (ROOT / "conf").glob("*/*.yaml")]
    return {name for text in texts for name in re.findall(r"^_target_: capsule_sweeps\.(\w+)\.", text, re.MULTILINE)}


# The modules that make numbers
NUMBERS = (
    *("capsules", "kernels", "compile", "class_tree", "affine", "sources", "data", "decoded", "losses"),
    *("learning_rate", "average", "train", *sorted(_built())),
)


@cache
def code() -> dict[str, str]:
    """A fingerprint of each module that numbers depend on; comments, docstrings and layout do not count."""
    fingerprints = {}
    for name in NUMBERS:
        tree = ast.parse((ROOT / "capsule_sweeps" / f"{name}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
                node.body = node.body[1:]
        fingerprints[name] = hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:8]
    return fingerprints


def changed_code(attempts: Sequence[dict[str, Any]]) -> list[str]:
    """The modules whose code is not what one of these attempts ran; one that it did not have yet is none of them."""
    now = code()
    ran = [attempt.get("code") or dict.fromkeys(now) for attempt in attempts]
    return sorted({name for known in ran for name in known.keys() & now.keys() if known[name] != now[name]})


def provenance() -> dict[str, Any]:
    """Commit, whether the tree was dirty, versions, host, processor, GPU, SLURM job, the snapshot that ran."""
    manifest = read_json(ROOT / MANIFEST)
    return {
        "commit": (manifest["commit"] if manifest else git("rev-parse", "HEAD")).strip() or None,
        "dirty": bool(manifest["patch"] if manifest else git("status", "--porcelain", "--untracked-files=no")),
        "snapshot": ROOT.name if manifest else None,
        "code": code(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "processor": _processor(),
        "gpu": _gpu(),
        **slurm_job(),
        "submission": os.environ.get(SUBMISSION),
    }


def git(*arguments: str) -> str:
    """What git says about the folder that this code lies in; empty when it says nothing, or is not there."""
    try:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
