"""The provenance of an attempt: code, versions and machine."""

import ast
import hashlib
import json
import os
import platform
import re
import socket
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any, NamedTuple

from capsule_sweeps.config.build import trusted
from capsule_sweeps.config.moved import PRESENT_SPELLING
from capsule_sweeps.runs.files import read_json
from capsule_sweeps.runs.queue import this_job

ROOT = Path(__file__).resolve().parents[2]
CHECKOUT = (ROOT / "launch.py").is_file()  # or a snapshot of one; in an installed wheel, ROOT is site-packages
MANIFEST = "MANIFEST.json"  # in the root of a snapshot: its files with their hashes, the commit, the patch to it
SUBMISSION = "CAPSULE_SWEEPS_SUBMISSION"  # the environment variable of a job with the name of its submission
OWN_VERSION = sys.modules["capsule_sweeps"].__version__  # of this code; installed metadata may differ
PACKAGES = ("torch", "torchvision", "hydra-core", "omegaconf", "numpy", "submitit")

NUMBERS = ("routing", "networks", "data", "training")  # the rooms whose code determines the numbers of a run
EXCEPT = ("networks.multiply_adds",)  # which counts for the record, and needs all layers for it
KNOWN_CODE = Path(__file__).with_name("known_code.json")  # written by tests/golden/known_code.py


