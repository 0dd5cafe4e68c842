"""Counts without sense are refused at once, and a batch that does not end is abandoned some time after SIGTERM."""

import signal
import threading

import pytest

from capsule_sweeps.evaluation.evaluate import parse_iterations
from capsule_sweeps.launchers import local
from capsule_sweeps.runs import signals


@pytest.mark.parametrize(
    "override",
    [
        "num_routing=1000000000",
        "model.num_routing=1000000000",
        "training.epochs=100000000000000000000",
        "training.batch_size=1000000000000",
        "capsules.primary.num_capsules=1000000000",
        "dataset.image_size=10000000",
    ],
)
def test_count_that_no_model_can_have_is_one_sentence(launch, runs, override) -> None:
    ended = launch(override)
    assert ended.code == 1 and "at most" in ended.err and "Traceback" not in ended.text
    assert len(ended.err.splitlines()) == 1 and not runs.folders()


@pytest.mark.parametrize("text", ["1000000000", "2,101", "9" * 5000])
def test_iterations_of_evaluate_are_bounded(text) -> None:
    with pytest.raises(ValueError, match="from 1 to 100"):
        parse_iterations(text)


ENDLESS = """
import os, signal, sys, time
from capsule_sweeps.runs.signals import abandon_late, stop_signals
with stop_signals() as stop, abandon_late(stop, float(sys.argv[2])):
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    until = time.monotonic() + float(sys.argv[3])
    while time.monotonic() < until:  # a batch
        pass
print("ended")
"""


@pytest.mark.parametrize(("signum", "code"), [("SIGTERM", 143), ("SIGUSR2", 128 + signal.SIGUSR2)])
def test_batch_that_does_not_end_is_abandoned(python, signum, code) -> None:
    ended = python("-c", ENDLESS, signum, "0.1", "200")
    assert (ended.code, ended.out) == (code, "") and signum in ended.err


@pytest.mark.parametrize(("signum", "grace", "lasts"), [("SIGTERM", "100", "0.5"), ("SIGINT", "0.1", "1")])
def test_batch_that_ends_is_not_and_ctrl_c_waits(python, signum, grace, lasts) -> None:
    ended = python("-c", ENDLESS, signum, grace, lasts)
    assert (ended.code, ended.out) == (0, "ended\n")


def test_training_is_watched_and_the_watch_ends_with_it(launch, monkeypatch) -> None:
    from capsule_sweeps.training import train

    seen = []
    evaluate = train.evaluate

    def watched(*args):
        seen.append("abandon" in {thread.name for thread in threading.enumerate()})
        return evaluate(*args)

    monkeypatch.setattr(train, "evaluate", watched)
    assert launch().code == 0
    assert seen == [True, True] and "abandon" not in {thread.name for thread in threading.enumerate()}
    assert local.abandon_late is signals.abandon_late and signals.GRACE_SECONDS == 30
