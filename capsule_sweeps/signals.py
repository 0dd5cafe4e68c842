"""Signals as a request: finish the batch, save, leave."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class Interrupted(Exception):
    """The run was asked to stop and its checkpoint is written: by the signal `signum`, or (0) because of `cancel`."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}" if signum else "cancelled")
        self.signum = signum


class Stop:
    """The signal that asked the run to stop, 0 while there is none."""

    signum = 0


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """While open, SIGTERM, SIGUSR2 and Ctrl-C only raise a flag; a second Ctrl-C interrupts at once."""
    stop, owner = Stop(), os.getpid()

    def handle(signum: int, _: Any) -> None:
        if os.getpid() != owner:  # a helper process that inherited this handler
            return
        if signum == signal.SIGINT and stop.signum:
            raise KeyboardInterrupt
        stop.signum = signum

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {signum: signal.signal(signum, handle) for signum in SIGNALS}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
