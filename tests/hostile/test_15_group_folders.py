"""Two users of one group in a runs folder of mode 2775 that root made, with the umask of one user and of a group."""

from __future__ import annotations

import os
import pwd  # noqa: F401 - which a child may not be able to read
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, TINY

from capsule_sweeps.runs.folders import check_runs_dir

GROUP, FIRST, SECOND = 54320, 54321, 54322

# One process of a user. Each line of its input is a command: umask, program, words.
COMMANDS = """
import os, runpy, sys
sys.path.insert(0, sys.argv[1])
from capsule_sweeps.__main__ import main
for line in sys.stdin.read().splitlines():
    umask, *sys.argv = line.split("\\t")
    os.umask(int(umask, 8))
    try:
        if sys.argv[0] == "launch.py":
            runpy.run_path(f"{sys.path[0]}/launch.py", run_name="__main__")
        else:
            main()
    except SystemExit as leaving:
        print(sys.argv[:3], leaving.code, flush=True)
"""


def run_as(user: int, place: Path, *commands: str, code: str = COMMANDS) -> str:
    """What a process of this user prints. It may read everything, so that Python and this checkout can be anywhere."""
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    words = ["setpriv", "--reuid", str(user), "--regid", str(GROUP), "--clear-groups", *reading]
    home = {"HOME": f"{place}/home{user}", "TMPDIR": f"{place}/home{user}", "LOGNAME": f"user{user}"}
    done = subprocess.run(
        [*words, sys.executable, "-c", code, str(ROOT)],
        input="\n".join(commands),
        capture_output=True,
        text=True,
        cwd=place,
        env={**os.environ, **home, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    return done.stdout + done.stderr


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that other users reach, which that of pytest is not."""
    if os.geteuid() or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv, to become other users")
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    place.chmod(0o755)
    for name, owner, mode in (
        ("runs", 0, 0o2775),
        ("data", 0, 0o2775),
        *((f"home{user}", user, 0o700) for user in (FIRST, SECOND)),
    ):
        (place / name).mkdir()
        os.chown(place / name, owner, GROUP)
        (place / name).chmod(mode)
    if run_as(FIRST, place, code="print(1)") != "1\n":
        pytest.skip("other users cannot read this checkout")
    yield place
    shutil.rmtree(place)


@pytest.mark.slow
def test_two_users_start_merge_tag_and_note_in_one_folder(shared) -> None:
    base = [*TINY, "training.epochs=1", "data_dir=data"]
    first, second = [], []
    for umask in ("022", "002"):
        runs, merged = f"runs/{umask}", f"runs/merged{umask}"
        first.append([umask, "launch.py", *base, f"runs_dir={runs}", "seed=0"])
        second += [
            [umask, "launch.py", "-m", *base, f"runs_dir={runs}", "seed=0,1"],
            [umask, "cli", "bundle", "seed=0", "--runs-dir", runs, "--out", f"home{SECOND}/{umask}.tar.gz"],
            [umask, "cli", "merge", f"home{SECOND}/{umask}.tar.gz", "--runs-dir", merged],
            [umask, "cli", "tag", "seed=0", "+good", "--runs-dir", runs],
        ]
    for user, commands in ((FIRST, first), (SECOND, second)):
        said = run_as(user, shared, *("\t".join(line) for line in commands))
        assert "Error" not in said and "Traceback" not in said, said
    assert said.count("1 to skip, 1 to run") == said.count("1 taken") == said.count(": good") == 2, said
    for umask in ("022", "002"):
        made = [path for path in (shared / "runs").rglob("*") if umask in str(path)]
        assert {path.stat().st_uid for path in made} == {FIRST, SECOND}
        for path in made:
            mode = path.stat().st_mode
            assert mode & stat.S_IWGRP and path.stat().st_gid == GROUP, (path, oct(mode))
            assert not stat.S_ISDIR(mode) or mode & stat.S_ISGID, (path, oct(mode))


def test_a_private_folder_is_named_before_the_plan(shared) -> None:
    """With the command that repairs it; `doctor` and every launch look there."""
    (shared / "runs" / ".sweeps").mkdir(mode=0o755)
    os.chown(shared / "runs" / ".sweeps", FIRST, GROUP)
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(GROUP)
            os.setuid(SECOND)
            check_runs_dir(shared / "runs")
        except ValueError as error:
            said = str(error)
            os._exit(0 if "the user 54321" in said and f"chmod g+ws {shared}/runs/.sweeps" in said else 2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
