"""Sweeps through launch.py: plan, run what is missing, table; nothing twice, nothing lost, nothing beside runs_dir."""

import os
import re
import signal
from pathlib import Path

import pytest

from capsule_sweeps import load_runs

ROOT = Path(__file__).resolve().parents[2]


def plan(out: str) -> list[tuple[str, str, str, str]]:
    """(run, differs by, state, action) of each row of the plan."""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]
    return [tuple(row) for row in rows if len(row) == 4 and row[0]]


def table(out: str) -> str:
    return out.partition("Results")[2]


def stamps(runs_dir: str = "runs") -> dict[str, int]:
    """When each file changed."""
    return {str(path): path.stat().st_mtime_ns for path in Path(runs_dir).rglob("*")}


def test_sweep_from_plan_to_table_and_again(launch, runs) -> None:
    ended = launch("-m", "num_routing=1,2", "seed=0,1")
    assert ended.code == 0, ended.text
    names = [folder.name for folder in runs.folders()]
    assert sorted(row[0] for row in plan(ended.out)) == names and len(names) == 4
    assert {row[1:] for row in plan(ended.out)} == {
        (f"num_routing={num_routing} seed={seed}", "new", "run") for num_routing in (1, 2) for seed in (0, 1)
    }
    frame = load_runs("runs")
    assert set(frame.state) == {"finished"}
    for num_routing in (1, 2):
        accuracy = 100 * frame[frame.num_routing == num_routing].accuracy_last
        width = 12.706205 * accuracy.std() / 2**0.5  # t(0.975, 1)
        cells = [f"{value:.2f}" for value in (accuracy.mean(), accuracy.std(), width, accuracy.min(), accuracy.max())]
        costs = r"(?:\s*[\d.,]+ │){0,2}"  # seconds per epoch and memory, columns where rows differ
        (row,) = re.findall(rf"^│\s+{num_routing} │{costs}\s+2 │(.*)│$", table(ended.out), re.MULTILINE)
        assert [cell.strip().removesuffix("†") for cell in row.split("│")] == cells  # †: has not learned

    before = stamps()
    again = launch("-m", "seed=0,1", "num_routing=1,2")
    assert again.code == 0
    assert {row[2:] for row in plan(again.out)} == {("finished", "skip")}
    assert table(again.out) == table(ended.out)
    assert stamps() == before


def test_the_commands_as_a_user_types_them(python, tiny, place) -> None:
    """Processes of their own: nothing but runs_dir appears, and what is finished needs no torch."""
    first = python(ROOT / "launch.py", "-m", *tiny, "num_routing=1,2")
    assert first.code == 0, first.text
    assert first.err == ""
    assert [path.name for path in place.iterdir()] == ["runs"]
    again = python("-X", "importtime", ROOT / "launch.py", "-m", *tiny, "num_routing=1,2")
    assert again.code == 0 and table(again.out) == table(first.out)
    assert not re.search(r"\| +torch$", again.err, re.MULTILINE)
    one = python(ROOT / "launch.py", *tiny, "num_routing=2")
    assert one.code == 0 and plan(one.out)[0][2:] == ("finished", "skip")
    assert [path.name for path in place.iterdir()] == ["runs"] and len(load_runs("runs")) == 2


def test_single_run_and_sweep_share_folder_ledger_and_resume(launch, runs) -> None:
    assert launch("seed=3", signal_at=(signal.SIGTERM, 2)).code == 143
    ended = launch("-m", "seed=3,4")
    assert ended.code == 0
    assert [row[2:] for row in plan(ended.out)] == [("interrupted", "resume"), ("new", "run")]
    before = stamps()
    alone = launch("seed=4")
    assert alone.code == 0 and plan(alone.out)[0][2:] == ("finished", "skip") and table(alone.out)
    assert stamps() == before


def test_interrupted_sweep_resumes(launch, runs) -> None:
    first = launch("runs_dir=other", signal_at=(signal.SIGINT, 3))
    assert first.code == 130 and "Results" not in first.out, "no table without a result"
    assert "1 run is not finished; rerun" in first.err
    ended = launch("-m", "seed=0,1,2", signal_at=(signal.SIGINT, 12))  # in the second run
    assert ended.code == 130 and "Traceback" not in ended.text
    assert load_runs("runs").state.tolist() == ["finished", "interrupted"]
    again = launch("-m", "seed=0,1,2")
    assert again.code == 0
    assert [row[2:] for row in plan(again.out)] == [("finished", "skip"), ("interrupted", "resume"), ("new", "run")]
    assert len(runs.folders()) == 3 and set(load_runs("runs").state) == {"finished"}


