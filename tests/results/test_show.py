"""One run from near: `show` and `why`."""

import json
import re
import signal
from pathlib import Path

import pytest

from capsule_sweeps.console import console
from capsule_sweeps.results.show import sparkline
from capsule_sweeps.runs.files import write_json
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signature import columns, signed_config


def make_run(config, **changes) -> Run:
    run = Run(Path(config.runs_dir) / columns(config)["run"])
    with run.claim():
        write_json(
            run.folder / "run.json",
            {**columns(config), "signed_config": signed_config(config), "attempts": [], **changes},
        )
    return run


def test_show_has_everything_that_is_known(launch, capsule_sweeps, runs) -> None:
    """Config, provenance, curve, log, and the error of one that failed."""
    launch("training.epochs=3", signal_at=(signal.SIGTERM, 7))
    assert launch("training.epochs=3").code == 0
    folder = runs.only()
    ended = capsule_sweeps("show", folder.name[-8:])
    assert ended.code == 0
    accuracies = [row["test_accuracy"] for row in runs.metrics(folder)]
    attempt = runs.record(folder)["attempts"][1]
    words = [folder.name, "finished", "training.lr", "model.backbone.channels", "Attempt 1", "Attempt 2"]
    words += [sparkline(accuracies), f"{max(accuracies):.1%}", attempt["host"], attempt["versions"]["torch"]]
    words.append(f"{100 * runs.record(folder)['accuracy_last']:.2f} %")
    assert str(runs.record(folder)["accuracy_last"]) not in ended.out
    assert str(runs.record(folder)["accuracy_last"]) in capsule_sweeps("show", folder.name, "--format", "csv").out
    assert re.search(rf"seconds +[│|] +{runs.record(folder)['seconds']:.1f} ", ended.out)
    words += ["commit", "dirty", "threads", "log.txt", (folder / "log.txt").read_text().splitlines()[-1]]
    for word in words:
        assert str(word) in ended.out, word


def test_show_of_a_failed_run_has_the_error(trained, capsule_sweeps, runs) -> None:
    trained("training.lr=1e30")
    ended = capsule_sweeps("show", runs.only().name)
    assert "FloatingPointError" in ended.out and "error.txt" in ended.out and "failed" in ended.out


def test_show_as_json_is_one_object(trained, capsule_sweeps, runs) -> None:
    assert trained().code == 0
    folder = runs.only()
    shown = json.loads(capsule_sweeps("show", folder.name, "--format", "json").out)
    record = runs.record(folder)
    assert shown["signed_config"] == record["signed_config"] and shown["attempts"] == record["attempts"]
    assert shown["metrics"] == runs.metrics(folder)
    assert shown["state"] == "finished" and shown["accuracy_last"] == record["accuracy_last"]


@pytest.mark.parametrize("form", ["table", "md", "csv", "json"])
def test_every_format(tiny_config, capsule_sweeps, form) -> None:
    run = make_run(tiny_config(), state="failed")
    make_run(tiny_config("seed=1"), state="failed")
    for command in ("show", "why"):
        ended = capsule_sweeps(command, run.folder.name, "--format", form)
        assert ended.code == 0 and "training.lr" in ended.out


@pytest.mark.parametrize(
    ("values", "line"),
    [([0, 1], "▁█"), ([5], "▁"), ([2, 2, 2], "▁▁▁"), ([1, 0.5, 0], "█▅▁"), (list(range(8)), "▁▂▃▄▅▆▇█")],
)
def test_sparkline(values, line) -> None:
    assert sparkline(values) == line


def test_sparkline_of_many_epochs_has_a_width() -> None:
    assert 40 < len(sparkline([float(n) for n in range(350)])) <= 80


def test_why_names_the_fields_and_the_nearest_relatives_first(tiny_config, capsule_sweeps, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(console(), "_width", 80)
    run = make_run(tiny_config())
    far = make_run(tiny_config("seed=1", "training.lr=0.0125", "num_routing=2"))
    near = make_run(tiny_config("seed=1"))
    ended = capsule_sweeps("why", run.folder.name, "--format", "json")
    why = json.loads(ended.out)
    assert why["signed_config"] == {**signed_config(tiny_config())}
    relatives = why["relatives"]
    assert relatives[0]["relative"] == near.folder.name
    assert [
        (entry["key"], entry["here"], entry["there"]) for entry in relatives if entry["relative"] == near.folder.name
    ] == [("seed", 0, 1)]
    assert {entry["key"] for entry in relatives if entry["relative"] == far.folder.name} == {
        "seed",
        "training.lr",
        "model.num_routing",
    }
    table = capsule_sweeps("why", run.folder.name).out.partition("Nearest relatives")[2]
    assert "…" not in table, "two values, or two names, could be shortened to the same"
    assert "0.0125 │" in table and not re.search(r"[01]\.00", table)  # settings are never rounded


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"{}",
        b'{"attempts": [{"started": "x", "versions": 3}]}',
        b'{"signed_config": "x", "state": 7}',
        b'{"seconds": {}, "epochs_done": -1, "parameters": "a", "data_sha256": 5}',
    ],
)
def test_garbled_record_breaks_no_command(tiny_config, capsule_sweeps, content, capfd) -> None:
    run = make_run(tiny_config())
    make_run(tiny_config("seed=1"), state="failed")
    (run.folder / "run.json").write_bytes(content)
    for command in (["status"], ["results"], ["show", run.folder.name], ["why", run.folder.name], ["gc"]):
        ended = capsule_sweeps(*command)
        assert ended.code in (0, 1), command
        assert ended.code == 0 or "run.json" in ended.err, command


@pytest.mark.parametrize("line", [b"{", b"", b"[]", b"\xff", b'{"test_accuracy": "x"}'])
def test_damaged_metrics_are_reported(tiny_config, capsule_sweeps, line) -> None:
    run = make_run(tiny_config())
    good = json.dumps({"epoch": 1, "test_accuracy": 0.25}).encode()
    (run.folder / "metrics.jsonl").write_bytes(good + b"\n" + line + b"\n" + good + b"\n")
    ended = capsule_sweeps("show", run.folder.name)
    assert ended.code == 0 and "metrics.jsonl is damaged in line 2" in " ".join(ended.out.split())
