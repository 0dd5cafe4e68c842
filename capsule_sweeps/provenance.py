"""Where numbers come from: code, versions and machine of an attempt."""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import socket
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "torchvision", "hydra-core", "omegaconf", "numpy", "wandb", "submitit")


# The modules that make numbers
NUMBERS = ("backbone", "capsules", "routing", "kernels", "compile", "model", "class_tree", "data", "decoded", "train")


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
    """The modules whose code is not what one of these attempts ran."""
    return sorted(
        {name for attempt in attempts for name in NUMBERS if attempt.get("code", {}).get(name) != code()[name]}
    )


def provenance() -> dict[str, Any]:
    """Commit, whether the tree was dirty, versions, host, processor, GPU, SLURM job."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "code": code(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "processor": _processor(),
        "gpu": _gpu(),
        "job": os.environ.get("SLURM_JOB_ID"),
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


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
