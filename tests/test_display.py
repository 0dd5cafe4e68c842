"""Terminals that are not UTF-8, and systems that are neither Linux nor macOS."""

from __future__ import annotations

import io
import sys

import pytest

from capsule_sweeps.display import plain, write_any_text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_table_is_written_in_any_encoding(encoding, monkeypatch) -> None:
    import pandas as pd

    from capsule_sweeps.results.render import render

    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    write_any_text()
    print(render(pd.DataFrame([{"name": "José ± 1…", "mean": 1.5}]), "table", title="Results → √2", note="3 × 2 – 日"))
    stream.flush()
    text = stream.buffer.getvalue().decode(encoding)
    assert "1.5" in text and "Results" in text
    assert ("┃" in text) == (encoding == "utf-8") and ("José" in text) == (encoding != "ascii")


def test_letters_that_have_relatives() -> None:
    assert plain("┏━┳┓│┃─…×–→±é日ﬁ") == "+-++||-...x-->+-e?fi"


def test_launch_with_another_encoding(python, tiny) -> None:
    """The plan of a run whose folder has letters that the terminal does not know."""
    from conftest import ROOT

    words = [*tiny, "runs_dir='José…日'", "hydra.launcher.dry_run=true"]
    ended = python(ROOT / "launch.py", *words, PYTHONIOENCODING="ascii")
    assert ended.code == 0 and "1 run: 1 to run" in ended.out and "Jose...?" in ended.out, ended.text


def test_other_systems_get_one_sentence(python) -> None:
    program = "import os, signal; del signal.SIGUSR2, os.EX_TEMPFAIL; import capsule_sweeps"
    ended = python("-c", program)
    assert ended.code == 1 and ended.err.startswith("Error: capsule_sweeps runs on Linux and macOS")
    assert ended.err.count("\n") == 1
