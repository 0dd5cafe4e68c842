"""A stored configuration was resolved before it was written: nothing in it is interpolated."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.stored import plain_config, read_config

SECRET = "5ecre7of the environment"


@pytest.mark.parametrize("key", ["name: digits", "data_dir: ", "project: "])
def test_the_environment_stays_at_home(trained, capsule_sweeps, runs, place, monkeypatch, key) -> None:
    monkeypatch.setenv("MY_SECRET", SECRET)
    trained(signal_at=(signal.SIGTERM, 8))
    path = runs.only() / "config.yaml"
    lines = path.read_text().splitlines()
    found = next(number for number, line in enumerate(lines) if line.strip().startswith(key))
    lines[found] = lines[found].partition(":")[0] + ": ${oc.env:MY_SECRET}"
    path.write_text("\n".join(lines))
    name = runs.only().name
    for words in (["retry", "--yes", name], ["evaluate", name], ["export", name, "--out", "model.pt2"]):
        ended = capsule_sweeps(*words)
        assert ended.code == 1 and "interpolation" in ended.err and SECRET not in ended.text, words
        assert "Traceback" not in ended.text
    assert not [path for path in place.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "a${b}", "${", "\\${x}"])
def test_no_stored_value_has_an_interpolation(tmp_path, value) -> None:
    (tmp_path / "config.yaml").write_text(f"seed: 0\nmodel:\n  name: '{value}'\n  layers: [1, {{a: '{value}'}}]\n")
    with pytest.raises(ValueError, match="is damaged"):
        read_config(tmp_path / "config.yaml")
    with pytest.raises(ValueError):
        plain_config({"model": [{"name": value}]})


def test_what_we_write_is_read(trained, runs) -> None:
    trained(signal_at=(signal.SIGTERM, 3))
    assert Run(runs.only()).config().dataset.name == "digits"
    assert Path(runs.only() / "config.yaml").read_text().count("${") == 0
