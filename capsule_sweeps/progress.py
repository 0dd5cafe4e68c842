"""What a person sees of training runs: bars on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import logging
import os
import time
from types import TracebackType
from typing import Any

from rich import get_console
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


def console() -> Console:
    """The one console. Where there is no terminal its width is fixed, so that tables in log files are not squeezed."""
    found = get_console()
    if not found.is_terminal and "COLUMNS" not in os.environ:
        found.width = 160
    return found


class ConsoleHandler(logging.Handler):
    """Prints log records above the bars."""

    def emit(self, record: logging.LogRecord) -> None:
        console().print(self.format(record), markup=False, highlight=False, soft_wrap=True)


class Display:
    """Two bars for the run at work: epochs and batches."""

    def __init__(self) -> None:
        self.console = console()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()

    def start(self, name: str, epochs: int, epochs_done: int, num_batches: int) -> None:
        self._name, self._epochs, self._started, self._first = name, epochs, time.perf_counter(), epochs_done
        for task in list(self._bars.task_ids):
            self._bars.remove_task(task)
        self._epoch = self._bars.add_task(f"{name} epochs", total=epochs, completed=epochs_done, note="")
        self._batch = self._bars.add_task("batches", total=num_batches, note="")

    def batch(self, done: int, loss: float, accuracy: float, images_per_second: float) -> None:
        note = f"loss {loss:.3f}  train {accuracy:.1%}  {images_per_second:,.0f} images/s"
        self._bars.update(self._batch, completed=done, note=note)

    def epoch(self, row: dict[str, Any]) -> None:
        note = f"loss {row['train_loss']:.3f}  train {row['train_accuracy']:.1%}  test {row['test_accuracy']:.1%}"
        self._bars.update(self._epoch, completed=row["epoch"], note=note)
        self._bars.reset(self._batch)
        if not self.console.is_terminal:
            done = row["epoch"] - self._first
            left = (time.perf_counter() - self._started) / done * (self._epochs - row["epoch"])
            rate = f"{row['images_per_second']:,.0f} images/s"
            line = f"{self._name}  epoch {row['epoch']}/{self._epochs}  {note}  {rate}  {left:.0f} s left"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
