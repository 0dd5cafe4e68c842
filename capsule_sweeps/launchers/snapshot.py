"""The code as it is now, kept for jobs that start later: `<runs_dir>/.code/<hash>/`, made once for each content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from capsule_sweeps.runs.provenance import CHECKOUT, MANIFEST, ROOT, git

MAX_BYTES = 10_000_000
# Names of files and folders that stay where they are
SECRETS = (".env*", ".netrc", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*.pem", "*.key", "*.p12", "*.pfx")


def take_snapshot(runs_dir: Path) -> Path:
    """The folder that holds the code as it is: one for each content.

    Holds what git tracks, with edits, and untracked files that git does not ignore; no keys, .env files, files over
    10 MB, and nothing from folders of runs. Staged beside and renamed, so that it is never half there.
    """
    if not CHECKOUT:
        raise ValueError(
            f"SLURM jobs run a snapshot of a checkout, and {ROOT / 'capsule_sweeps'} is installed from a wheel; "
            "clone the repository, `pip install -e .` there, and start its launch.py"
        )
    files = {name: (ROOT / name).read_bytes() for name in _names(runs_dir)}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    identity = hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:16]
    shelf = runs_dir.resolve() / ".code"
    target = shelf / identity
    if target.exists():
        check_snapshot(target)
        return target
    shelf.mkdir(parents=True, exist_ok=True)
    staged = Path(mkdtemp(dir=shelf, prefix=".staged-"))
    try:
        for name, content in files.items():
            path = staged / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod((ROOT / name).stat().st_mode & 0o777)
        patch = git(
            "diff", "HEAD", "--", ".", *(f":(exclude,glob)**/{name}{rest}" for name in SECRETS for rest in ("", "/**"))
        )
        manifest = {"files": hashes, "commit": git("rev-parse", "HEAD").strip(), "patch": patch}
        (staged / MANIFEST).write_text(json.dumps(manifest, indent=1))
        staged.chmod(shelf.stat().st_mode & 0o777)  # mkdtemp's are private, but a group may share its runs
        os.rename(staged, target)
    except OSError:
        shutil.rmtree(staged, ignore_errors=True)
        if not target.exists():  # else another process made the same one meanwhile
            raise
    return target


def check_snapshot(folder: Path) -> None:
    """Raises ValueError when a snapshot is not what it was made as."""
    try:
        hashes = json.loads((folder / MANIFEST).read_text())["files"]
        for name, expected in hashes.items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected:
                raise ValueError(f"{name} was changed")
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"the code in {folder} is damaged ({error}); remove that folder and submit again") from error


def _names(runs_dir: Path) -> list[str]:
    listing = git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listing:
        names = listing.split("\0")[:-1]
    else:  # no git: the files that the program is made of
        folders = ("capsule_sweeps", "hydra_plugins", "conf")
        names = [str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*")]
        names = ["launch.py", *(name for name in names if "__pycache__" not in name)]
    inside = runs_dir.resolve()

    @cache
    def holds_runs(folder: Path) -> bool:
        return folder == inside or any((folder / name).is_dir() for name in (".sweeps", ".jobs", ".code"))

    return [
        name
        for name in sorted(set(names))
        if not any(fnmatch(part, pattern) for part in Path(name).parts for pattern in SECRETS)
        and (path := ROOT / name).is_file()
        and path.resolve().is_relative_to(ROOT)  # where a link leads
        and path.stat().st_size <= MAX_BYTES
        and not any(holds_runs(ROOT / parent) for parent in Path(name).parents if parent.name)
    ]
