"""What a person sees of training runs: bars on a terminal, a line an epoch elsewhere."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, Self

from rich import get_console
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
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
def wide() -> Iterator[None]:
    found = console()
    before, found.width = found.width, 10_000
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


@dataclass
class _Run:
    """A run at work: its bar, in steps, and what of it is done."""

    task: TaskID
    lines: "EpochLines"
    num_batches: int
    epochs: int
    first: int
    epochs_done: int
    tested: str = ""


class Display:
    """A bar for each run at work, and one for all runs of a sweep, shown for the time of a `with`.

    `show` takes the events of runs that work side by side. As an Observer it takes those of one run after the other.
    """

    def __init__(self, sweep: SweepProgress | None = None) -> None:
        self.console, self._sweep = console(), sweep or SweepProgress(1)
        self._bars = _bars(self.console)
        self._runs: dict[str, _Run] = {}
        self._all: TaskID | None = None
        if self._sweep.num_runs > 1:
            self._all = self._bars.add_task("runs", total=self._sweep.num_runs, note="", of_sweep=True)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def start(self, name: str, epochs: int, epochs_done: int, num_batches: int) -> None:
        self._name = name
        task = self._bars.add_task(_short(self.console, name), total=epochs * num_batches, note="")
        lines = EpochLines(self.console, name, epochs, epochs_done)
        self._runs[name] = _Run(task, lines, num_batches, epochs, epochs_done, epochs_done)
        self._show(name, epochs_done * num_batches)

    def batch(self, done: int, loss: float, accuracy: float, images_per_second: float) -> None:
        run = self._runs[self._name]
        note = f"{run.tested}epoch {run.epochs_done + 1}/{run.epochs}  loss {loss:.3f}  train {accuracy:.1%}"
        self._bars.update(run.task, note=f"{note}  {images_per_second:,.0f} images/s")
        self._show(self._name, run.epochs_done * run.num_batches + done)

    def epoch(self, row: dict[str, Any]) -> None:
        run = self._runs[self._name]
        run.epochs_done, run.tested = row["epoch"], tested(row) or run.tested
        self._bars.update(run.task, note=summary_of(row))
        self._show(self._name, run.epochs_done * run.num_batches)
        run.lines.epoch(row)

    def show(self, name: str, event: dict[str, Any]) -> None:
        """An event of `worker.PipeDisplay`."""
        kind, self._name = event.pop("event"), name
        if kind == "start":
            self.start(name, **event)
        elif name in self._runs and kind in ("batch", "epoch"):
            getattr(self, kind)(**event)

    def end(self, name: str, accuracy: float | None) -> None:
        """A run ended; see `SweepProgress.end`."""
        if name in self._runs:
            self._bars.remove_task(self._runs.pop(name).task)
        self._sweep.end(name, accuracy)
        self._show_sweep()

    def _show(self, name: str, steps: float) -> None:
        run = self._runs[name]
        self._bars.update(run.task, completed=steps)
        left = max(1, run.epochs - run.first) * run.num_batches
        self._sweep.advance(name, (steps - run.first * run.num_batches) / left)
        self._show_sweep()

    def _show_sweep(self) -> None:
        if self._all is not None:
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
    """The numbers of an epoch; what is tested comes first, because narrow terminals leave out the end."""
    averaged = f"ema {row['ema_test_accuracy']:.1%}  " if "ema_test_accuracy" in row else ""
    return f"{tested(row)}{averaged}train {row['train_accuracy']:.1%}  loss {row['train_loss']:.3f}"


def tested(row: dict[str, Any]) -> str:
    return f"test {row['test_accuracy']:.1%}  " if "test_accuracy" in row else ""


class _TimeLeft(TimeRemainingColumn):
    """Nothing beside the bar of a sweep, whose note has the time that is left."""

    def render(self, task: Task) -> Text:
        return Text() if task.fields.get("of_sweep") else super().render(task)


def _short(console: Console, name: str) -> str:
    """The name of a run, shortened in the middle, so that its signature stays and numbers fit beside it."""
    return short_name(name, max(12, console.width // 2 - 21) - len(" epoch"))


def short_name(name: str, width: int) -> str:
    """The name of a run in so many letters, at least 10; its signature stays."""
    name, width = terminal(name), max(10, width)
    return name if len(name) <= width else f"{name[: width - 9]}…{name[-8:]}"


class _Parts:
    """A note whose parts, between two spaces, are whole: those that fit in its column, from the first one on."""

    def __init__(self, note: str) -> None:
        self.note = note

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, max(1, len(self.note)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown, *parts = self.note.split("  ")
        for part in parts:
            if len(shown) + 2 + len(part) > options.max_width:
                break
            shown += f"  {part}"
        yield Text(shown, no_wrap=True, overflow="ellipsis")


class _Note(ProgressColumn):
    def render(self, task: Task) -> _Parts:
        return _Parts(task.fields["note"].rstrip())


def _bars(console: Console) -> Progress:
    length = 24 if console.width >= 160 else 12 if console.width >= 120 else 6
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=length),
        TextColumn("{task.completed:.0f}/{task.total:.0f}", markup=False),
        _TimeLeft(),
        _Note(Column(no_wrap=False)),
    ]
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