def test_failing_run_leaves_the_others_alone(launch, runs) -> None:
    for attempt in range(2):
        ended = launch("-m", "training.lr=0.1,1e30,0.05")
        assert ended.code == 1 and "Traceback" not in ended.text
        assert sorted(load_runs("runs").state) == ["failed", "finished", "finished"]
        assert [row[3] for row in plan(ended.out)] == (["skip", "retry", "skip"] if attempt else ["run"] * 3)
        assert "Left out: 1 of 3 runs" in " ".join(ended.out.split())


def test_nothing_finished_is_reported(launch) -> None:
    ended = launch("training.lr=1e30")
    assert ended.code == 1 and "Traceback" not in ended.text and "Results" in ended.out


@pytest.mark.parametrize(
    "swept",
    [
        "training.lr=0.1,1e-1",
        "training.compile=auto,off",
        "device=auto,cpu",
    ],
)
def test_points_with_one_signature_are_one_run(launch, swept) -> None:
    ended = launch("-m", swept, "hydra.launcher.dry_run=true")
    assert ended.code == 0 and len(plan(ended.out)) == 1
    assert "2 points" in ended.out


def test_run_of_another_process_is_left_alone(hold, launch, runs) -> None:
    held = hold("step", 3, "seed=1")
    (busy,) = runs.folders()
    before = (busy / "run.json").read_text()
    ended = launch("-m", "seed=0,1")
    assert ended.code == 1  # not every run finished
    assert [row[2:] for row in plan(ended.out)] == [("new", "run"), ("running", "leave")]
    assert (busy / "run.json").read_text() == before
    assert held.send(signal.SIGTERM) == 143
    assert launch("-m", "seed=0,1").code == 0


def test_another_configuration_in_the_folder_stops_before_the_first_run(launch, trained, runs) -> None:
    assert trained("seed=0").code == 0
    record = runs.record(runs.only())
    runs.change_record(runs.only(), signed_config={**record["signed_config"], "training.lr": 7})
    ended = launch("-m", "seed=1,0")
    assert ended.code == 1 and "Traceback" not in ended.text
    assert "training.lr" in ended.err and "7" in ended.err and runs.only().name in ended.err


def test_progress_has_lines_where_there_is_no_terminal(launch, runs) -> None:
    """Not of every epoch where these take a moment, but always of the last."""
    out = launch("training.epochs=3").out
    lines = {int(found[1]): line for line in out.splitlines() if (found := re.search(r"epoch (\d)/3", line))}
    assert 3 in lines
    rows = {row["epoch"]: row for row in runs.metrics(runs.only())}
    for epoch, line in lines.items():
        assert f"loss {rows[epoch]['train_loss']:.3f}" in line and f"test {rows[epoch]['test_accuracy']:.1%}" in line
        assert "images/s" in line and "left" in line


@pytest.mark.parametrize("parallel", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_line_for_each_finished_run_of_a_sweep(launch, runs, parallel) -> None:
    out = launch("-m", "seed=0,1", f"hydra.launcher.parallel={parallel}").out
    lines = [line for line in out.splitlines() if " finished, accuracy " in line]
    assert [line.partition(" finished")[0] for line in lines] == ["run 1/2", "run 2/2"]
    for folder in runs.folders():
        (line,) = [line for line in lines if line.endswith(folder.name)]
        assert f"accuracy {runs.record(folder)['accuracy_last']:.1%}" in line
    assert " left" in lines[0] and " left" not in lines[1]


def test_runs_dir_may_be_anywhere(launch, runs, tmp_path) -> None:
    for runs_dir in (str(tmp_path / "else where" / "deep"), "a/b"):
        assert launch("-m", f"runs_dir='{runs_dir}'", "seed=0").code == 0
        assert len(runs.folders(runs_dir)) == 1
    assert not Path("runs").exists()


def test_hydra_writes_nothing_even_when_a_sweep_is_empty_of_work(launch, place) -> None:
    assert launch("-m", "seed=0").code == 0
    assert launch("-m", "seed=0").code == 0
    for name in ("outputs", "multirun", "multirun.yaml", ".hydra", "launch.log"):
        assert not list(place.rglob(name))
    assert os.listdir(place) == ["runs"]


def test_table_is_of_the_rule_asked_for(launch, runs) -> None:
    out = launch("training.epochs=4", "selection_rule=best_test").out
    best = max(row["test_accuracy"] for row in runs.metrics(runs.only()))
    assert f" {100 * best:.2f} " in table(out) and "selection rule: best_test" in table(out)


def test_the_launcher_of_an_option_that_is_no_file_is_one_sentence(launch) -> None:
    words = ["hydra.launcher._target_=hydra_plugins.capsule_sweeps.SweepLauncher", "+hydra.launcher.kind=mine"]
    ended = launch("-m", *words)
    assert ended.code == 1 and "hydra.launcher.kind=mine is unknown: no dataclass Launcher" in ended.err, ended.text
