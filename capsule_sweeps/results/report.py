"""One HTML page about runs that can be sent: nothing in it is loaded from elsewhere, and all text is escaped."""

from __future__ import annotations

import io
import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from capsule_sweeps.results.render import cell_text
from capsule_sweeps.results.tables import accuracy_table, notes
from capsule_sweeps.runs.files import read_json, write_atomic
from capsule_sweeps.runs.metrics import read_metrics
from capsule_sweeps.runs.plan import Policy
from capsule_sweeps.runs.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


ERROR_LINES = 30
STYLE = """
:root { color-scheme: light; --line: #d9d9d9; --dim: #595959 }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 75rem; margin: 0 auto;
  padding: 1rem; overflow-wrap: break-word }
h1, h2, h3 { line-height: 1.2; break-after: avoid }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line) }
p.note { color: var(--dim); font-size: .9rem }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; vertical-align: top; padding: .3rem .5rem; border-bottom: 1px solid var(--line) }
thead { display: table-header-group }
tr, figure { break-inside: avoid }
figure { margin: 1rem 0 }
figure > svg { width: min(100%, 36rem); height: auto }
code, td[data-label="run"], td[data-label="differs by"], td[data-label="provenance"] { overflow-wrap: anywhere }
code, pre { font-family: ui-monospace, monospace; font-size: .8rem; white-space: pre-wrap }
pre { background: #f5f5f5; padding: .75rem; border-left: 3px solid #d55e00 }
.finished { color: #00664b } .failed, .stale { color: #a34700 } .running { color: #005a8c }
.spark { width: 7rem; height: 1.5rem; overflow: visible; fill: none; stroke: #0072b2; stroke-width: 1.5 }
@media screen and (max-width: 45rem) {
  table, tbody, tr, td { display: block; width: 100% }
  thead { display: none }
  tr { border: 1px solid var(--line); border-radius: .4rem; margin: .6rem 0; padding: .3rem }
  td { border: 0; padding: .1rem .4rem }
  td::before { content: attr(data-label) ": "; color: var(--dim) }
}
@page { margin: 12mm }
@media print {
  body { font-size: 10pt; max-width: none; padding: 0 }
  table, p.note { font-size: 7.5pt } code, pre { font-size: 7pt } figure > svg { width: 22rem }
}
"""


class Html(str):
    """Text that is markup already."""


