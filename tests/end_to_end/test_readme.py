"""What README shows is what runs."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def with_example(tmp_path) -> tuple[Path, str]:
    """A copy of the project with the routing of the section "Add a routing", and its Python code."""
    section = (ROOT / "README.md").read_text().partition("## Add a routing\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"as `([\w/.]+)`:\n\n```(?:python|yaml)\n(.*?)```\n", section, flags=re.DOTALL | re.IGNORECASE)
    assert [name for name, _ in blocks] == ["capsule_sweeps/routing/cosine.py", "conf/routing/cosine.yaml"]
    project = tmp_path / "project"
    for folder in ("capsule_sweeps", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / folder, project / folder)
    shutil.copy(ROOT / "launch.py", project)
    for name, text in blocks:
        assert not (project / name).exists()
        (project / name).write_text(text)
    assert sum(len(text.splitlines()) for _, text in blocks) <= 30
    return project, blocks[0][1]


def test_the_routing_that_readme_adds_trains(with_example, python, tiny, runs) -> None:
    project, _ = with_example
    command = [project / "launch.py", *tiny, "routing=cosine", "num_routing=2", "routing.sharpness=3.0"]
    ended = python(*command, PYTHONPATH=str(project))
    assert ended.code == 0, ended.text
    folder = runs.only()
    assert "-cosine-r2-" in folder.name and (folder / "summary.json").exists()
    assert runs.record(folder)["signed_config"]["model.routing.sharpness"] == 3
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    learned = [float(value) for name, value in state.items() if name.endswith("routing.sharpness")]
    assert len(learned) == 2 and learned[-1] != 3
    assert "routing.cosine" in runs.record(folder)["attempts"][0]["code"]  # no other module had to hear of it
    wrong = python(*command, "+routing.depth=2", PYTHONPATH=str(project))
    assert wrong.code != 0 and "depth" in wrong.err and "Traceback" not in wrong.text


def test_what_it_shows_is_what_it_computes(with_example, python, tiny) -> None:
    """Coefficients sum to 1, watched logits are those of the fast way, runs of other routings are not stale by it."""
    project, _ = with_example
    code = (
        "import json, sys, torch\n"
        "from capsule_sweeps import build_model, compose_config\n"
        "model = build_model(compose_config([*sys.argv[1:], 'routing=cosine', 'num_routing=3'])).eval()\n"
        "images = torch.randn(2, 1, 32, 32)\n"
        "with torch.no_grad():\n"
        "    logits, seen = model(images, intermediates=True)\n"
        "    print(json.dumps([(model(images) - logits).abs().max().item(),\n"
        "        [(s.coefficients.sum(-1) - 1).abs().max().item() for layer in seen.layers for s in layer]]))\n"
    )
    ended = python("-c", code, *tiny, PYTHONPATH=str(project))
    assert ended.code == 0, ended.text
    difference, sums = json.loads(ended.out)
    assert difference < 1e-5 and len(sums) == 5 and max(sums) < 1e-5
