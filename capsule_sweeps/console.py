"""What a person sees of training runs: bars on a terminal, a line an epoch elsewhere."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, Self

from rich import get_console
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from capsule_sweeps.display import terminal

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


def tell(text: object) -> None:
    """Print a sentence above the bars, however long; what is in it comes from others."""
    console().print(terminal(text), markup=False, highlight=False, soft_wrap=True)


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
        tell(self.format(record))


class Observer(Protocol):
    """Receives the progress of training: its start or resumption, and the ends of batches and epochs."""

    def start(self, name: str, epochs: int, epochs_done: int, num_batches: int) -> None: ...

    def batch(self, done: int, loss: float, accuracy: float, images_per_second: float) -> None: ...

    def epoch(self, row: dict[str, Any]) -> None: ...


class SweepProgress:
    """How many runs of a sweep have ended and how long the others take: a line for each run that finished.

    `seconds`: what the plan estimates for runs, by name; a run without an estimate counts as the mean of the others.
    """

    def __init__(self, num_runs: int, at_once: int = 1, seconds: Mapping[str, float | None] | None = None) -> None:
        self.num_runs, self.num_ended, self._at_once = num_runs, 0, at_once
        self._known = {name: value for name, value in (seconds or {}).items() if value}
        self._usual = sum(self._known.values()) / len(self._known) if self._known else 1.0
        self._whole = sum(self._known.values()) + self._usual * (num_runs - len(self._known))
        self._done: dict[str, float] = {}  # the share of each run that began
        self._started = time.perf_counter()

    def advance(self, name: str, share: float) -> None:
        """This share of what was left of a run is done."""
        self._done[name] = share

    def end(self, name: str, accuracy: float | None) -> None:
        """A run ended; `accuracy` (a fraction) is None where it did not finish."""
        self.num_ended += 1
        weight = self._known.get(name, self._usual)
        if accuracy is None:  # it takes no more time
            self._whole -= weight * (1 - self._done.get(name, 0.0))
            return
        self._done[name] = 1.0
        if self.num_runs > 1:
            said = ", ".join(filter(None, (f"accuracy {accuracy:.1%}", self.left())))
            tell(f"run {self.num_ended}/{self.num_runs} finished, {said}: {name}")

    def left(self) -> str:
        """As "about 12 min left"; empty at the end, and while nothing is known."""
        if self.num_ended == self.num_runs:
            return ""
        done = sum(share * self._known.get(name, self._usual) for name, share in self._done.items())
        if done > 0:
            seconds = (time.perf_counter() - self._started) * (self._whole - done) / done
        elif self._known:
            seconds = self._whole / min(self._at_once, self.num_runs)
        else:
            return ""
        return f"about {duration(max(0.0, seconds))} left"


class _Bars:
    """The bars of a sweep, shown for the time of a `with`."""

    def __init__(self, sweep: SweepProgress) -> None:
        self.console, self._sweep = console(), sweep
        self._bars = _bars(self.console)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()


class Display(_Bars):
    """Bars for the run at work, epochs and batches, and with a sweep one for its runs."""

    def __init__(self, sweep: SweepProgress | None = None) -> None:
        super().__init__(sweep or SweepProgress(1))
        if self._sweep.num_runs > 1:
            total = self._sweep.num_runs
            self._all = self._bars.add_task(f"run 1/{total}", total=total, note="", of_sweep=True)

    def start(self, name: str, epochs: int, epochs_done: int, num_batches: int) -> None:
        self._lines = EpochLines(self.console, name, epochs, epochs_done)
        self._name, self._epochs, self._first, self._epochs_done = name, epochs, epochs_done, epochs_done
        self._num_batches = num_batches
        for task in list(self._bars.task_ids):
            if self._sweep.num_runs == 1 or task != self._all:
                self._bars.remove_task(task)
        self._epoch = self._bars.add_task(
            f"{_short(self.console, name)} epoch", total=epochs, completed=epochs_done, note=""
        )
        self._batch = self._bars.add_task("batch", total=num_batches, note="")
        self._show_sweep()

    def batch(self, done: int, loss: float, accuracy: float, images_per_second: float) -> None:
        note = f"loss {loss:.3f}  train {accuracy:.1%}  {images_per_second:,.0f} images/s"
        self._bars.update(self._batch, completed=done, note=note)
        self._advance(self._epochs_done + done / self._num_batches)

    def end(self, name: str, accuracy: float | None) -> None:
        """A run of the sweep ended; see `SweepProgress.end`."""
        self._sweep.end(name, accuracy)

    def _advance(self, epochs_done: float) -> None:
        self._sweep.advance(self._name, (epochs_done - self._first) / max(1, self._epochs - self._first))
        self._show_sweep()

    def _show_sweep(self) -> None:
        if self._sweep.num_runs > 1:
            ended, total = self._sweep.num_ended, self._sweep.num_runs
            self._bars.update(
                self._all, description=f"run {min(ended + 1, total)}/{total}", completed=ended, note=self._sweep.left()
            )

    def epoch(self, row: dict[str, Any]) -> None:
        self._epochs_done = row["epoch"]
        self._advance(row["epoch"])
        self._bars.update(self._epoch, completed=row["epoch"], note=summary_of(row))
        self._bars.reset(self._batch)
        self._lines.epoch(row)


class PoolDisplay(_Bars):
    """One bar a run, in steps, for runs that work side by side, and one for all of them."""

    def __init__(self, sweep: SweepProgress) -> None:
        super().__init__(sweep)
        self._first: dict[str, int] = {}
        self._all = self._bars.add_task("runs", total=sweep.num_runs, note="", of_sweep=True)
        self._tasks: dict[str, TaskID] = {}
        self._lines: dict[str, EpochLines] = {}
        self._num_batches: dict[str, int] = {}
        self._epochs_done: dict[str, int] = {}

    def show(self, name: str, event: dict[str, Any]) -> None:
        """An event of `worker.PipeDisplay`."""
        if event.get("event") == "start":
            epochs, done, self._num_batches[name] = event["epochs"], event["epochs_done"], event["num_batches"]
            self._epochs_done[name] = self._first[name] = done
            self._lines[name] = EpochLines(self.console, name, epochs, done)
            total, completed = epochs * self._num_batches[name], done * self._num_batches[name]
            self._tasks[name] = self._bars.add_task(
                _short(self.console, name), total=total, completed=completed, note=""
            )
        elif event.get("event") == "batch" and name in self._tasks:
            completed = self._epochs_done[name] * self._num_batches[name] + event["done"]
            note = f"epoch {self._epochs_done[name] + 1}  loss {event['loss']:.3f}  train {event['accuracy']:.1%}"
            self._bars.update(self._tasks[name], completed=completed, note=note)
            self._advance(name, completed)
        elif event.get("event") == "epoch" and name in self._tasks:
            self._epochs_done[name] = event["row"]["epoch"]
            self._lines[name].epoch(event["row"])
            self._advance(name, self._epochs_done[name] * self._num_batches[name])

    def _advance(self, name: str, steps: float) -> None:
        first = self._first[name] * self._num_batches[name]
        total = self._bars.tasks[self._bars.task_ids.index(self._tasks[name])].total or 1
        self._sweep.advance(name, (steps - first) / max(1, total - first))
        self._bars.update(self._all, note=self._sweep.left())

    def end(self, name: str, accuracy: float | None) -> None:
        """A run ended; see `SweepProgress.end`."""
        if name in self._tasks:
            self._bars.remove_task(self._tasks.pop(name))
        self._sweep.end(name, accuracy)
        self._bars.update(self._all, completed=self._sweep.num_ended, note=self._sweep.left())


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
        rate = f"{row['images_per_second']:,.0f} images/s  {duration(left)} left"
        line = f"{self._name}  epoch {row['epoch']}/{self._epochs}  {summary_of(row)}  {rate}"
        self._console.print(terminal(line), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def bar(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """One bar for a piece of work; what is yielded is called with how much more of it is done."""
    with _bars(console()) as bars:
        task = bars.add_task(terminal(name), total=total, note="")
        yield lambda done: bars.update(task, advance=done)


def summary_of(row: dict[str, Any]) -> str:
    """The numbers of an epoch; what is tested comes first, because narrow terminals cut the end."""
    tested = f"test {row['test_accuracy']:.1%}  " if "test_accuracy" in row else ""
    averaged = f"ema {row['ema_test_accuracy']:.1%}  " if "ema_test_accuracy" in row else ""
    return f"{tested}{averaged}train {row['train_accuracy']:.1%}  loss {row['train_loss']:.3f}"


class _TimeLeft(TimeRemainingColumn):
    """Nothing beside the bar of a sweep, whose note has the time that is left."""

    def render(self, task: Task) -> Text:
        return Text() if task.fields.get("of_sweep") else super().render(task)


def _name_width(console: Console) -> int:
    return max(12, console.width // 2 - 21)


def _short(console: Console, name: str) -> str:
    """The name of a run, shortened in the middle, so that its signature stays and numbers fit beside it."""
    return short_name(name, _name_width(console) - len(" epoch"))


def short_name(name: str, width: int) -> str:
    """The name of a run in so many letters, at least 10; its signature stays."""
    name, width = terminal(name), max(10, width)
    return name if len(name) <= width else f"{name[: width - 9]}…{name[-8:]}"


def _bars(console: Console) -> Progress:
    length = 24 if console.width >= 120 else 6
    room = max(8, console.width - _name_width(console) - length - 20)
    short = Column(no_wrap=True, overflow="ellipsis", max_width=room)
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=length),
        TextColumn("{task.completed:.0f}/{task.total:.0f}", markup=False),
        _TimeLeft(),
        TextColumn("{task.fields[note]}", markup=False, table_column=short),
    ]
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