def write_report(runs_dir: Path, runs: pd.DataFrame, rule: str, out: Path) -> None:
    """Write the page about some rows of `load_runs`. Raises ValueError for a rule that there is not."""
    now = time.strftime("%Y-%m-%d %H:%M %Z")
    records = {name: Run(runs_dir / name).record() for name in runs.run}
    seconds = sum(float(record.get("seconds") or 0) for record in records.values())
    states = Counter(runs.state.mask(runs.stale, "stale"))
    counts = ", ".join(f"{count} {state}" for state, count in states.items()) or "none"
    parts = [
        f"<h1>Runs in {escape(runs_dir.name or str(runs_dir))}</h1>",
        f"<p>{len(runs)} runs: {counts}. {_hours(seconds)} hours of training and evaluation. Made {escape(now)}.</p>",
        "<h2>Plan</h2>",
        *_plan(runs_dir, runs),
        "<h2>Accuracy</h2>",
        _frame(accuracy_table(runs, rule)),
        f'<p class="note">{escape(notes(runs, rule))}</p>',
        _figure(runs, rule),
        *_published(runs_dir, runs),
        *_ablations(runs, rule),
        "<h2>Runs</h2>",
        _runs(runs_dir, runs, records, rule),
        '<p class="note">Differs by: signed settings that are not the same in all these runs. Cost: hours of its '
        "epochs, evaluation included. Curve: test accuracy by epoch.</p>",
        *_failures(runs_dir, runs, records),
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    title = f"<title>Runs in {escape(runs_dir.name or str(runs_dir))}</title><style>{STYLE}</style>"
    body = "\n".join(parts)
    page = f'<!doctype html>\n<html lang="en"><head>{head}{title}</head>\n<body>\n{body}\n</body></html>\n'
    write_atomic(out, page.encode())


def _plan(runs_dir: Path, runs: pd.DataFrame) -> Iterable[str]:
    """The sweeps that asked for these runs: their commands, and what the same command would do now."""
    known = {run[-8:]: (state, Run(runs_dir / run).record()) for run, state in zip(runs.run, runs.state, strict=True)}
    rows = []
    for path in sorted((runs_dir / ".sweeps").glob("sweep-*.json")):
        sweep = read_json(path)
        asked = [name for name in sweep.get("signatures", []) if isinstance(name, str)]
        if not known.keys() & set(asked):
            continue
        found = [known.get(name, ("new", {})) for name in asked]
        states = Counter(state for state, _ in found)
        actions = Counter(Policy().action(state, record.get("failure")) for state, record in found)
        command = sweep.get("command", [])
        words = " ".join([Path(str(command[0])).name, *map(str, command[1:])]) if command else ""
        told = [", ".join(f"{count} {word}" for word, count in counts.items()) for counts in (states, actions)]
        rows.append([path.stem, Html(f"<code>{escape(words)}</code>"), str(len(asked)), *told])
    if not rows:
        return ["<p>No sweep that asked for these runs is recorded.</p>"]
    return [_table(["sweep", "command", "runs", "states", "the same command would now"], rows)]


def _runs(runs_dir: Path, runs: pd.DataFrame, records: dict[str, dict[str, Any]], rule: str) -> str:
    keys = sorted({key for science in runs.science for key in science})
    keys = [key for key in keys if len({json.dumps(science.get(key)) for science in runs.science}) > 1]
    rows = []
    for _, run in runs.iterrows():
        record = records[run.run]
        state = "stale" if run.stale else run.state
        done = run.epochs_done if run.epochs_done is not pd.NA else 0
        metrics, _ = read_metrics(Run(runs_dir / run.run))
        rows.append(
            [
                run.run,
                Html(f'<span class="{state}">{state}</span>'),
                " ".join(f"{key}={json.dumps(run.science.get(key))}" for key in keys) or "–",
                f"{done} of {cell_text(run.epochs)}",
                cell_text(100 * run[f"accuracy_{rule}"]),
                _spark([row["test_accuracy"] for row in metrics]),
                _hours(float(record.get("seconds") or 0)),
                _provenance(record),
            ]
        )
    heads = ["run", "state", "differs by", "epochs", f"accuracy in %, {rule}", "curve", "cost in hours", "provenance"]
    return _table(heads, rows)


def _hours(seconds: float) -> str:
    return "< 0.01" if 0 < seconds < 36 else f"{seconds / 3600:.2f}"


def _provenance(record: dict[str, Any]) -> str:
    """Code, machine and versions of the last attempt, and how many there were."""
    attempts = record.get("attempts") or [{}]
    last = attempts[-1]
    execution, versions = last.get("execution") or {}, last.get("versions") or {}
    commit = (
        f"commit {str(last['commit'])[:8]}{' (changed)' if last.get('dirty') else ''}" if last.get("commit") else ""
    )
    started = last.get("started")
    words = [
        commit,
        str(last.get("host") or ""),
        str((last.get("gpu") if execution.get("device") == "cuda" else last.get("processor")) or ""),
        f"torch {versions['torch']}" if versions.get("torch") else "",
        f"job {last['job']}" if last.get("job") else "",
        time.strftime("%Y-%m-%d", time.localtime(started)) if isinstance(started, int | float) else "",
        f"{len(attempts)} attempts" if len(attempts) > 1 else "",
    ]
    return ", ".join(word for word in words if word) or "–"


def _failures(runs_dir: Path, runs: pd.DataFrame, records: dict[str, dict[str, Any]]) -> Iterable[str]:
    """A heading and each failed run with its error and the end of its traceback."""
    failed = list(runs.run[runs.state == "failed"])
    yield "<h2>Failed runs</h2>" if failed else "<h2>Failed runs</h2><p>None.</p>"
    for name in failed:
        yield f"<h3>{escape(name)}</h3><p>{escape(str(records[name].get('error') or 'no error is recorded'))}</p>"
        path = runs_dir / name / "error.txt"
        if path.is_file():
            lines = path.read_text(errors="replace").splitlines()[-ERROR_LINES:]
            yield f"<pre>{escape(chr(10).join(lines))}</pre>"


def _published(runs_dir: Path, runs: pd.DataFrame) -> Iterable[str]:
    """The published tables that some of these runs belong to, each by its own rule."""
    from capsule_sweeps.results.published import (
        NOTED,
        of_table,
        published_notes,
        published_table,
        read_cells,
        table_names,
    )

    for name in table_names():
        cells = read_cells(name)
        if len(of_table(runs, cells)):
            table = published_table(runs, cells, runs_dir)
            yield f"<h2>Published numbers: {escape(name)}</h2>"
            yield _frame(table.drop(columns=NOTED))
            yield f'<p class="note">{"<br/>".join(map(escape, published_notes(cells, runs, table).splitlines()))}</p>'


def _ablations(runs: pd.DataFrame, rule: str) -> Iterable[str]:
    """Table and forest plot of the ablations that are finished beside their base."""
    from capsule_sweeps.results.ablation import ablation_notes, ablation_table
    from capsule_sweeps.results.figures import forest_plot

    table = ablation_table(runs, rule)
    if len(table):
        yield "<h2>Ablations</h2>"
        yield _frame(table)
        yield f'<p class="note">{escape(ablation_notes(table, runs, rule))}</p>'
        yield _svg(forest_plot(table), "Difference of each ablation to its base, with 95 % intervals")


def _figure(runs: pd.DataFrame, rule: str) -> str:
    from capsule_sweeps.results.figures import accuracy_vs_num_routing

    try:
        figure = accuracy_vs_num_routing(runs, rule)
    except ValueError:
        return '<p class="note">No plot: no finished run has a num_routing and an accuracy under this rule.</p>'
    return _svg(figure, "Test accuracy against num_routing")


def _svg(figure: Figure, label: str) -> str:
    """A figure as markup; `label` says to those who do not see it what it shows."""
    import matplotlib

    from capsule_sweeps.results.figures import STYLE as FIGURE_STYLE

    image = io.StringIO()
    with matplotlib.rc_context({**FIGURE_STYLE, "svg.hashsalt": label}):
        figure.savefig(image, format="svg", metadata={"Date": None})
    svg = image.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    own = re.sub(r"\W", "-", label)  # two figures of a page must not share names
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{own}-", svg)
    return f'<figure role="img" aria-label="{escape(label)}">{svg}</figure>'


def _spark(values: Sequence[float]) -> Html:
    if len(values) < 2:
        return Html("–")
    low, span = min(values), (max(values) - min(values)) or 1.0
    step = max(1, len(values) // 200)
    points = [(100 * i / (len(values) - 1), 20 * (1 - (values[i] - low) / span)) for i in range(0, len(values), step)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    label = f"{min(values):.1%} to {max(values):.1%}"
    return Html(
        f'<svg class="spark" viewBox="0 0 100 20" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f'<title>{label}</title><polyline points="{path}" vector-effect="non-scaling-stroke"/></svg>'
    )


def _frame(frame: pd.DataFrame) -> str:
    return _table(list(frame.columns), [[cell_text(value) for value in row] for row in frame.itertuples(index=False)])


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = ""
    for row in rows:
        cells = [cell if isinstance(cell, Html) else escape(cell) for cell in row]
        body += "<tr>"
        body += "".join(f'<td data-label="{escape(n)}">{cell}</td>' for n, cell in zip(heads, cells, strict=True))
        body += "</tr>\n"
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>"
