"""What differs between two runs."""

import csv
import io
import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from capsule_sweeps.cli import diff
from capsule_sweeps.runs.files import write_json
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signature import columns, signed_config


def make_run(config, losses=(2.0, 1.0), **changes: Any) -> Run:
    run = Run(Path(config.runs_dir) / columns(config)["run"])
    attempt = {"code": {"training.train": "00000001"}, "python": "3.11.7", "versions": {"torch": "2.6"}, "host": "here"}
    summary = {"accuracy_last": 0.5, "accuracy_best_test": None, "seconds": 3.0}
    record = {
        **columns(config),
        "signed_config": signed_config(config),
        "state": "finished",
        "attempts": [attempt],
        **summary,
    }
    with run.claim():
        write_json(run.folder / "run.json", {**record, **changes})
        write_json(run.folder / "summary.json", summary)
        rows = [
            {"epoch": n, "train_loss": loss, "test_accuracy": 0.1, "seconds": id(run)}
            for n, loss in enumerate(losses, 1)
        ]
        (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


@pytest.fixture
def two(tiny_config) -> list[str]:
    """Another loss function, seed, code, version of torch, accuracy, and losses from epoch 2 on."""
    attempt = {"code": {"training.train": "00000002"}, "python": "3.11.7", "versions": {"torch": "2.7"}, "host": "here"}
    other = make_run(
        tiny_config("seed=1", "training.loss=margin"), (2.0, 1.5, 1.0), attempts=[attempt], accuracy_last=0.25
    )
    return [make_run(tiny_config()).folder.name[-8:], other.folder.name[-8:]]


def test_what_differs_and_nothing_else(two, capsule_sweeps) -> None:
    rows = json.loads(capsule_sweeps("diff", *two, "--format", "json").out)
    found = {(row["what"], row["key"]): (row[two[0]], row[two[1]]) for row in rows}
    assert found == {
        ("configuration", "seed"): (0, 1),
        ("configuration", "training.loss"): ("cross_entropy", "margin"),  # a neutral value is not signed, but is shown
        ("code", "training.train"): ("00000001", "00000002"),
        ("versions", "torch"): ("2.6", "2.7"),
        ("numbers", "accuracy_last"): (0.5, 0.25),
        ("epochs", "train_loss of epoch 2"): (1.0, 1.5),
    }


@pytest.mark.parametrize("form", ["table", "md", "csv"])
def test_every_format(two, capsule_sweeps, form) -> None:
    ended = capsule_sweeps("diff", "--format", form, *two)
    assert ended.code == 0, ended.text
    if form == "csv":
        assert {"what", "key", *two} == set(csv.DictReader(io.StringIO(ended.out)).fieldnames or [])
    else:
        text = " ".join(ended.out.split())
        for words in ("50.00 %", "25.00 %", "margin", "Alike: machine, data", two[0], two[1]):
            assert words in text, words


def test_numbers_and_hashes_are_as_long_as_tells_them_apart() -> None:
    assert diff._texts("train_loss of epoch 1", 2.1433441, 2.1433362) == ["2.143344", "2.143336"]
    assert diff._texts("train_loss of epoch 1", 2.1433497837611606, 0.5) == ["2.1433", "0.5"]
    assert diff._texts("data_sha256", "a" * 64, "b" * 64) == ["a" * 12 + "…", "b" * 12 + "…"]
    assert diff._texts("data_sha256", "a" * 64, None) == ["a" * 64, None]


def test_one_run_in_two_folders(tiny_config, capsule_sweeps) -> None:
    """Two machines that made the same run: only what they measured can differ."""
    run = make_run(tiny_config())
    copytree("runs", "others")
    path = Path("others") / run.folder.name
    ended = capsule_sweeps("diff", str(run.folder), str(path), "--format", "csv")
    assert ended.code == 0 and ended.out == f"what,key,{run.folder},{path}\n", ended.text
    assert "Alike: configuration, code, versions" in capsule_sweeps("diff", str(run.folder), str(path)).out


def test_runs_that_have_not_started_and_damaged_records(tiny_config, capsule_sweeps) -> None:
    runs = [make_run(tiny_config(f"seed={seed}"), (), attempts=[]) for seed in (0, 1)]
    assert capsule_sweeps("diff", *[run.folder.name for run in runs]).code == 0
    for content in (b"", b"{}", b'{"attempts": [5]}', b'{"attempts": [{"versions": 3}]}', b'{"signed_config": 5}'):
        (runs[1].folder / "run.json").write_bytes(content)
        ended = capsule_sweeps("diff", *[run.folder.name for run in runs])
        assert ended.code == 0 or ("run.json" in ended.err and ended.err.count("\n") == 1), (content, ended.text)


@pytest.mark.parametrize(
    ("words", "said"),
    [(["ONE", "ONE"], "two different runs"), (["ONE", "none"], "none"), (["ONE", "seed=9"], "fits none")],
)
def test_errors_are_one_sentence(tiny_config, capsule_sweeps, words, said) -> None:
    name = make_run(tiny_config()).folder.name
    ended = capsule_sweeps("diff", *[name if word == "ONE" else word for word in words])
    assert ended.code == 1 and ended.err.startswith("Error: ") and said in ended.err and ended.err.count("\n") == 1
