"""Event files, read back with TensorBoard's own reader: each epoch once, with the values of metrics.jsonl."""

import json
import signal
import sys
from pathlib import Path

import pytest

pytest.importorskip("tensorboard")

ON = "tracking=tensorboard"


def read(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each scalar; TensorBoard keeps 32 bits of a value."""
    found = read(folder)
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def assert_is_mirror(folder: Path, rows: list[dict[str, float]]) -> None:
    """Each metric of each epoch, once, and no other step."""
    scalars = shown(folder)
    for name in rows[0].keys() - {"epoch"}:
        assert [step for step, _ in scalars[name]] == [row["epoch"] for row in rows], name
        assert [value for _, value in scalars[name]] == pytest.approx([row[name] for row in rows], rel=1e-6), name
    assert {name for name in scalars if not name.startswith("accuracy_")} == rows[0].keys() - {"epoch"}


def settings_of(folder: Path) -> dict[str, object]:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = read(folder).summary_metadata["_hparams_/session_start_info"].plugin_data.content
    start = HParamsPluginData.FromString(content).session_start_info
    return {key: getattr(value, value.WhichOneof("kind")) for key, value in start.hparams.items()}


def test_finished_run(launch, runs) -> None:
    ended = launch(ON, "dataset.val_size=20", "training.ema=0.9")
    assert ended.code == 0 and "TensorBoard" not in ended.text, ended.text
    folder = runs.only()
    assert_is_mirror(folder, runs.metrics(folder))
    summary = json.loads((folder / "summary.json").read_text())
    for rule in ("last", "best_val", "best_test", "ema_last"):
        ((step, value),) = shown(folder)[f"accuracy_{rule}"]
        assert step == 2 and value == pytest.approx(summary[f"accuracy_{rule}"])
    settings = settings_of(folder)
    assert (settings["training.lr"], settings["num_routing"], settings["routing"]) == (0.1, 1, "inverted_attention")
    assert settings["signature"] == folder.name[-8:] and settings["training.loss"] == "cross_entropy"
    assert "tensorboard" in runs.record(folder)["attempts"][0]["versions"]
    assert list(folder.glob("tensorboard/*")) and not list(folder.glob("tensorboard/*/"))


def test_interrupted_and_resumed_run_has_each_epoch_once(launch, runs) -> None:
    assert launch(ON, "training.epochs=3", signal_at=(signal.SIGTERM, 8)).code == 143
    assert_is_mirror(runs.only(), runs.metrics(runs.only()))
    assert not [tag for tag in shown(runs.only()) if tag.startswith("accuracy_")]
    assert launch(ON, "training.epochs=3").code == 0
    assert len(runs.metrics(runs.only())) == 3
    assert_is_mirror(runs.only(), runs.metrics(runs.only()))


def test_killed_run_has_each_epoch_once(hold, launch, runs) -> None:
    """Killed in epoch 4 with a checkpoint of epoch 2: epoch 3 is shown already and trained again."""
    settings = (ON, "training.epochs=5", "training.checkpoint_epochs=2")
    held = hold("step", 17, *settings)
    held.kill()
    assert_is_mirror(runs.only(), runs.metrics(runs.only()))
    watcher = read(runs.only())  # a TensorBoard that is open meanwhile keeps what it has read
    assert [event.step for event in watcher.Scalars("train_loss")] == [1, 2, 3]
    (cut,) = runs.only().glob("tensorboard/*")
    cut.write_bytes(cut.read_bytes()[:-5])  # as a kill within a write leaves it
    assert launch(*settings).code == 0
    assert [row["epoch"] for row in runs.metrics(runs.only())] == [1, 2, 3, 4, 5]
    assert_is_mirror(runs.only(), runs.metrics(runs.only()))
    assert [event.step for event in watcher.Reload().Scalars("train_loss")] == [1, 2, 3, 4, 5]


def test_times_are_those_of_training_without_the_pause(launch, runs) -> None:
    assert launch(ON, "training.epochs=3", signal_at=(signal.SIGTERM, 12)).code == 143
    assert launch(ON, "training.epochs=3").code == 0
    rows, events = runs.metrics(runs.only()), read(runs.only()).Scalars("train_loss")
    assert events[1].wall_time - events[0].wall_time == pytest.approx(rows[1]["seconds"], abs=0.01)
    assert events[1].wall_time < events[2].wall_time


def test_run_that_was_not_tracked_before_is_shown_whole(launch, trained, runs) -> None:
    assert trained(signal_at=(signal.SIGTERM, 8)).code == 143
    assert launch(ON).code == 0
    assert_is_mirror(runs.only(), runs.metrics(runs.only()))


def test_tracking_changes_no_numbers(launch, runs) -> None:
    assert launch(ON).code == 0 and launch("runs_dir=untouched").code == 0
    runs.assert_same(runs.only(), runs.only("untouched"))


@pytest.mark.parametrize("command", ["launch", "sweep", "doctor"])
def test_missing_package_is_one_sentence_before_the_run(launch, capsule_sweeps, tiny, monkeypatch, command) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    if command == "doctor":
        ended = capsule_sweeps("doctor", *tiny, ON)
        text = next(line for line in ended.out.splitlines() if "pip install" in line)
    else:
        ended = launch(ON, *(["-m", "seed=0,1"] if command == "sweep" else []))
        text = ended.err
        assert text.startswith("Error: ") and text.count("\n") == 1
    assert ended.code == 1 and "pip install" in text and "tracking=none" in text and not Path("runs").exists()


def test_trouble_of_the_writer_is_not_the_runs(launch, runs, monkeypatch) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "flush", full)
    ended = launch(ON, "training.epochs=4")
    assert ended.code == 0 and ended.text.count("TensorBoard: ") == 1 and "No space left" in ended.text
    assert len(runs.metrics(runs.only())) == 4
