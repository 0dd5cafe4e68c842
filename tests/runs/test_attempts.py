"""Attempts without progress are counted apart, and a run that is killed each time counts as failed."""

import pytest

from capsule_sweeps.launchers.slurm.job import fruitless


@pytest.mark.parametrize(
    ("starts", "reached", "number"),
    [
        ([], 0, 0),
        ([0], 0, 1),
        ([0, 0, 0], 0, 3),
        ([0, 0, 5], 5, 1),
        ([0, 5], 9, 0),
        ([5, 5, 5], 9, 0),
        ([None, None], 0, 0),  # attempts of before do not say where they began
    ],
)
def test_attempts_that_got_nowhere(starts, reached, number) -> None:
    attempts = [{} if start is None else {"steps_done": start} for start in starts]
    assert fruitless({"attempts": attempts, "steps_done": reached}) == number


def test_attempts_before_a_submission_do_not_count() -> None:
    record = {"attempts": [{"steps_done": 0}] * 4, "steps_done": 0}
    assert [fruitless(record, first) for first in (0, 3, 4)] == [4, 1, 0]


def test_steps_are_recorded(launch, runs) -> None:
    import signal

    assert launch(signal_at=(signal.SIGTERM, 2)).code == 143
    record = runs.record(runs.only())
    assert (record["steps_done"], fruitless(record)) == (2, 0) and record["state"] != "running"
    assert launch(signal_at=(signal.SIGTERM, 4)).code == 143  # the second step of the second epoch
    assert runs.record(runs.only())["steps_done"] == 6
    assert launch().code == 0
    record = runs.record(runs.only())
    assert [attempt["steps_done"] for attempt in record["attempts"]] == [0, 2, 6] and record["steps_done"] == 10


def test_run_that_is_killed_again_and_again_is_killed(hold, runs) -> None:
    hold("step", 2).kill()
    record = runs.record(runs.only())
    assert record["state"] == "running" and fruitless(record) == 1
