"""One self-contained HTML page about runs: it loads nothing from elsewhere, and all text is escaped.

The page is report.html, a template of jinja2; this file computes its content.
"""

from __future__ import annotations

import io
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from capsule_sweeps.config.selection_rules import find_rule
from capsule_sweeps.display import terminal
from capsule_sweeps.results.columns import named, settings_frame
from capsule_sweeps.results.fairness import comparison_notes
from capsule_sweeps.results.render import cell_text, is_numeric
from capsule_sweeps.results.sections import by_sweep
from capsule_sweeps.results.tables import accuracy_table, finished_runs, for_people, notes
from capsule_sweeps.runs.files import last_lines, write_atomic
from capsule_sweeps.runs.metrics import read_metrics
from capsule_sweeps.runs.plan import Policy
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.sweep import read_sweeps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ERROR_LINES = 30


def write_report(runs_dir: Path, runs: pd.DataFrame, rule: str, out: Path) -> None:
    """Write the page about some rows of `load_runs`. Raises ValueError for an unknown rule."""
    from jinja2 import Environment, PackageLoader

    records = {name: Run(runs_dir / name).record() for name in runs.run}
    states = Counter(runs.state.mask(runs.stale, "stale"))
    loader = PackageLoader("capsule_sweeps.results", "")
    pages = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_shown)
    page = pages.get_template("report.html").render(
        name=runs_dir.name or str(runs_dir),
        counts=_counts(states),
        hours=_hours(sum(record.get("seconds") or 0.0 for record in records.values())),
        now=time.strftime("%Y-%m-%d %H:%M %Z"),
        rule=rule,
        sweeps=_sweeps(runs_dir, dict(zip(runs.run, runs.state.mask(runs.stale, "stale"), strict=True)), records),
        sections=[*_accuracy(runs_dir, runs, rule), *_published(runs_dir, runs), *_ablations(runs, rule)],
        runs=_runs(runs_dir, runs, records, rule),
    )
    write_atomic(out, page.encode())


