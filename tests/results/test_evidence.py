"""Folders with the small files of finished runs, as analysis/evidence/ keeps them, are tables like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from synthetic import finished_run

from capsule_sweeps import load_runs
from capsule_sweeps.runs.files import write_atomic

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("run.json", "metrics.jsonl", "summary.json", "config.yaml")
GOLDEN = ROOT / "tests" / "golden" / "flat" / "finished"


@pytest.fixture
def evidence(place) -> Path:
    """Four runs: no checkpoint, no attempt file, no log, no sweep."""
    (golden,) = GOLDEN.iterdir()
    folder = Path("analysis/evidence/small")
    for num_routing in (1, 2):
        for seed in (0, 1):
            words = ["dataset=digits", f"num_routing={num_routing}", f"seed={seed}", f"runs_dir={folder}"]
            run = finished_run(words, 0.9 + num_routing / 100 + seed / 1000)
            shutil.copy(golden / "metrics.jsonl", run)
            write_atomic(run / "config.yaml", b"seed: 0\n")
            assert {path.name for path in run.iterdir()} == set(SMALL)
    return folder


def test_every_listing_reads_it_and_writes_nothing(evidence, capsule_sweeps) -> None:
    before = {path: path.read_bytes() for path in evidence.rglob("*") if path.is_file()}
    frame = load_runs(evidence)
    assert list(frame.state) == ["finished"] * 4 and frame.accuracy_last.notna().all()
    where = ["--runs-dir", str(evidence)]
    rows = json.loads(capsule_sweeps("results", *where, "--format", "json").out)
    assert [(row["n"], row["mean"]) for row in rows] == [(2, pytest.approx(91.05)), (2, pytest.approx(92.05))]
    assert capsule_sweeps("status", *where).out.count("finished") >= 4
    shown = capsule_sweeps("show", frame.run[0], *where).out
    assert "Test accuracy by epoch" in shown and "Nearest relatives" in shown
    assert capsule_sweeps("report", *where, "--out", "page.html").code == 0
    assert {path: path.read_bytes() for path in evidence.rglob("*") if path.is_file()} == before


def test_the_evidence_of_this_repository_is_readable() -> None:
    for folder in sorted((ROOT / "analysis" / "evidence").glob("*/runs")):
        frame = load_runs(folder)
        assert len(frame) and set(frame.state) == {"finished"}, folder
        for run in folder.iterdir():
            assert {path.name for path in run.iterdir()} <= set(SMALL), run
