"""What a sweep shows while it runs: how many runs ended, how long the others take, accuracies in percent."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from capsule_sweeps import console as shown
from capsule_sweeps.console import Display, SweepProgress, duration
from capsule_sweeps.display import counted

NAME = "digits-inverted_attention-num_routing3-training_lr0.1-seed10-0123abcd"
ROW = {"epoch": 1, "train_loss": 0.5, "train_accuracy": 0.9, "test_accuracy": 0.978, "images_per_second": 1234.0}


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(shown.time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture
def screen(monkeypatch):
    """screen(terminal): what is written to a console, of 80 columns unless asked otherwise."""

    def make(terminal: bool, width: int = 80) -> Console:
        made = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
        monkeypatch.setattr(shown, "console", lambda: made)
        return made

    return make


def text(console: Console) -> str:
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", console.file.getvalue()).replace("\r", "\n")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.37, "0.37 s"), (40, "40 s"), (89, "89 s"), (720, "12 min"), (5400, "1.5 h"), (36e4, "100.0 h")],
)
def test_times_have_a_unit_that_fits(seconds, words) -> None:
    assert duration(seconds) == words


def test_time_left_follows_from_the_plan_and_then_from_what_is_done(clock, screen) -> None:
    log = screen(terminal=False)
    sweep = SweepProgress(4, 2, {"a": 600.0, "b": 600.0, "c": 1200.0})  # of d nothing is known: 800 as the mean
    assert sweep.left() == "about 27 min left"  # 3200 / 2
    clock[0] += 200
    sweep.advance("a", 0.5)
    assert sweep.left() == "about 32 min left"  # 300 of 3200 in 200 s: 1933 s
    clock[0] += 100
    sweep.end("a", 0.978)
    assert text(log) == "run 1/4 finished, accuracy 97.8%, about 22 min left: a\n"
    sweep.end("b", None)  # failed at once: it takes no more time
    assert sweep.left() == "about 17 min left"  # 600 of 2600 in 300 s: 1000 s
    sweep.end("c", 1.0)
    sweep.end("d", 0.5)
    assert text(log).splitlines()[-1] == "run 4/4 finished, accuracy 50.0%: d"


def test_one_run_is_no_sweep(screen) -> None:
    log = screen(terminal=False)
    SweepProgress(1).end("a", 0.5)
    assert text(log) == ""


def test_a_sweep_at_80_columns(clock, screen) -> None:
    terminal = screen(terminal=True)
    with Display(SweepProgress(24, 1)) as display:
        display.start(NAME, 2, 0, 10)
        display.batch(5, 0.5, 0.9, 1234.0)
        display._bars.refresh()
        clock[0] += 60
        display.epoch(ROW)
        display._bars.refresh()
    frame = text(terminal)
    assert "runs" in frame and "0/24" in frame and "about 47 min left" in frame  # half a run in 60 s
    assert "epoch 1/2" in frame and "test 97.8%" in frame and "0123abcd" in frame and "10/20" in frame
    assert max(map(len, frame.splitlines())) <= 80


@pytest.mark.parametrize(
    ("width", "end"),
    [
        (60, "epoch 2/2"),
        (80, "epoch 2/2  loss 0.500"),
        (100, "epoch 2/2  loss 0.500  train 90.0%"),
        (128, "epoch 2/2  loss 0.500  train 90.0%  1,234 images/s"),
        (200, "epoch 2/2  loss 0.500  train 90.0%  1,234 images/s"),
    ],
)
@pytest.mark.parametrize("num_batches", [10, 70_000])
def test_the_note_of_a_bar_ends_with_a_whole_number(clock, screen, width, end, num_batches) -> None:
    terminal = screen(terminal=True, width=width)
    with Display(SweepProgress(24, 1)) as display:
        display.start(NAME, 2, 0, num_batches)
        display.epoch(ROW)
        display.batch(5, 0.5, 0.9, 1234.0)
        display._bars.refresh()
    frame = [line.rstrip() for line in text(terminal).splitlines() if "epoch 2/2" in line or "test" in line][-1]
    assert "…" not in frame.replace(NAME[-8:], "").partition("0123abcd")[2] and len(frame) <= width
    if num_batches == 10:
        assert frame.endswith(f"test 97.8%  {end}")


def test_one_is_no_plural() -> None:
    assert [counted(number, "run") for number in (0, 1, 1200)] == ["0 runs", "1 run", "1,200 runs"]
    assert counted(1, "class", "classes") == "1 class" and counted(2, "class", "classes") == "2 classes"


def test_runs_side_by_side_at_80_columns(clock, screen) -> None:
    terminal = screen(terminal=True)
    with Display(SweepProgress(3, 2)) as display:
        for name in (NAME, NAME[:-1] + "e"):
            display.show(name, {"event": "start", "epochs": 4, "epochs_done": 2, "num_batches": 10})
        clock[0] += 60
        display.show(NAME, {"event": "batch", "done": 5, "loss": 0.5, "accuracy": 0.9, "images_per_second": 9.0})
        display.show(NAME, {"event": "epoch", "row": {**ROW, "epoch": 3}})  # half of what was left
        display._bars.refresh()
        assert "about 5 min left" in text(terminal)
        display.end(NAME, 0.978)
    frame = text(terminal)
    assert "runs" in frame and "0/3" in frame and "30/40" in frame and "run 1/3 finished, accuracy 97.8%" in frame
    assert max(map(len, frame.replace(NAME, "").splitlines())) <= 80
