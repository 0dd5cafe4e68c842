"""A checkpoint whose archive unpacks to far more than its size, or than the model needs, is refused unread."""

import zipfile
from pathlib import Path

import pytest
import torch

from capsule_sweeps.evaluation.weights import load_trained
from capsule_sweeps.training import checkpoint


def compress(path: Path) -> None:
    """What torch wrote, compressed; the tensor that is most of it would be unpacked from almost nothing."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.fixture
def bomb(tmp_path) -> Path:
    path = tmp_path / "ckpt.pth"
    torch.save({"net": {"module.w": torch.zeros(2_000_000)}, "acc": 50.0, "epoch": 1}, path)
    compress(path)
    assert path.stat().st_size < 100_000
    return path


def never(*_, **__):
    raise AssertionError("torch.load was called")


def test_import_refuses_it(bomb, capsule_sweeps, place, monkeypatch) -> None:
    monkeypatch.setattr(torch, "load", never)
    ended = capsule_sweeps("import-checkpoint", str(bomb), "--num-routing", "1")
    assert ended.code == 1 and str(bomb) in ended.text and "Traceback" not in ended.text
    assert "would be unpacked" in ended.text and "was called" not in ended.text


@pytest.mark.parametrize("large", [False, True], ids=["compressed", "larger than the model"])
def test_run_folder_with_one_is_refused(launch, trained, runs, monkeypatch, large) -> None:
    import signal

    assert trained(signal_at=(signal.SIGTERM, 7)).code == 143
    path = runs.only() / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    torch.save({**content, "more": torch.zeros(8_000_000)} if large else content, path)
    if not large:
        compress(path)
    monkeypatch.setattr(checkpoint.torch, "load", never)
    with pytest.raises(ValueError, match="damaged"):
        load_trained(runs.only())
    ended = launch()
    assert ended.code == 1 and "checkpoint.pt" in ended.text and "Traceback" not in ended.text
    assert ("MB" if large else "would be unpacked") in ended.text and "was called" not in ended.text
