"""Run folders of others: what is wrong in one of them costs a line, and no command."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from synthetic import finished_run

from capsule_sweeps import load_runs
from capsule_sweeps.runs.files import MAX_BYTES, last_lines, read_file
from capsule_sweeps.runs.metrics import read_metrics
from capsule_sweeps.runs.record import RECORD, read_record, read_typed
from capsule_sweeps.runs.run import Run

FOLDERS = 8
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "flat" / "finished"


def write(path: Path, text: str | bytes) -> dict[str, Any]:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_record(path.parent)


def test_a_record_of_ours_is_read_whole() -> None:
    (folder,) = GOLDEN.iterdir()
    record = json.loads((folder / "run.json").read_text())
    record["signed_config"] = record.pop("science")  # its former name
    assert read_record(folder) == record
    assert set(record) - {"accuracy_last"} >= {"signed_config", "attempts", "normalization", "classes", "wandb_id"}


def test_a_record_of_before_signed_config_had_its_name_is_read_under_the_present_one(tmp_path) -> None:
    folder = tmp_path / "x-00000000"
    folder.mkdir()
    assert write(folder / "run.json", '{"science": {"seed": 3}}') == {"signed_config": {"seed": 3}}
    assert write(folder / "run.json", '{"science": {"seed": 3}, "signed_config": {"seed": 4}}')["signed_config"] == {
        "seed": 4
    }


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("epochs", 10**40, "is out of range"),
        ("num_routing", 1.5, "is not a whole number"),
        ("seed", True, "is not a whole number"),
        ("accuracy_last", 10**400, "is out of range"),
        ("accuracy_last", float("nan"), "is out of range"),
        ("epoch_best_test", "x", "is not a whole number"),
        ("ended", -1, "is out of range"),
        ("dataset", ["digits"], "is not text"),
        ("model", "x" * 10**6, "has more than 1,000 letters"),
        ("group", "\ud800", "is not Unicode text"),
        ("wandb_id", "x/../../../../victim", "is not an identifier"),
        ("signed_config", [], "is not an object"),
        ("signed_config", {"training.lr": {}}, "has 'training.lr', which is not a number"),
        ("attempts", [{"code": 5}], "has an entry that has 'code', which is not an object"),
        ("attempts", [{"started": float("nan")}], "has an entry that has 'started', which is out of range"),
        ("attempts", [{}] * 20_000, "has more than 1,000 entries"),
        ("execution", {"device": 5}, "has 'device', which is not text"),
        ("anything else", {"a": [10**400]}, "is out of range"),
    ],
)
def test_one_wrong_value_is_left_out_with_a_line(tmp_path, caplog, key, value, why) -> None:
    folder = tmp_path / "x-00000000"
    record = write(folder / "run.json", json.dumps({"state": "failed", key: value}))
    attempts = record.pop("attempts", [])
    assert record == {"state": "failed"} and all(one == {} for one in attempts), "of an attempt stays what is valid"
    assert caplog.messages == [f"x-00000000: damaged (run.json: {key!a} {why})"]
    read_record(folder)
    assert len(caplog.messages) == 1, "a command that reads a record twice says it once"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("[]", "it is not an object"),
        ("[" * 200_000, "recursion"),
        (b"\xff\xfe", "codec"),
        ("1" * 10_000, "digits"),
        (" " * (MAX_BYTES + 1), "larger than 16,777,216 bytes"),
    ],
)
def test_a_file_that_is_no_object_counts_as_absent(tmp_path, caplog, text, why) -> None:
    assert write(tmp_path / "x-00000000" / "run.json", text) == {}
    (line,) = caplog.messages
    assert line.startswith("x-00000000: damaged (run.json: ") and why in line and len(line) < 300


def test_null_is_no_value(tmp_path) -> None:
    folder = tmp_path / "x-00000000"
    assert write(folder / "run.json", '{"signed_config": null, "attempts": null, "error": null}') == {"error": None}
    assert read_typed(folder / "run.json", RECORD) == {}


@pytest.mark.parametrize("kind", ["link", "link to nothing", "pipe", "device", "folder"])
def test_only_regular_files_are_read(tmp_path, place, capsule_sweeps, kind) -> None:
    """No command waits for a pipe, fills the memory from a device, or shows what a link points to."""
    secret = tmp_path / "secret"
    secret.write_text('{"state": "failed", "error": "5ecre7", "test_accuracy": 0.5}')
    folder = finished_run(["dataset=digits", "seed=0"], 0.5, state="failed")
    for name in ("run.json", "error.txt", "log.txt", "metrics.jsonl", "queued.json", "attempt-1.json"):
        path = folder / name
        path.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            target = {"link": secret, "link to nothing": tmp_path / "nothing", "device": Path("/dev/zero")}[kind]
            path.symlink_to(target)
    finished_run(["dataset=digits", "seed=1"], 0.5)
    started = time.process_time()
    ended = [capsule_sweeps(*words) for words in (["status"], ["results"], ["show", folder.name], ["report"])]
    assert all(one.code == 0 and "5ecre7" not in one.text for one in ended), ended
    assert "5ecre7" not in Path("report.html").read_text()
    assert time.process_time() - started < 60
    with pytest.raises((ValueError, OSError)):
        read_file(folder / "run.json", 100)


def test_last_lines_of_a_large_file(tmp_path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("".join(f"line {number}\n" for number in range(100_000)))
    assert last_lines(path, 2) == ["line 99998", "line 99999"]
    assert last_lines(tmp_path / "nothing", 2) == []


@pytest.mark.parametrize("value", ["NaN", "2", "-0.1", "1e999", "1" * 500, "true", '"x"', "null", "[]"])
def test_rows_of_metrics_are_bounded(tmp_path, value) -> None:
    folder = tmp_path / "x-00000000"
    folder.mkdir()
    rows = ['{"epoch": 1, "test_accuracy": 0.5, "test_loss": NaN}', f'{{"epoch": 2, "test_accuracy": {value}}}']
    (folder / "metrics.jsonl").write_text("\n".join(rows))
    found, damage = read_metrics(Run(folder))
    assert len(found) == 1 and "damaged in line 2" in damage


def test_a_name_that_is_no_text_is_no_run_folder(place) -> None:
    finished_run(["dataset=digits", "seed=1"], 0.5)
    os.mkdir(b"runs/\xff-00000000")
    assert len(load_runs("runs")) == 1
