import argparse
import json
import re

import pytest
import torch
from routed_layers import SMALL

from capsule_sweeps.cli.bench import add_arguments
from capsule_sweeps.config.compose import compose_config
from capsule_sweeps.profiling import bench as benching
from capsule_sweeps.profiling import steps
from capsule_sweeps.profiling.bench import bench


def run(*arguments):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parsed = parser.parse_args([*SMALL, "training.batch_size=4", "--repeats", "1", *arguments])
    return bench(parsed.overrides, parsed.against, parsed.repeats, parsed.format)


def test_every_variant_has_a_row(monkeypatch):
    monkeypatch.setattr(steps, "memory", lambda config, name, *_: {"backbone": 1.5}.get(name))
    rows = json.loads(run("--format", "json"))
    named = [(row["variant"], row["num_routing"]) for row in rows]
    ours = [(name, n) for n in (1, 2, 3) for name in ("eager", "compiled")]
    assert named == [("backbone", None), ("backbone compiled", None), *ours]
    for row in rows:
        assert row["images_per_second"] == pytest.approx(4000 / row["step_ms"], rel=0.05)
    assert rows[0]["relative_to_backbone"] == 1 and rows[0]["step_memory_mb"] == 1.5
    table = run()
    assert "torch" in table and "preparing a batch takes" in table
    config = compose_config([*SMALL, "training.batch_size=4"])
    note = " ".join(table.split())
    told = re.search(rf"{config.training.epochs} epochs of ([\d,]+) images take ([\d.e-]+) hours", note)
    assert told and int(told[1].replace(",", "")) == (config.dataset.train_size or 1400) and 0 < float(told[2]) < 10


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["model=cnn", "model.width=4"], ["backbone", "backbone compiled", "eager", "compiled"]),
        (["routing=self_routing"], ["backbone", "backbone compiled", "eager", "compiled"]),
        (["model=resnet18"], ["eager", "compiled"]),
    ],
    ids=["cnn", "self_routing", "resnet18"],
)
def test_what_does_not_iterate_has_one_row(monkeypatch, overrides, wanted):
    monkeypatch.setattr(steps, "memory", lambda *_: None)
    small = [text for text in SMALL if not text.startswith("routing.")]
    config = compose_config([*small, *overrides, "training.batch_size=2"])
    frame, note = benching.measure(config, None, 1)
    assert frame.variant.tolist() == wanted and frame.num_routing.isna().all()
    assert frame.relative_to_backbone.isna().all() == ("backbone" not in wanted)
    assert "num_routing" not in note and "schedule" not in note and "of a compiled step;" in note


def test_a_folder_that_is_no_checkout_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "make_step", None)  # before anything is timed
    with pytest.raises(ValueError, match=r"--against=.* has no capsule_model\.py"):
        run("--against", str(tmp_path))
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "capsule_model.py").touch()
    with pytest.raises(ValueError, match=r"has no resnet_backbone_digits\.json.* a stack for dataset=digits"):
        run("--against", str(tmp_path))


def test_no_step_is_no_measurement():
    with pytest.raises(ValueError, match="--repeats=0"):
        run("--repeats", "0")


def test_compile_off_is_honored(monkeypatch):
    monkeypatch.setattr(steps, "memory", lambda *_: None)
    config = compose_config([*SMALL, "training.batch_size=2", "training.compile=off"])
    frame, note = benching.measure(config, None, 1)
    assert frame.variant.tolist() == ["backbone", "eager", "eager", "eager"]
    assert "compiled" not in note and "eager with num_routing=2" in note


def test_ctrl_c_keeps_what_was_measured(monkeypatch):
    calls = []

    def step():
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    median, rounds = benching.interleaved_medians({"one": step}, 5, torch.device("cpu"))
    assert rounds == 1 and median["one"] >= 0
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        benching.interleaved_medians({"one": step, "other": step}, 5, torch.device("cpu"))
