"""Names, notes, errors and commands with escape sequences and markup, through every medium and every command that shows
them."""

from __future__ import annotations

import csv as files
import io
import json
import logging
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from capsule_sweeps import display, load_runs
from capsule_sweeps.console import ConsoleHandler
from capsule_sweeps.results.render import MANY, render

ESCAPE = "\x1b]0;HACKED\x07\x1b[31m"  # sets the title of a window, and writes red
HOSTILE = f"{ESCAPE}[/b]$\\badmath{{$<img src=x onerror=alert(1)>|a_b%&\\input{{x}}\u202e\x9b2J\r\n=1+1"
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.mark.parametrize(
    ("medium", "text", "shown"),
    [
        (display.terminal, f"{ESCAPE}a\tb\x9bc\u202e\nd", "]0;HACKED[31ma bc\nd"),
        (display.line, "a\r\nb\vc", "a b c"),
        (display.mathtext, "$\\badmath{$\x1b", "\\$\\badmath{\\$"),
        (display.latex, "\\input{x}%a\n[b", r"\textbackslash{}input\{x\}\%a {[}b"),
        (display.latex, "50% & $5 #1 a_b ^ ~", r"50\% \& \$5 \#1 a\_b \textasciicircum{} \textasciitilde{}"),
        (display.markdown, "a|b\\\n![x](y)<b>$c`", r"a\|b\\ !\[x\](y)&lt;b&gt;\$c\`"),
        (display.html, "<b title='\"'>\x1b&", "&lt;b title=&#x27;&quot;&#x27;&gt;&amp;"),
        (display.csv, "=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        (display.csv, "\t@SUM(1)", "' @SUM(1)"),
        (display.csv, "-0.5", "-0.5"),
        (display.csv, "-1+1\n2", "'-1+1 2"),
        (display.csv, "a=b", "a=b"),
    ],
)
def test_each_medium_has_one_function(medium, text, shown) -> None:
    assert medium(text) == shown


def test_rich_reads_no_markup() -> None:
    assert display.rich("[bold]a[/bold]\x1b[1m").plain == "[bold]a[/bold][1m"


@pytest.fixture
def hostile_runs(make_run) -> Path:
    """Two runs whose data set, classes, note, error, log, versions and sweep are HOSTILE, and a folder of that name."""
    folders = [make_run(seed) for seed in (0, 1)] + [make_run(2, "failed")]
    for folder in folders:
        for name in ("run.json", "summary.json"):
            if (path := folder / name).exists():
                stored = json.loads(path.read_text()) | {"dataset": HOSTILE, "model": HOSTILE, "backbone": HOSTILE}
                stored |= {"classes": [HOSTILE, "b"], "error": HOSTILE, "failure": HOSTILE, "not_learned": HOSTILE}
                attempt = {"host": HOSTILE, "versions": {HOSTILE: HOSTILE}, "python": HOSTILE, "gpu": HOSTILE}
                path.write_text(json.dumps({**stored, "attempts": [attempt | {"commit": HOSTILE}]}))
        (folder / "log.txt").write_text(f"{HOSTILE}\n")
        (folder / "error.txt").write_text(f"{HOSTILE}\n")
        (folder / "labels.json").write_text(json.dumps({"tags": ["good"], "note": HOSTILE}))
    runs_dir = folders[0].parent
    (runs_dir / ".sweeps").mkdir()
    sweep = {"command": ["launch.py", HOSTILE], "signatures": [folders[0].name[-8:]], "started": 1e9}
    (runs_dir / ".sweeps" / "sweep-0123abcd.json").write_text(json.dumps(sweep))
    (runs_dir / f"{ESCAPE.replace('/', '')}x-0123abcd").mkdir()
    return folders[0]


COMMANDS = [
    *(["status", "--format", form] for form in ("table", "md", "csv", "json")),
    *(["results", "--format", form] for form in ("table", "md", "csv", "json", "tex")),
    *(["show", "RUN", "--format", form] for form in ("table", "md", "csv", "json")),
    ["why", "RUN"],
    ["results", "--by", "note,seed"],
    ["results", "--against", f"dataset={HOSTILE}"],
    ["diff", "RUN", "OTHER"],
    ["note", "RUN", HOSTILE],
    ["tag", "RUN", "+good"],
    ["show", HOSTILE],
    ["status", f"state={HOSTILE}"],
    ["status", "--runs-dir", HOSTILE],
    ["gc"],
    ["cancel"],
    ["evaluate", "RUN"],
    ["retry", "RUN"],
    ["export", "RUN"],
    ["sync"],
    ["report", "--out", "report.html"],
    ["bundle", "--out", f"{ESCAPE.replace('/', '')}.tar.gz"],
    ["merge", HOSTILE],
]


@pytest.mark.slow
def test_no_command_prints_a_control_character(hostile_runs, capsule_sweeps, runs) -> None:
    other = next(path.name for path in runs.folders() if path != hostile_runs and (path / "summary.json").exists())
    names = {"RUN": hostile_runs.name, "OTHER": other}
    for command in COMMANDS:
        ended = capsule_sweeps(*[names.get(word, word) for word in command])
        assert not CONTROL.search(ended.text), (command, CONTROL.search(ended.text))
        assert "Traceback" not in ended.text and "MarkupError" not in ended.text, (command, ended.text)
        form = command[-1]
        if command[0] == "results" and form == "csv":
            cells = [cell for row in files.reader(io.StringIO(ended.out)) for cell in row]
            assert any("HACKED" in cell for cell in cells) and not any(cell.startswith(("=", "@")) for cell in cells)
        if form == "md":
            shown = re.sub(r"^    .*$", "", ended.out, flags=re.MULTILINE)  # without blocks of code
            assert "<img" not in shown and not re.search(r"(?<!\\)\$", shown), command
        if form == "tex":
            rows = [row for row in ended.out.splitlines() if not row.startswith("%")]
            assert rows and not re.search(r"\\(input|badmath)|(?<!\\)%", "\n".join(rows))
    page = Path("report.html").read_text()
    assert "HACKED" in page and "<img" not in page and not CONTROL.search(page)


def test_long_tables_are_escaped() -> None:
    """More than 1,000 rows are printed without borders, by another way."""
    frame = pd.DataFrame({HOSTILE: [HOSTILE] * (MANY + 1)})
    text = render(frame, "table", title=HOSTILE, note=HOSTILE)
    assert not CONTROL.search(text) and len(text.splitlines()) < MANY + 10


def test_log_lines_are_without_control_characters(capsys, tmp_path) -> None:
    record = logging.LogRecord("a", logging.INFO, "", 1, "%s: from epoch 1", (HOSTILE,), None)
    ConsoleHandler().emit(record)
    assert "HACKED" in (said := capsys.readouterr().out) and not CONTROL.search(said)
    assert not CONTROL.search(display.Formatter("%(asctime)s %(message)s").format(record))


def test_figures_take_any_name(hostile_runs, tmp_path) -> None:
    from capsule_sweeps.evaluation import figures as evaluated
    from capsule_sweeps.results import figures

    frame = load_runs("runs")
    metrics = pd.DataFrame({"epoch": [1], "lr": [0.1], "images_per_second": [1.0]}).assign(
        **dict.fromkeys(("train_loss", "test_loss", "train_accuracy", "test_accuracy"), 0.5)
    )
    curves = pd.DataFrame({HOSTILE: [1.0, 2.0], "accuracy": [1.0, 2.0], "a": [HOSTILE] * 2})
    curves = curves.assign(seed=0, first_seeds=None)
    table = pd.DataFrame(
        {"base": [HOSTILE], HOSTILE: [HOSTILE], "n": [2], "difference": [1.0], "half_width": [1.0]}
    ).assign(paired=True, rule="last")
    for figure in (
        figures.accuracy_vs_num_routing(frame),
        figures.forest_plot(table),
        evaluated.confusion_figure({HOSTILE: np.eye(2)}, [HOSTILE, "b"]),
        figures.training_curves({HOSTILE: metrics}),
        evaluated.accuracy_curves(curves, HOSTILE, ["a"]),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # letters that the font does not have
            figure.savefig(tmp_path / "figure.svg")  # as a notebook draws it, with its own settings