@cache
def fingerprint(module: str) -> str | None:
    """8 hex digits of a module's code (`routing.em`, or `mine.topk` of a package that the user trusts) without comments
    and docstrings; None if there is no such module."""
    path = _path(module)
    if path is None:
        return None
    try:
        return hashed(ast.parse(path.read_bytes()))
    except (SyntaxError, ValueError):  # of a file that is being edited; ValueError for null bytes in Python 3.11
        return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def hashed(tree: ast.Module) -> str:
    """8 hex digits of a syntax tree without docstrings, the same for all versions of Python."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(repr(_parts(tree)).encode()).hexdigest()[:8]


def _parts(node: Any) -> Any:
    """A syntax tree as lists, independent of the version of Python. Versions differ in the results of ast.dump and
    ast.unparse, in empty fields, in `kind` (the u of u"text" beside an f-string), and in empty text after a format."""
    if isinstance(node, ast.AST):
        fields = [(name, value) for name, value in ast.iter_fields(node) if value not in (None, []) and name != "kind"]
        if isinstance(node, ast.JoinedStr):
            values = [part for part in node.values if not (isinstance(part, ast.Constant) and part.value == "")]
            fields = [("values", values)] if values else []
        return [type(node).__name__, *([name, _parts(value)] for name, value in fields)]
    return [_parts(item) for item in node] if isinstance(node, list) else repr(node)


def _path(module: str) -> Path | None:
    if not re.fullmatch(r"\w{1,100}(\.\w{1,100})*", module, re.ASCII):  # may come from a forged record
        return None
    path = (ROOT / "capsule_sweeps").joinpath(*module.split("."))
    ours = next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
    return ours or (_path_of_others(module) if _trusted(module) else None)


def _trusted(module: str) -> bool:
    """Whether a module is in a package that the user trusts; of PACKAGES the versions are recorded."""
    return trusted(f"{module}.") and module.split(".")[0] not in ("capsule_sweeps", *PACKAGES)


def _path_of_others(module: str) -> Path | None:
    """The file of a module of a package that the user trusts, found without importing anything."""
    package, *inner = module.split(".")
    spec = find_spec(package)  # imports nothing, because it has no dot
    if spec is None or not inner:
        return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None
    paths = [Path(folder, *inner) for folder in spec.submodule_search_locations or ()]
    files = [file for path in paths for file in (path.with_suffix(".py"), path / "__init__.py")]
    return next(filter(Path.is_file, files), None)


@cache
def _imported(module: str) -> frozenset[str]:
    """The modules of the rooms NUMBERS, and of packages that the user trusts, that a module imports, anywhere in it."""
    path, found = _path(module), set()
    package = module if path and path.name == "__init__.py" else module.rpartition(".")[0]
    try:
        nodes = ast.walk(ast.parse(path.read_bytes())) if path else iter(())
    except (SyntaxError, ValueError):
        return frozenset()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            try:
                name = resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:  # it leads out of the package, which a module may catch to run without one
                continue
            found |= {name, *(f"{name}.{alias.name}" for alias in node.names)}
    ours = {name.removeprefix("capsule_sweeps.") for name in found if name.startswith("capsule_sweeps.")}
    ours = {name for name in ours if name.split(".")[0] in NUMBERS and "." in name and name not in EXCEPT}
    return frozenset(name for name in ours | set(filter(_trusted, found)) if _path(name))


def code(flat: dict[str, Any]) -> dict[str, str]:
    """Module → fingerprint, for the modules that determine the numbers of a run with this signed configuration."""
    todo = {"training.train", f"data.sources.{flat.get('dataset.source')}"}
    todo |= {module.removeprefix("capsule_sweeps.") for module in _modules_of_classes(flat)}
    found: dict[str, str] = {}
    while todo:
        name = todo.pop()
        known = fingerprint(name) if name.split(".")[0] in NUMBERS or _trusted(name) else None
        if known is not None and name not in found:
            found[name] = known
            todo |= _imported(name)
    return dict(sorted(found.items()))


def code_of_others(flat: dict[str, Any]) -> dict[str, Path]:
    """Module → file, for the modules in `code` that are in packages that the user trusts."""
    names = [name for name in code(flat) if name.split(".")[0] not in NUMBERS]
    return {name: path for name in names if (path := _path(name))}


def _modules_of_classes(flat: dict[str, Any]) -> set[str]:
    built = [PRESENT_SPELLING.get(str(value), str(value)) for key, value in flat.items() if key.endswith("_target_")]
    return {path.rpartition(".")[0] for path in built}


def changed_code(record: dict[str, Any]) -> list[str]:
    """The modules used by the configuration of a run whose code has changed since one of its attempts.

    If a class of another package is not available here, modules that only this class needs are not counted.
    """
    flat = record.get("signed_config", {})
    now, changed = code(flat), set()
    others = {module for module in _modules_of_classes(flat) if not module.startswith("capsule_sweeps.")}
    complete = others <= now.keys()
    for attempt in record.get("attempts", []):
        for name, then in (attempt.get("code") or dict.fromkeys(now)).items():
            if name in _known_code().before_rooms:  # such old records name also modules that are not used
                known, became = _known_code().before_rooms[name]
                used = {new for new in became if new in now}
                changed |= {new for new in used if then not in known or not _same(new, became[new], now[new])}
            elif not _same(name, then, now.get(name)) and (complete or name in now):
                changed.add(name)
    return sorted(changed)


def _same(module: str, then: str | None, now: str | None) -> bool:
    """Whether two fingerprints of a module are equal, or of code that computes the same numbers."""
    return then == now or {then, now} <= set(_known_code().equal.get(module, ()))


class KnownCode(NamedTuple):
    """What is known about fingerprints of other code than this.

    equal: module → its fingerprints, oldest first, of code that computes the same numbers, up to the rounding that
    another device or number of threads also brings. Code that reads images may differ where the hash of the images,
    which is compared on its own, would differ. before_rooms: module of the flat layout → its fingerprints (Python 3.11,
    3.12 and 3.13 disagreed), and the modules that it became, with a fingerprint of code that computes what it computed.
    """

    equal: dict[str, list[str]]
    before_rooms: dict[str, tuple[list[str], dict[str, str]]]


@cache
def _known_code() -> KnownCode:
    return KnownCode(**json.loads(KNOWN_CODE.read_text()))


def provenance(*packages: str, device: Any = None) -> dict[str, Any]:
    """Commit, whether the tree was dirty, versions (also of these packages), host, processor, job of a queue, snapshot,
    and the name of the GPU `device` (a torch.device; None for a CPU)."""
    manifest = read_json(ROOT / MANIFEST)
    return {
        "commit": (manifest["commit"] if manifest else git("rev-parse", "HEAD")).strip() or None,
        "dirty": bool(manifest["patch"] if manifest else git("status", "--porcelain", "--untracked-files=no")),
        "snapshot": ROOT.name if manifest else None,
        "python": platform.python_version(),
        "versions": {"capsule_sweeps": OWN_VERSION} | {name: _version(name) for name in (*PACKAGES, *packages)},
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "processor": _processor(),
        "gpu": _gpu(device),
        **this_job(),
        "submission": os.environ.get(SUBMISSION),
    }


def git(*arguments: str) -> str:
    """The output of git in the checkout of this code; empty outside of a checkout and if git is not available."""
    if not CHECKOUT:
        return ""
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


def _gpu(device: Any) -> str | None:
    if device is None or device.type != "cuda":
        return None
    import torch

    return torch.cuda.get_device_name(device)
