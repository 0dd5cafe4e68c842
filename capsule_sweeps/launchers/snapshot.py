"""The code as it is now, kept for jobs that start later: `<runs_dir>/.code/<hash>/`, made once for each content."""

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from capsule_sweeps.runs.provenance import CHECKOUT, MANIFEST, ROOT, code_of_others, git

MAX_BYTES = 50_000_000  # of all files together
FOLDERS = ("capsule_sweeps", "hydra_plugins", "conf")  # with launch.py, what a job imports and composes
CODE = (".py", ".yaml", ".yml")
# Names of files and folders that stay where they are
SECRETS = (".env*", ".netrc", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*.pem", "*.key", "*.p12", "*.pfx")
KEYS = re.compile(
    r"""-----BEGIN\s[A-Z ]*PRIVATE\sKEY-----|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}|\bgithub_pat_\w{40}|
    \bhf_[A-Za-z0-9]{30}|\bsk-[A-Za-z0-9_-]{32}|\bxox[abprs]-[A-Za-z0-9-]{10}|\bglpat-[\w-]{20}|\bAIza[\w-]{35}|
    (?:api_?key|token|secret|passw(?:or)?d)["']?\s*[:=]\s*["']?(?=[\w+/.-]*\d)[A-Za-z0-9+/_.-]{20,}""",
    re.IGNORECASE | re.VERBOSE,
)


def check_others(snapshot: Path, flats: Iterable[dict[str, Any]]) -> None:
    """Raises ValueError for a class of another package that is found here only because it is beside launch.py, and that
    jobs, which run the snapshot, will not find."""
    if ROOT in (Path(path).resolve() for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path):
        return
    for module, path in {name: path for flat in flats for name, path in code_of_others(flat).items()}.items():
        package = module.split(".")[0]
        name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path("elsewhere")
        if name.parts[0] in (package, f"{package}.py") and not (snapshot / name).is_file():
            include = f"{package}/*.py" if len(name.parts) > 1 else str(name)
            raise ValueError(
                f"jobs would not find {module}, since {name} is not in their snapshot of the code: set "
                f"'hydra.launcher.snapshot_include=[\"{include}\"]'"
            )


def take_snapshot(runs_dir: Path, include: Sequence[str] = ()) -> Path:
    """The folder that holds the code as it is: one for each content, which only its owner can write.

    Holds what a job can import or compose: Python and YAML files of the package and conf/, tracked by git or not, what
    else git tracks there, and other files only when they match a pattern of `include`. Staged beside and renamed, so
    that it is never half there. Raises ValueError for a key in one of these files, and for more than 50 MB.
    """
    if not CHECKOUT:
        raise ValueError(
            f"SLURM jobs run a snapshot of a checkout, and {ROOT / 'capsule_sweeps'} is installed from a wheel; "
            "clone the repository, `pip install -e .` there, and start its launch.py"
        )
    names = _names(include)
    check_size(names)
    files = {name: (ROOT / name).read_bytes() for name in names}
    for name, content in files.items():
        refuse_keys(name, content.decode(errors="replace"))
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    identity = hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:16]
    shelf = runs_dir.resolve() / ".code"
    target = shelf / identity
    if target.exists() and not is_private(target):  # another user's, who could change what our jobs run
        target = shelf / f"{identity}-{os.getuid()}"
    if target.exists():
        check_snapshot(target)
        return target
    if not shelf.exists():
        shelf.mkdir(parents=True)
        shared = runs_dir.stat().st_mode & 0o7077
        shelf.chmod(0o700 | (shared if shared & 0o020 else 0))
    staged = Path(mkdtemp(dir=shelf, prefix=".staged-"))
    try:
        for name, content in files.items():
            path = staged / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod((ROOT / name).stat().st_mode & 0o755)
        patch = git("diff", "HEAD", "--", *(f":(literal){name}" for name in files))
        manifest = {"files": hashes, "commit": git("rev-parse", "HEAD").strip(), "patch": patch}
        (staged / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for folder in [staged, *(path for path in staged.rglob("*") if path.is_dir())]:
            folder.chmod(shelf.stat().st_mode & 0o755)  # a group may share its runs, and reads these
        os.rename(staged, target)
    except OSError:
        shutil.rmtree(staged, ignore_errors=True)
        if not target.exists():  # else another process made the same one meanwhile
            raise
    return target


def is_private(path: Path) -> bool:
    info = path.stat()
    return info.st_uid == os.getuid() and not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def check_size(names: Sequence[str]) -> None:
    sizes = {name: (ROOT / name).stat().st_size for name in names}
    if (total := sum(sizes.values())) > MAX_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        raise ValueError(
            f"the code for the jobs has {total / 1e6:,.0f} MB, more than {MAX_BYTES / 1e6:.0f}; {largest} alone has "
            f"{sizes[largest] / 1e6:,.0f} MB: move it out of {', '.join(FOLDERS)}, or out of snapshot_include"
        )


def refuse_keys(name: str, text: str) -> None:
    """Raises ValueError for what looks like a key: a snapshot is kept, and others may read it. Never quotes it."""
    own = os.environ.get("WANDB_API_KEY")
    for number, line in enumerate(text.splitlines(), 1):
        if KEYS.search(line) or (own and own in line):
            raise ValueError(
                f"line {number} of {name} looks like a key or password, and jobs run a copy of that file which others "
                "may read; take it out, and set an environment variable instead"
            )


def check_snapshot(folder: Path) -> None:
    """Raises ValueError when a snapshot is not what it was made as."""
    try:
        hashes = json.loads((folder / MANIFEST).read_text())["files"]
        if hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:16] != folder.name[:16]:
            raise ValueError(f"{MANIFEST} was changed")
        for name, expected in hashes.items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected:
                raise ValueError(f"{name} was changed")
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"the code in {folder} is damaged ({error}); remove that folder and submit again") from error


def _names(include: Sequence[str]) -> list[str]:
    tracked = git("ls-files", "-z", "--cached").split("\0")[:-1]
    others = git("ls-files", "-z", "--others", "--exclude-standard").split("\0")[:-1]
    if not tracked:  # no git: the files that the program is made of
        others = ["launch.py", *(str(path.relative_to(ROOT)) for top in FOLDERS for path in (ROOT / top).rglob("*"))]

    def runs(name: str, is_tracked: bool) -> bool:
        inside = name.startswith(tuple(f"{folder}/" for folder in FOLDERS))
        code = name.endswith(CODE) or (is_tracked and not name.endswith(".pyc"))
        return name == "launch.py" or (inside and code)

    chosen = [name for name in tracked if runs(name, True)] + [name for name in others if runs(name, False)]
    for pattern in include:
        matched = [name for name in (*tracked, *others) if fnmatch(name, pattern) or name.startswith(f"{pattern}/")]
        if not matched:
            raise ValueError(f"hydra.launcher.snapshot_include: no file of the checkout matches {pattern}")
        chosen += matched
    return [
        name
        for name in sorted(set(chosen))
        if not any(fnmatch(part, pattern) for part in Path(name).parts for pattern in SECRETS)
        and (path := ROOT / name).is_file()
        and path.resolve().is_relative_to(ROOT)  # where a link leads
    ]
