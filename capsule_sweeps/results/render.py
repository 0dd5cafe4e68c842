"""A table as text: for a terminal, Markdown, LaTeX, CSV or JSON."""

from __future__ import annotations

from typing import Any

import pandas as pd
from rich.table import Table

from capsule_sweeps.console import console, plain_text

MANY = 1000  # rows


def render(frame: pd.DataFrame, form: str, title: str = "", note: str = "") -> str:
    """A frame as text: `table` (for a terminal), `md`, `tex` (booktabs), `csv` or `json` (a list of objects)."""
    if form == "json":
        return frame.to_json(orient="records", indent=1, default_handler=str)
    if form == "csv":
        return frame.to_csv(index=False).rstrip("\n")
    cells = [[cell_text(value) for value in row] for row in frame.itertuples(index=False)]
    if form == "md":
        lines = ["| " + " | ".join(frame.columns) + " |", "|" + "---|" * len(frame.columns)]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
        return "\n".join([*lines, *(["", note] if note else [])])
    if form == "tex":
        return _tex(frame, cells, note)
    assert form == "table", form
    if len(frame) > MANY:  # a table with borders would take seconds
        plain = pd.DataFrame(cells, columns=frame.columns).to_string(index=False)
        return "\n".join(part for part in (title, plain, note) if part)
    table = Table(title=title or None, title_justify="left")
    for column in frame.columns:
        numeric = pd.api.types.is_numeric_dtype(frame[column])
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(plain_text, row))
    with console().capture() as capture:
        console().print(table)
        if note:
            console().print(note, markup=False, highlight=False)
    return capture.get().rstrip("\n")


def cell_text(value: Any) -> str:
    """A value of a table as people read it: – for none, two decimals, of small numbers one digit that is not 0."""
    if value is None or value is pd.NA or (isinstance(value, float) and pd.isna(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.2f}" if value == 0 or abs(value) >= 0.005 else f"{value:.1g}"  # a small number is no zero
    return str(value)


TEX = {  # of letters that LaTeX reads as commands, or that not every font has
    "\\": r"\textbackslash{}",
    **{letter: "\\" + letter for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "√": r"$\surd$",
    "'": r"\textquotesingle{}",
    "\n": r" \\ ",
}


def _tex(frame: pd.DataFrame, cells: list[list[str]], note: str) -> str:
    """A LaTeX tabular with booktabs, numbers to the right, and the note beneath it."""

    def plain(text: str) -> str:
        return "".join(TEX.get(letter, letter) for letter in text)

    right = [pd.api.types.is_numeric_dtype(frame[column]) for column in frame.columns]
    lines = ["% needs \\usepackage{booktabs}", "\\begin{tabular}{" + "".join("lr"[number] for number in right) + "}"]
    lines += ["\\toprule", " & ".join(map(plain, map(str, frame.columns))) + " \\\\", "\\midrule"]
    lines += [" & ".join(map(plain, row)) + " \\\\" for row in cells]
    lines += ["\\bottomrule", "\\end{tabular}"]
    return "\n".join([*lines, *(["", "\\par\\smallskip{\\footnotesize " + plain(note) + "}"] if note else [])])
