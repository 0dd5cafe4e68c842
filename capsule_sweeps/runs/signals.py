"""Signals as a request to finish the batch, save and stop."""

import _thread
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from capsule_sweeps.console import console

log = logging.getLogger(__name__)

GRACE_SECONDS = 30.0
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class Interrupted(Exception):
    """The run was asked to stop, by the signal `signum` or (0) by `cancel`, and its checkpoint is written."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}" if signum else "cancelled")
        self.signum = signum


class Stop:
    """The signal that asked the run to stop, or 0."""

    signum = 0


@contextmanager
def abandon_late(stop: Stop, seconds: float = GRACE_SECONDS) -> Iterator[None]:
    """While open, SIGTERM or SIGUSR2 ends this process after this many seconds, if the batch in progress does not end.

    The last checkpoint is kept, and the same command resumes the run. Ctrl-C waits; a second Ctrl-C does not.
    """
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            if stop.signum in (signal.SIGTERM, signal.SIGUSR2):
                break
        if not done.wait(seconds) and stop.signum:
            log.error("still busy %g s after %s: abandoned", seconds, signal.Signals(stop.signum).name)
            console().show_cursor()
            os._exit(128 + stop.signum)

    watcher = threading.Thread(target=watch, daemon=True, name="abandon")
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """While open, SIGTERM, SIGUSR2 and Ctrl-C only raise a flag; a second Ctrl-C raises KeyboardInterrupt.

    The signals are blocked and a thread waits for them. Child processes started meanwhile, such as a compiler, inherit
    the block, so that a signal to the whole process group or SLURM step, the usual case, does not end them. Threads
    that started earlier may still receive a signal; for these there are also handlers.
    """
    stop, owner, done = Stop(), os.getpid(), threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(signum: int, _: Any) -> None:
        if os.getpid() != owner:  # a helper process that inherited this handler
            return
        if signum == signal.SIGINT and stop.signum:
            raise KeyboardInterrupt
        stop.signum = signum

    def wait() -> None:
        while not done.is_set():
            signum = signal.sigwait(SIGNALS)
            if signum == signal.SIGINT and stop.signum:
                _thread.interrupt_main()
            elif not done.is_set():
                stop.signum = signum

    handlers = {signum: signal.signal(signum, handle) for signum in SIGNALS}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    waiter = threading.Thread(target=wait, daemon=True, name="signals")
    waiter.start()
    try:
        yield stop
    finally:
        done.set()
        assert waiter.ident is not None
        signal.pthread_kill(waiter.ident, signal.SIGUSR2)
        waiter.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
