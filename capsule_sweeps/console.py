"""What a person sees of training runs: bars on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol

from rich import get_console
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

PIP_NAMES = {"sklearn": "scikit-learn", "PIL": "pillow", "yaml": "PyYAML", "wandb_workspaces": "wandb-workspaces"}


def console() -> Console:
    """The one console. Where there is no terminal its width is fixed, so that tables in log files are not squeezed."""
    found = get_console()
    if not found.is_terminal and "COLUMNS" not in os.environ:
        found.width = 160
    return found


@contextmanager
def wide(letters: int = 10_000) -> Iterator[None]:
    """While open, tables are as wide as they need."""
    found = console()
    before, found.width = found.width, letters
    try:
        yield
    finally:
        found.width = before


def plain_text(text: str) -> Text:
    """Text for a table, without markup and without control characters: names and errors come from files."""
    return Text("".join(letter for letter in text if letter == "\n" or letter.isprintable()))


def missing_package(error: ModuleNotFoundError) -> str:
    """A sentence on a package that is not installed, with the command that installs it."""
    name = (error.name or "unknown").partition(".")[0]
    return f"the package {name} is not installed: pip install {PIP_NAMES.get(name, name)}"


def duration(seconds: float) -> str:
    """A time with a unit that fits: 40 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class ConsoleHandler(logging.Handler):
    """Prints log records above the bars."""

    def emit(self, record: logging.LogRecord) -> None:
        console().print(self.format(record), markup=False, highlight=False, soft_wrap=True)


class Observer(Protocol):
    """What training tells: that it starts or goes on, and how batches and epochs end."""

    def start(self, name: str, epochs: int, epochs_done: int, num_batches: int) -> None: ...

    def batch(self, done: int, loss: float, accuracy: float, images_per_second: float) -> None: ...

    def epoch(self, row: dict[str, Any]) -> None: ...


class Display:
    """Two bars for the run at work: epochs and batches."""

    def __init__(self) -> None:
        self.console = console()
        self._bars = _bars(self.console)

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()

    def start(self, name: str, epochs: int, epochs_done: int, num_batches: int) -> None:
        self._lines = EpochLines(self.console, name, epochs, epochs_done)
        for task in list(self._bars.task_ids):
            self._bars.remove_task(task)
        self._epoch = self._bars.add_task(f"{name}  epoch", total=epochs, completed=epochs_done, note="")
        self._batch = self._bars.add_task("batch", total=num_batches, note="")

    def batch(self, done: int, loss: float, accuracy: float, images_per_second: float) -> None:
        note = f"loss {loss:.3f}  train {accuracy:.1%}  {images_per_second:,.0f} images/s"
        self._bars.update(self._batch, completed=done, note=note)

    def epoch(self, row: dict[str, Any]) -> None:
        self._bars.update(self._epoch, completed=row["epoch"], note=summary_of(row))
        self._bars.reset(self._batch)
        self._lines.epoch(row)


class PoolDisplay:
    """One bar a run, in steps, for runs that work side by side, and one for all of them."""

    def __init__(self, num_runs: int) -> None:
        self.console = console()
        self._bars = _bars(self.console)
        self._all = self._bars.add_task("runs", total=num_runs, note="")
        self._tasks: dict[str, TaskID] = {}
        self._lines: dict[str, EpochLines] = {}
        self._num_batches: dict[str, int] = {}
        self._epochs_done: dict[str, int] = {}

    def __enter__(self) -> PoolDisplay:
        self._bars.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()

    def show(self, name: str, event: dict[str, Any]) -> None:
        """An event of `worker.PipeDisplay`."""
        if event.get("event") == "start":
            epochs, done, self._num_batches[name] = event["epochs"], event["epochs_done"], event["num_batches"]
            self._epochs_done[name] = done
            self._lines[name] = EpochLines(self.console, name, epochs, done)
            total, completed = epochs * self._num_batches[name], done * self._num_batches[name]
            self._tasks[name] = self._bars.add_task(name, total=total, completed=completed, note="")
        elif event.get("event") == "batch" and name in self._tasks:
            completed = self._epochs_done[name] * self._num_batches[name] + event["done"]
            note = f"epoch {self._epochs_done[name] + 1}  loss {event['loss']:.3f}  train {event['accuracy']:.1%}"
            self._bars.update(self._tasks[name], completed=completed, note=note)
        elif event.get("event") == "epoch" and name in self._tasks:
            self._epochs_done[name] = event["row"]["epoch"]
            self._lines[name].epoch(event["row"])

    def end(self, name: str) -> None:
        if name in self._tasks:
            self._bars.remove_task(self._tasks.pop(name))
        self._bars.advance(self._all)


class EpochLines:
    """A line an epoch, where no terminal shows bars; no more than one a second, but always the last."""

    def __init__(self, console: Console, name: str, epochs: int, epochs_done: int) -> None:
        self._console, self._name, self._epochs = console, name, epochs
        self._first, self._started, self._said = epochs_done, time.perf_counter(), 0.0

    def epoch(self, row: dict[str, Any]) -> None:
        now, last = time.perf_counter(), row["epoch"] == self._epochs
        if self._console.is_terminal or (now - self._said < 1 and not last):
            return
        self._said = now
        left = (now - self._started) / (row["epoch"] - self._first) * (self._epochs - row["epoch"])
        rate = f"{row['images_per_second']:,.0f} images/s  {left:.0f} s left"
        line = f"{self._name}  epoch {row['epoch']}/{self._epochs}  {summary_of(row)}  {rate}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def bar(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """One bar for a piece of work; what is yielded is called with how much more of it is done."""
    with _bars(console()) as bars:
        task = bars.add_task(name, total=total, note="")
        yield lambda done: bars.update(task, advance=done)


def summary_of(row: dict[str, Any]) -> str:
    tested = f"  test {row['test_accuracy']:.1%}" if "test_accuracy" in row else ""
    averaged = f"  ema {row['ema_test_accuracy']:.1%}" if "ema_test_accuracy" in row else ""
    return f"loss {row['train_loss']:.3f}  train {row['train_accuracy']:.1%}{tested}{averaged}"


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
