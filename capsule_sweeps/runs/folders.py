"""The run folders of a runs folder."""

import os
import re
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

from capsule_sweeps.runs.record import say_damaged
from capsule_sweeps.runs.run import Run

RUN_NAME = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9_.+-]*-[0-9a-f]{8}")  # results of `run_name`


def check_runs_dir(runs_dir: Path, inside: Sequence[str] = (".sweeps",)) -> None:
    """Raises ValueError if runs_dir, or an existing folder `inside` it, cannot be written. Leaves no files behind."""
    try:
        existing = next(path for path in [runs_dir.absolute(), *runs_dir.absolute().parents] if path.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(
            f"runs_dir={runs_dir} cannot be written ({error.strerror}); set runs_dir=… to a folder that can"
        ) from error
    for folder in (runs_dir / name for name in inside):
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            try:
                owner = folder.owner()
            except KeyError:
                owner = f"the user {folder.stat().st_uid}"
            raise ValueError(
                f"{folder} belongs to {owner} and cannot be written: {owner} shares it with the group by `chmod g+ws "
                f"{shlex.quote(str(folder.absolute()))}`; or set runs_dir=… to a folder of your own"
            )


def run_folders(runs_dir: Path) -> list[Run]:
    """All run folders under runs_dir, sorted by name. Links and invalid names are reported and left out."""
    found = []
    try:
        with os.scandir(runs_dir) as entries:
            for entry in entries:
                if not re.fullmatch(r"[^.].*-[0-9a-f]{8}", entry.name, re.DOTALL):
                    continue
                if entry.is_symlink():
                    say_damaged(entry.name, "it is a link", Path(entry.path))
                elif not RUN_NAME.fullmatch(entry.name):
                    say_damaged(entry.name, "its name is not a valid run name", Path(entry.path))
                elif entry.is_dir():
                    found.append(entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ValueError(
            f"runs_dir={runs_dir} cannot be read ({error.strerror}); set runs_dir to another one"
        ) from error
    return [Run(runs_dir / name) for name in sorted(found)]


def find_runs(runs_dir: Path) -> dict[str, Run]:
    """Signature → run, for the run folders under runs_dir. If several have one signature, the one whose folder was not
    renamed is returned and the others are reported; if this is ambiguous, all of them are reported.
    """
    runs: dict[str, list[Run]] = {}
    for run in run_folders(runs_dir):
        runs.setdefault(run.signature, []).append(run)
    for identity, several in [(identity, some) for identity, some in runs.items() if len(some) > 1]:
        genuine = [run for run in several if run.record().get("run") == run.folder.name and not run.damage()]
        runs[identity] = genuine if len(genuine) == 1 else []
        for run in (run for run in several if run not in runs[identity]):
            other = next(other for other in genuine or several if other is not run)
            why = f"it has the signature of {other.folder.name}: move one of them away"
            say_damaged(run.folder.name, why, run.folder)
    return {identity: found[0] for identity, found in runs.items() if found}
