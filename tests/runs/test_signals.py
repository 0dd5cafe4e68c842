import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import PATIENCE

from capsule_sweeps.runs.signals import SIGNALS, stop_signals


def until(holds):
    limit = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.01)


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_only_raises_the_flag(signum) -> None:
    before = signal.getsignal(signum)
    with stop_signals() as stop:
        assert stop.signum == 0
        os.kill(os.getpid(), signum)
        until(lambda: stop.signum == signum)
    assert signal.getsignal(signum) == before and not signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_the_second_ctrl_c_interrupts_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: stop.signum)
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: False)  # KeyboardInterrupt ends it
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


PROGRAM = """
import os, signal, subprocess, sys, threading, time
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()  # from before: it does not block the signals
from capsule_sweeps.runs.signals import stop_signals
with stop_signals() as stop:
    child = subprocess.Popen([sys.executable, "-c", "input(); print('compiled')"], stdin=subprocess.PIPE)
    print("ready", flush=True)
    while not stop.signum:
        time.sleep(0.01)
    child.communicate(b"\\n")
    print(child.returncode, stop.signum, flush=True)
"""


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_to_the_whole_group_does_not_end_a_compiler(signum) -> None:
    """As Ctrl-C and SLURM send it: to every process of the group, to those that another one started as well."""
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert program.stdout is not None and program.stdout.readline() == "ready\n"
    os.killpg(program.pid, signum)
    rest, _ = program.communicate(timeout=PATIENCE)
    assert rest == f"compiled\n0 {int(signum)}\n" and program.returncode == 0
