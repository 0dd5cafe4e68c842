"""What `pip install .` and `pip install -e .` put where, without a network."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = """
import sys
from hatchling.build import build_editable, build_wheel
print({"wheel": build_wheel, "editable": build_editable}[sys.argv[1]](sys.argv[2]))
"""


def build(kind: str, folder: Path) -> Path:
    pytest.importorskip("hatchling")
    command = [sys.executable, "-c", BUILD, kind, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder as site-packages are after `pip install .`."""
    place = tmp_path_factory.mktemp("wheel")
    with ZipFile(build("wheel", place)) as wheel:
        wheel.extractall(place / "site")
    return place / "site"


def run_installed(installed: Path, place: Path, program: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A program that sees the wheel and what this Python has, but not the checkout."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), sysconfig.get_paths()["purelib"]])}
    command = [sys.executable, "-S", "-c", program, *words]  # -S: without what an editable install adds
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)


def test_the_wheel_holds_the_package_the_configuration_and_the_published_numbers(installed) -> None:
    for folder in ("capsule_sweeps", "conf"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix in (".py", ".yaml", ".json"):
                name = path.relative_to(ROOT)
                there = installed / ("" if folder == "capsule_sweeps" else "capsule_sweeps") / name
                assert there.read_bytes() == path.read_bytes(), name
    published = installed / "capsule_sweeps/analysis/published.yaml"
    assert published.read_bytes() == (ROOT / "analysis/published.yaml").read_bytes()
    assert {path.name.partition("-")[0] for path in installed.iterdir()} == {"capsule_sweeps", "hydra_plugins"}


def test_commands_of_the_wheel_work_outside_of_a_checkout(installed, place) -> None:
    (place / "runs").mkdir()
    program = """
import json, sys
import capsule_sweeps
from capsule_sweeps.__main__ import main
assert capsule_sweeps.__file__.startswith(sys.argv[1]), capsule_sweeps.__file__
for line in sys.argv[2:]:
    sys.argv = ["capsule-sweeps", *line.split()]
    print("#", line)
    try:
        main()
    except SystemExit as leaving:
        print("left with", leaving.code)
"""
    lines = ["describe dataset=digits --format md", "results --published readme_table --format csv"]
    lines += ["status", "results --ablation", "--version"]
    ended = run_installed(installed, place, program, str(installed), *lines)
    assert ended.returncode == 0, ended.stderr
    said = dict(part.split("\n", 1) for part in ended.stdout.split("# ")[1:])
    assert "python launch.py -m dataset=CIFAR10" in said[lines[1]] and "| total |" in said[lines[0]]
    assert "left with Error: no run is in runs" in said["status"] == said["results --ablation"]
    assert "left with" not in ended.stdout.partition("# status")[0]


def test_commands_that_need_a_checkout_are_refused(installed, place) -> None:
    program = """
from pathlib import Path
from capsule_sweeps.launchers.snapshot import take_snapshot
from capsule_sweeps.runs.provenance import provenance
try:
    take_snapshot(Path("runs"))
except ValueError as error:
    print(error)
"""
    ended = run_installed(installed, place, program)
    assert "checkout" in ended.stdout and "pip install -e ." in ended.stdout, ended.stderr
    assert not (place / "runs").exists()


def test_an_editable_install_makes_nothing_else_importable(tmp_path) -> None:
    pytest.importorskip("editables")
    with ZipFile(build("editable", tmp_path)) as wheel:
        wheel.extractall(tmp_path / "site")
    files = {str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("*") if path.is_file()}
    beside = {name for name in files if ".dist-info" not in name and not name.startswith("_")}
    assert beside == {"hydra_plugins/capsule_sweeps.py"}
    program = """
import importlib.util, json, site, sys
site.addsitedir(sys.argv[1])
names = ["capsule_sweeps", "hydra_plugins.capsule_sweeps", "tests", "conf", "analysis", "launch"]
print(json.dumps({name: bool(importlib.util.find_spec(name)) for name in names}))
"""
    ended = run_installed(tmp_path, tmp_path, program, str(tmp_path / "site"))
    found = json.loads(ended.stdout)
    assert [name for name in found if found[name]] == ["capsule_sweeps", "hydra_plugins.capsule_sweeps"], ended.stderr
