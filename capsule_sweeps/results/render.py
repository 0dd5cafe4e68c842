"""A table as text: for a terminal, Markdown, LaTeX, CSV or JSON.

On a terminal numbers never wrap. If a table is too wide, its texts wrap; in a table with one line per row, less
important columns are hidden and named below the table, and words are shortened in the middle. `--wide` shows
everything.
"""

import re
from textwrap import wrap
from typing import Any, Literal

import pandas as pd
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from capsule_sweeps.console import console
from capsule_sweeps.display import csv, latex, line, markdown, rich, terminal

MANY = 1000  # rows
WHOLE = ("sweep", "date", "done", "left")  # words that are nothing without their middle
LESS_IMPORTANT = (
    *("rule", "max", "min", "paired", "seeds needed"),
    *("peak MB", "s/epoch", "seconds", "M mult-adds", "date"),
)
LEAST_ROOM = ("command", "left")  # left out where not even shortened words fit
MERGED = "settings"  # the column of all settings, where there is no room for one each
SHORTEST = 12  # letters of a word that is shortened
PART = 20  # letters of a line of words that stay whole
SYLLABLE = 5  # letters of a line of text that wraps


class Best(str):
    """A cell in bold type."""


class Parts(str):
    """A cell that breaks between words where a table for a terminal is too wide."""


def render(
    frame: pd.DataFrame, form: str, title: str = "", note: str = "", caption: str = "", one_line: bool = False
) -> str:
    """A frame as text: `table` (for a terminal), `md`, `tex` (booktabs), `csv` or `json` (a list of objects).

    With `one_line` no cell wraps in a table for a terminal.
    """
    if form == "json":
        return frame.to_json(orient="records", indent=1, default_handler=str)
    if form == "csv":
        plain = frame.map(lambda value: csv(value) if isinstance(value, str) else value)
        return plain.set_axis(list(map(csv, frame.columns)), axis=1).to_csv(index=False).rstrip("\n")
    cells = [[_cell(value) for value in row] for row in frame.itertuples(index=False)]
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
    text, left_out = _bordered(list(map(str, frame.columns)), cells, numeric, one_line)
    if left_out:
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


def _bordered(heads: list[str], cells: list[list[str]], numeric: list[bool], one_line: bool) -> tuple[Table, list[str]]:
    """The table, with `one_line` as wide as the console allows, and the columns that are not in it."""
    table = Table()
    left_out: list[str] = []
    widths: list[int | None] = [None] * len(heads)
    if not one_line and sum(_longest(heads, cells, n) + 3 for n in range(len(heads))) + 1 > console().width:
        heads = list(map(_broken, heads))
    if one_line:
        heads, cells, numeric, widths, left_out = _fitted(heads, cells, numeric, console().width)
    least = 1
    for n, (head, right, width) in enumerate(zip(heads, numeric, widths, strict=True)):
        longest = _longest(heads, cells, n)
        least += 3 + (width or (longest if right else min(longest, SYLLABLE)))
        justify: Literal["left", "right"] = "right" if right else "left"
        table.add_column(rich(head), justify=justify, no_wrap=right, overflow="fold", width=width)
    for row in cells:
        table.add_row(
            *(
                _text(cell, None if head == MERGED else width)
                for cell, width, head in zip(row, widths, heads, strict=True)
            )
        )
    if least > console().width:  # wider than the terminal, but every number is there
        table.width = least
    return table, left_out


def _fitted(heads: list[str], cells: list[list[str]], numeric: list[bool], room: int) -> Any:
    """Heads, cells, numeric columns and widths of a table no wider than `room`; and the hidden columns.

    First heads break at underscores, then less important columns are hidden, then words are shortened. If this is not
    enough, the settings before the column n, or before the values of a pivot table, become one column, which wraps.
    """

    def longest_lines() -> list[int]:
        return [
            max((cell_len(part) for row in cells for part in row[n].split("\n")), default=0) for n in range(len(heads))
        ]

    widths = longest_lines()
    shown, broken = list(range(len(heads))), list(heads)

    def full(n: int) -> int:
        return max(widths[n], *(cell_len(line) for line in broken[n].split("\n")))

    def excess() -> int:
        return sum(full(n) + 3 for n in shown) + 1 - room

    if excess() > 0:
        broken = list(map(_broken, heads))
        cells = [[_lines(cell) if isinstance(cell, Parts) else cell for cell in row] for row in cells]
        widths = longest_lines()
    for name in LESS_IMPORTANT:
        if excess() > 0 and name in heads and len(shown) > 1:
            shown.remove(heads.index(name))
    for name in ("", *LEAST_ROOM):
        if excess() > 0 and name in heads and len(shown) > 1:
            shown.remove(heads.index(name))
        words = [n for n in shown if not numeric[n] and heads[n] not in WHOLE]
        while (over := excess()) > 0 and words and (longest := max(widths[n] for n in words)) > SHORTEST:
            for n in words:  # the longest ones become as short as the next ones, together
                if widths[n] == longest and over > 0:
                    widths[n], over = widths[n] - 1, over - 1
    left_out = [head for n, head in enumerate(heads) if n not in shown]
    values = next((n for n, head in enumerate(heads) if head == "n" or "=" in head), 0)  # =: of a pivot table
    first = [n for n in shown if n < values]
    rest = [n for n in shown if n not in first]
    kept = [[row[n] for n in rest] for row in cells], [numeric[n] for n in rest], [full(n) for n in rest]
    if excess() <= 0 or len(first) < 2:
        return (
            [broken[n] for n in shown],
            [[row[n] for n in shown] for row in cells],
            [numeric[n] for n in shown],
            [full(n) for n in shown],
            left_out,
        )
    merged = [" ".join(f"{heads[n]}={row[n]}" for n in first if row[n] != "–").replace("\n", " ") for row in cells]
    width = max(SHORTEST, room - 4 - sum(full(n) + 3 for n in rest))
    return (
        [MERGED, *(broken[n] for n in rest)],
        [[text, *row] for text, row in zip(merged, kept[0], strict=True)],
        [False, *kept[1]],
        [width, *kept[2]],
        left_out,
    )


def _lines(cell: str) -> str:
    """A cell with lines as long as a word needs, and no shorter than PART."""
    return "\n".join(wrap(cell, PART, break_long_words=False, break_on_hyphens=False)) or cell


def _longest(heads: list[str], cells: list[list[str]], n: int) -> int:
    """The width of the longest line in column n."""
    return max(cell_len(part) for row in (heads, *cells) for part in row[n].split("\n"))


def _broken(head: str) -> str:
    """A head with a line per word."""
    return re.sub("(?<=[a-z])[_ ](?=[a-z(])", lambda found: found[0].strip() + "\n", head)


def _text(cell: str, width: int | None) -> Text:
    lines = [shorten(line, width or len(line)) for line in terminal(cell).split("\n")]
    return Text("\n".join(lines), style="bold" if isinstance(cell, Best) else "")


def shorten(text: str, width: int) -> str:
    """A text of at most `width` characters; longer texts lose their middle."""
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


def is_numeric(column: pd.Series, cells: list[str]) -> bool:
    """Whether a column has numbers, or texts that start with a number, such as 37,521 and 84.0 ± 3.7, or –."""
    return pd.api.types.is_numeric_dtype(column) or all(re.match(r"[-−+]?\d[\d,.]*( ±|$)|–$", cell) for cell in cells)


def _cell(value: Any) -> str:
    return value if isinstance(value, Best | Parts) else cell_text(value)


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
    return str(value)


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