def _shown(value: Any) -> Any:
    """What the template escapes, without control characters; figures are markup already."""
    return terminal(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _counts(words: Counter[str]) -> str:
    return ", ".join(f"{count} {word}" for word, count in words.items()) or "none"


def _sweeps(runs_dir: Path, states: dict[str, str], records: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The sweeps that contain these runs: their commands, and what the same command would do now."""
    known = {name[-8:]: (state, records[name]) for name, state in states.items()}
    sweeps = []
    for sweep in read_sweeps(runs_dir):
        if not known.keys() & set(sweep.signatures):
            continue
        found = [known.get(name, ("new", {})) for name in sweep.signatures]
        states_now = _counts(Counter(state for state, _ in found))
        actions = _counts(Counter(Policy().action(state, record.get("failure")) for state, record in found))
        shown = {"name": sweep.name, "command": sweep.command, "runs": len(sweep.signatures)}
        sweeps.append({**shown, "states": states_now, "actions": actions})
    return sweeps


def _runs(runs_dir: Path, runs: pd.DataFrame, records: dict[str, dict[str, Any]], rule: str) -> list[dict[str, Any]]:
    frame = settings_frame(runs)
    rows = []
    for index, run in runs.iterrows():
        record = records[run.run]
        metrics, _ = read_metrics(Run(runs_dir / run.run))
        rows.append(
            {
                "name": run.run,
                "state": "stale" if run.stale else run.state,
                "labels": "; ".join(filter(None, [run.tags, run.note])),
                "settings": f"{named(frame.loc[index])} seed={run.seed}",
                "epochs": f"{0 if run.epochs_done is pd.NA else run.epochs_done} of {cell_text(run.epochs)}",
                "accuracy": cell_text(100 * run[f"accuracy_{rule}"]),
                "curve": _curve([row["test_accuracy"] for row in metrics if "test_accuracy" in row]),
                "hours": _hours(record.get("seconds") or 0.0),
                "provenance": _provenance(record),
                "failed": run.state == "failed",
                "error": record.get("error") or "no error is recorded",
                "traceback": "\n".join(last_lines(runs_dir / run.run / "error.txt", ERROR_LINES)),
            }
        )
    return rows


def _hours(seconds: float) -> str:
    return "< 0.01" if 0 < seconds < 36 else f"{seconds / 3600:.2f}"


def _provenance(record: dict[str, Any]) -> str:
    """Code, machine and versions of the last attempt, and the number of attempts."""
    attempts = record.get("attempts") or [{}]
    last = attempts[-1]
    execution, versions = last.get("execution") or {}, last.get("versions") or {}
    changed = " (changed)" if last.get("dirty") else ""
    started = last.get("started")
    words = [
        f"commit {last['commit'][:8]}{changed}" if last.get("commit") else "",
        last.get("host"),
        last.get("gpu") if execution.get("device") == "cuda" else last.get("processor"),
        f"torch {versions['torch']}" if versions.get("torch") else "",
        f"job {last['job']}" if last.get("job") else "",
        time.strftime("%Y-%m-%d", time.localtime(started)) if started is not None else "",
        f"{len(attempts)} attempts" if len(attempts) > 1 else "",
    ]
    return ", ".join(word for word in words if word) or "–"


def _section(heading: str, frame: pd.DataFrame, note: str, **more: Any) -> dict[str, Any]:
    rows = [[cell_text(value) for value in row] for row in frame.itertuples(index=False)]
    numeric = [is_numeric(frame[column], [row[n] for row in rows]) for n, column in enumerate(frame.columns)]
    return {"heading": heading, "heads": list(frame.columns), "rows": rows, "numeric": numeric, "note": note, **more}


def _accuracy(runs_dir: Path, runs: pd.DataFrame, rule: str) -> Iterator[dict[str, Any]]:
    from capsule_sweeps.results.figures import accuracy_vs_num_routing

    parts = by_sweep(runs_dir, runs)
    for title, own in parts if len(parts) > 1 else [("", runs)]:
        table, caption = for_people(accuracy_table(own, rule), own)
        note = f"{notes(own, rule)} {comparison_notes(own, rule, accuracy_table(own, rule).columns)}".rstrip()
        note = f"{caption}.\n{note}" if caption else note
        name, _, command = title.partition(": ")
        heading = ": ".join(filter(None, ("Accuracy", name)))
        try:
            figure = accuracy_vs_num_routing(own, rule)
        except ValueError:
            note += "\nNo plot: no finished run has a num_routing and an accuracy under this rule."
            yield _section(heading, table, note, command=command)
            continue
        drawn = _figure(figure, f"{find_rule(rule).title} against num_routing {title}".strip())
        yield _section(heading, table, note, command=command, **drawn)


def _published(runs_dir: Path, runs: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The published tables that some of these runs belong to, each by its own rule."""
    from capsule_sweeps.results import published

    for name in published.table_names():
        cells = published.read_cells(name)
        if len(published.of_table(runs, cells)):
            table = published.published_table(runs, cells, runs_dir)
            note = published.published_notes(cells, runs, table)
            yield _section(f"Published numbers: {name}", table.drop(columns=published.NOTED), note)


def _ablations(runs: pd.DataFrame, rule: str) -> Iterator[dict[str, Any]]:
    """Table and forest plot of the ablations that are finished and have a finished base."""
    from capsule_sweeps.results.ablation import ablation_notes, ablation_table
    from capsule_sweeps.results.against_shown import shown_differences
    from capsule_sweeps.results.figures import forest_plot

    table = ablation_table(runs, rule)
    if len(table):
        drawn = _figure(forest_plot(table), "Difference of each ablation to its base, with 95 % intervals")
        shown, caption = shown_differences(table, finished_runs(runs, rule))
        note = ablation_notes(table, runs, rule)
        yield _section("Ablations", shown, f"{caption}.\n{note}" if caption else note, **drawn)


def _figure(figure: Figure, label: str) -> dict[str, Any]:
    """A figure as SVG markup; `label` describes it for screen readers."""
    import matplotlib
    from markupsafe import Markup

    from capsule_sweeps.results.figures import STYLE as FIGURE_STYLE

    image = io.StringIO()
    with matplotlib.rc_context({**FIGURE_STYLE, "svg.hashsalt": label}):
        figure.savefig(image, format="svg", metadata={"Date": None})
    svg = image.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    own = re.sub(r"\W", "-", label)  # ids must be unique on the page
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{own}-", svg)
    return {"figure": Markup(svg), "label": label}


def _curve(values: Sequence[float]) -> dict[str, str] | None:
    """The points of a polyline in a box of 100 by 20, and its description for screen readers."""
    if len(values) < 2:
        return None
    low, span = min(values), (max(values) - min(values)) or 1.0
    step = max(1, len(values) // 200)
    points = [(100 * i / (len(values) - 1), 20 * (1 - (values[i] - low) / span)) for i in range(0, len(values), step)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return {"points": path, "label": f"{min(values):.1%} to {max(values):.1%}"}
