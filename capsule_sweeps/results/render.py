"""A table as text: for a terminal (see fitted.py), Markdown, LaTeX, CSV or JSON."""

import re
from typing import Any

import pandas as pd

from capsule_sweeps.console import console
from capsule_sweeps.display import csv, latex, line, markdown, rich, terminal
from capsule_sweeps.results.fitted import Best, bordered

MANY = 1000  # rows
DIGITS = 10  # significant digits of a number in CSV: 14.0, not 14.000000000000002


def render(
    frame: pd.DataFrame, form: str, title: str = "", note: str = "", caption: str = "", one_line: bool = False
) -> str:
    """A frame as text: `table` (for a terminal), `md`, `tex` (booktabs), `csv` or `json` (a list of objects).

    With `one_line` no cell wraps in a table for a terminal.
    """
    if form == "json":
        return frame.to_json(orient="records", indent=1, default_handler=str)
    if form == "csv":
        plain = frame.map(_csv)
        return plain.set_axis(list(map(csv, frame.columns)), axis=1).to_csv(index=False).rstrip("\n")
    cells = [[cell_text(value) for value in row] for row in frame.itertuples(index=False)]
    if form == "md":
        lines = ["| " + " | ".join(map(_md, frame.columns)) + " |", "|" + "---|" * len(frame.columns)]
        lines += ["| " + " | ".join(map(_md, row)) + " |" for row in cells]
        lines += ["", markdown(_sentence(caption))] if caption else []
        return "\n".join([*lines, *(["", *map(markdown, note.splitlines())] if note else [])])
    if form == "tex":
        said, commands = _commands(note)
        caption = " ".join(filter(None, (_sentence(title), _sentence(caption), said)))
        return "\n".join([*(f"% {line(words)}" for words in commands), _tex(frame, cells, caption, title)])
    assert form == "table", form
    numeric = [is_numeric(frame[column], [row[n] for row in cells]) for n, column in enumerate(frame.columns)]
    title = "\n".join(filter(None, (title, caption)))
    if len(frame) > MANY:  # a table with borders would take seconds
        texts = [[line(cell) for cell in row] for row in cells]
        shown = pd.DataFrame(texts, columns=list(map(line, frame.columns))).to_string(index=False)
        return "\n".join(part for part in (terminal(title), shown, terminal(note)) if part)
    text, left_out = bordered(list(map(str, frame.columns)), cells, numeric, one_line)
    if left_out:
        for head in left_out:  # the sentence on what the column means
            note = re.sub(rf"(?<=\.) {re.escape(head)}: [^.]*\.", "", note)
        hidden = f"Not shown for lack of space: {', '.join(left_out)} (--wide)."
        after_command = note.rpartition("\n")[2].startswith("    ")
        note = "\n".join((note, hidden)) if after_command else " ".join(filter(None, (_sentence(note), hidden)))
    with console().capture() as capture:
        if title:
            console().print(rich(title), style="italic", highlight=False)
        console().print(text, crop=False)
        _print_note(note)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())


def _commands(note: str) -> tuple[str, list[str]]:
    """A note up to the line before its first command, and the lines from there."""
    lines = note.splitlines()
    first = next((n for n, text in enumerate(lines) if text.startswith("    ")), len(lines) + 1)
    return "\n".join(lines[: max(0, first - 1)]), lines[max(0, first - 1) :]


def paragraph(text: str) -> str:
    """Text whose lines are no longer than the console's, broken between words; commands are not broken."""
    with console().capture() as capture:
        _print_note(text)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())


def _print_note(text: str) -> None:
    """Prints lines broken between words; indented lines are commands, which stay whole so that they can be copied."""
    for words in terminal(text).splitlines():
        console().print(words, markup=False, highlight=False, soft_wrap=words.startswith("    "))


def is_numeric(column: pd.Series, cells: list[str]) -> bool:
    """Whether a column has numbers, or texts that start with a number, such as 37,521 and 84.0 ± 3.7, or –."""
    number = re.compile(r"[-−+]?\d[\d,.]*( ±| \(n=|†?$)|–$")
    return pd.api.types.is_numeric_dtype(column) or all(map(number.match, cells))


def _csv(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    return csv(value) if isinstance(value, str) else value


def _md(cell: str) -> str:
    return f"**{markdown(cell)}**" if isinstance(cell, Best) else markdown(cell)


def _sentence(text: str) -> str:
    return text if not text or text.endswith(".") else f"{text}."


def cell_text(value: Any) -> str:
    """A value as shown in a table: – for a missing one, two decimals, or one significant digit for small numbers."""
    if value is None or value is pd.NA or (isinstance(value, float) and pd.isna(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.2f}" if value == 0 or abs(value) >= 0.005 else f"{value:.1g}"  # never 0.00 for small numbers
    return value if isinstance(value, str) else str(value)  # Best and Parts stay what they are


def _tex(frame: pd.DataFrame, cells: list[list[str]], caption: str, title: str) -> str:
    """A LaTeX table with booktabs: numbers aligned to the right, best cells bold, notes in the caption."""

    def plain(text: str) -> str:
        return rf"\textbf{{{latex(text)}}}" if isinstance(text, Best) else latex(text)

    right = [is_numeric(frame[column], [row[n] for row in cells]) for n, column in enumerate(frame.columns)]
    shown = pd.DataFrame([list(map(plain, row)) for row in cells], columns=list(map(plain, map(str, frame.columns))))
    text = shown.style.hide(axis="index").to_latex(
        column_format="".join("lr"[number] for number in right),
        position="t",
        position_float="centering",
        hrules=True,
        label="tab:" + (re.sub("[^a-z0-9]+", "-", title.lower()).strip("-") or "results"),
        caption=r" \\ ".join(map(latex, caption.splitlines())) or None,
    )
    return "% needs \\usepackage{booktabs}\n" + text.rstrip()
