"""The recipes of docs/extending.md: extracted, put into a copy of the project, and run."""

import re
import shlex
import shutil
import sys
from pathlib import Path

from capsule_sweeps import __version__

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "extending.md"


def test_every_recipe_runs(tmp_path, place, python, tiny, runs, capsule_sweeps, monkeypatch) -> None:
    project = tmp_path / "project"
    for folder in ("capsule_sweeps", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / folder, project / folder)
    shutil.copy(ROOT / "launch.py", project)
    recipes = re.findall(r"`([\w/.]+)`:\n\n```(?:python|yaml)\n(.*?)```\n", PAGE.read_text(), flags=re.DOTALL)
    assert len(recipes) == 12 and len(re.findall(r"^```\w", PAGE.read_text(), flags=re.MULTILINE)) == 12
    for name, text in recipes:
        target = project / name
        assert not target.exists()
        target.write_text(text)
    outside, sweep, hours, figure = re.findall(r"^    python (.*)", PAGE.read_text(), flags=re.MULTILINE)
    small = [word for word in tiny if not re.match("dataset|tracking|training=", word)]
    data_dir = next(word for word in tiny if word.startswith("data_dir="))
    words = shlex.split(sweep)
    ended = python(project / words[0], *words[1:], *small, data_dir, PYTHONPATH=str(project))
    assert ended.code == 0, ended.text
    linear, capsnet = sorted(runs.folders(), key=lambda folder: "capsnet" in folder.name)
    assert runs.record(capsnet)["signed_config"]["model.routing.sharpness"] == 2
    assert {"routing.sharp", "data.sources.stripes"} <= runs.record(capsnet)["attempts"][0]["code"].keys()
    assert "networks.linear" in runs.record(linear)["attempts"][0]["code"]
    assert runs.record(linear)["attempts"][0]["versions"]["capsule_sweeps"] == __version__
    started = [runs.record(folder)["attempts"][0]["started"] for folder in (linear, capsnet)]
    assert started[1] < started[0], "the last of the plan was first"
    for folder in (linear, capsnet):
        assert len((folder / "epochs.csv").read_text().splitlines()) == 1 + len(runs.metrics(folder))
    ended = python(*shlex.split(hours), PYTHONPATH=str(project))
    assert ended.code == 0 and ended.out == "0.0 h\n", ended.text
    ended = python(project / figure, PYTHONPATH=str(project))
    assert ended.code == 0 and "linear" in ended.out and Path("lr.pdf").stat().st_size > 1000, ended.text

    lab = tmp_path / "lab"
    (lab / "mine").mkdir(parents=True)
    (project / "capsule_sweeps" / "routing" / "sharp.py").rename(lab / "mine" / "sharp.py")
    yaml = project / "conf" / "routing" / "sharp.yaml"
    (lab / "conf" / "routing").mkdir(parents=True)
    (lab / "conf" / "routing" / "sharp.yaml").write_text(yaml.read_text().replace("capsule_sweeps.routing", "mine"))
    yaml.unlink()
    monkeypatch.syspath_prepend(lab)
    monkeypatch.setenv("CAPSULE_SWEEPS_TRUST_PACKAGES", "mine")
    searchpath = shlex.split(outside.replace("$HOME/lab", str(lab)))[2]
    ended = capsule_sweeps("describe", searchpath, "routing=sharp", "num_routing=2", "dataset=digits")
    assert ended.code == 0 and "mine.sharp" in sys.modules, ended.text
