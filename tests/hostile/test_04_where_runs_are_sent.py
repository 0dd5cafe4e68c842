"""A run folder that names another account does not make us send anything there."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from capsule_sweeps.tracking import wandb as tracking

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def strange(trained, runs) -> Path:
    """An interrupted run as a colleague's archive brings it, whose config.yaml and run.json name another project."""
    assert trained().code == 0
    folder = runs.only()
    config = OmegaConf.load(folder / "config.yaml")
    config.tracking = {"_target_": "capsule_sweeps.tracking.wandb.WandbTracker", "name": "wandb", "mode": "online"}
    config.tracking.update({"entity": "stranger", "project": "open_drop"})
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config))
    return folder


@pytest.mark.parametrize("where", ["config.yaml", "run.json"])
def test_sync_sends_to_a_strangers_project_only_when_asked(strange, python, runs, wandb_server, where) -> None:
    if where == "run.json":
        runs.change_record(strange, wandb_entity="stranger", wandb_project="open_drop")
        text = (strange / "config.yaml").read_text()
        (strange / "config.yaml").write_text(text.replace("stranger", "null").replace("open_drop", "null"))

    def sync(*arguments: str):
        return python("-m", "capsule_sweeps", "sync", *arguments, PYTHONPATH=str(ROOT))

    ended = sync()
    assert ended.code == 1 and "names stranger/open_drop, your own configuration me/capsule_sweeps" in ended.out
    assert "--to stranger/open_drop" in ended.out and not wandb_server.runs
    if where == "config.yaml":
        assert sync("--to", "me/mine").code == 0
        assert wandb_server.runs[strange.name[-8:]]["project"] == "mine"
        ended = sync("--to", "nowhere")
        assert ended.code == 1 and "ENTITY/PROJECT" in ended.err


def test_retry_sends_nothing_to_a_strangers_project(strange, capsule_sweeps, monkeypatch, caplog) -> None:
    sent: list[str] = []
    monkeypatch.setattr(tracking, "obstacle", lambda: None)
    monkeypatch.setattr(tracking, "init", lambda mode, *_, **__: sent.append(mode))
    (strange / "summary.json").unlink()
    (strange / "checkpoint.pt").unlink()
    (strange / "metrics.jsonl").unlink()
    ended = capsule_sweeps("retry", "--yes", strange.name)
    assert (
        "names stranger/open_drop and your own configuration capsule_sweeps; `sync --to stranger/open_drop`"
        in caplog.text
    )
    assert sent == ["offline"]
    (strange / "summary.json").unlink(missing_ok=True)
    monkeypatch.setenv("WANDB_MODE", "online")
    ended = capsule_sweeps("retry", "--yes", strange.name)
    assert ended.code == 1 and "WANDB_MODE=online has no effect: unset it" in ended.err and sent == ["offline"]
