"""Records with any value in any place: a damaged folder costs a line, and breaks no command."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from synthetic import composed, finished_run

from capsule_sweeps.runs.files import write_json
from capsule_sweeps.runs.plan import Policy, make_plan
from capsule_sweeps.runs.signature import columns, signed_config

FOLDERS = 8
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "flat" / "finished"

HOSTILE: list[Any] = [None, True, 0, -1, 1.5, 10**40, 10**400, 1e308, float("nan"), float("inf"), "", "x", "\ud800"]
HOSTILE += ["\x00\x1b[2J", "[/b]", "$\\badmath{$", "../../etc/passwd", "/dev/zero", "x" * 100_000, "1e400", "–€"]
HOSTILE += [[], [5], [[]], ["\ud800"], {}, {"a": 5}, {"\ud800": 1}, [{}], [{"code": 5}], [None], {"": None}]
deep: Any = 1
for _ in range(500):
    deep = [deep]
HOSTILE.append(deep)
RAW = [b"", b"{", b"\x00" * 64, b"\xff\xfe", b"null", b"5", b"[" * 100_000, b'{"epochs": 1e999}']
FILES = ("run.json", "summary.json", "queued.json", "attempt-1.json", "metrics.jsonl", "sweep")


def mutate(value: Any, choose: random.Random) -> Any:
    """A copy in which one node, wherever in it, is replaced, removed, or has one more beside it."""
    if isinstance(value, dict) and value and choose.random() < 0.9:
        key = choose.choice(sorted(value))
        if choose.random() < 0.1:
            return {name: item for name, item in value.items() if name != key}
        return {**value, key: mutate(value[key], choose)}
    if isinstance(value, list) and value and choose.random() < 0.7:
        place = choose.randrange(len(value))
        return [*value[:place], mutate(value[place], choose), *value[place + 1 :]]
    return choose.choice(HOSTILE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Run folders with all files that listing commands read, and a sweep."""
    place = tmp_path_factory.mktemp("whole")
    (golden,) = GOLDEN.iterdir()
    attempts = json.loads((golden / "run.json").read_text())["attempts"]
    signatures = []
    for seed in range(FOLDERS):
        state = ("finished", "failed", "interrupted", "finished")[seed % 4]
        words = ["dataset=digits", f"seed={seed}", f"num_routing={1 + seed % 2}", f"runs_dir={place}/runs"]
        config, folder = composed(words), finished_run(words, 0.5 + seed / 100, state=state)
        record = json.loads((folder / "run.json").read_text())
        write_json(folder / "run.json", {**record, "attempts": attempts, "epochs_done": 2, "error": "x", "sweep": "s"})
        ticket = {"submission": "sweep-00000000-000000", "user": "somebody", "attempts": 0}
        write_json(
            folder / "queued.json", {**ticket, "columns": columns(config), "signed_config": signed_config(config)}
        )
        write_json(folder / "attempt-1.json", {"host": "here", "pid": 1, "start": "0", "time": 0, "released": 1})
        shutil.copy(golden / "metrics.jsonl", folder)
        (folder / "error.txt").write_text("what went wrong\n")
        signatures.append(folder.name[-8:])
    (place / "runs" / ".sweeps").mkdir()
    command = ["launch.py", "-m", "seed=0"]
    write_json(place / "runs" / ".sweeps" / "sweep-00000000.json", {"command": command, "signatures": signatures})
    return place / "runs"


def damage(runs_dir: Path, choose: random.Random) -> None:
    """One mutation in one file of each folder."""
    for folder in sorted(path for path in runs_dir.iterdir() if not path.name.startswith(".")):
        name = choose.choice(FILES)
        path = runs_dir / ".sweeps" / "sweep-00000000.json" if name == "sweep" else folder / name
        if not path.exists():
            path = folder / "run.json"
        if choose.random() < 0.1:
            path.write_bytes(choose.choice(RAW))
            continue
        try:
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            place = choose.randrange(len(lines))
            lines[place] = json.dumps(mutate(json.loads(lines[place]), choose))
        except (ValueError, RecursionError):
            continue  # the sweep's file was damaged before
        path.write_text("\n".join(lines))


def listings_survive(whole: Path, place: Path, capsule_sweeps: Any, seed: int) -> None:
    runs_dir = place / "runs"
    shutil.rmtree(runs_dir, ignore_errors=True)
    shutil.copytree(whole, runs_dir)
    damage(runs_dir, random.Random(seed))
    names = sorted(path.name for path in runs_dir.iterdir() if not path.name.startswith("."))
    commands = [["status"], ["results"], ["results", "--ablation"], ["gc"], ["report"]]
    commands += [["show", names[seed % FOLDERS]], ["show", names[(seed + 1) % FOLDERS], "--format", "json"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # letters that the font lacks
        for words in commands:
            ended = capsule_sweeps(*words)
            alone = words[0] == "show" and "damaged" in ended.err  # of a folder that is damaged
            assert (ended.code == 0 or alone) and "Traceback" not in ended.text, (words, ended.text)
            assert "\x1b[2J" not in ended.text
    config = composed(["dataset=digits", "seed=99", f"runs_dir={runs_dir}"])
    (point,) = make_plan([config], [["seed=99"]], Policy())
    assert point.action == "run"


anything = settings(  # a seed shrinks to nothing simpler
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
    derandomize=True,
    phases=[Phase.generate],
)


@pytest.mark.slow
@settings(anything, max_examples=8)  # of FOLDERS mutations each
@given(seed=st.integers(0, 2**32))
def test_damaged_records_break_no_listing(whole, place, capsule_sweeps, seed) -> None:
    listings_survive(whole, place, capsule_sweeps, seed)


@pytest.mark.nightly
@settings(anything, max_examples=250)
@given(seed=st.integers(0, 2**32))
def test_two_thousand_mutations_break_no_listing(whole, place, capsule_sweeps, seed) -> None:
    listings_survive(whole, place, capsule_sweeps, seed)
