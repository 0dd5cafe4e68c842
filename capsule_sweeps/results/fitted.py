"""A table for a terminal, made as narrow as that.

On a terminal numbers never wrap. If a table is too wide, its texts wrap; in a table with one line per row, less
important columns are hidden and named below the table, and words are shortened in the middle. `--wide` shows
everything.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from textwrap import wrap
from typing import Literal

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from capsule_sweeps.console import console
from capsule_sweeps.display import rich, terminal

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
BORDER = 3  # letters between the texts of two columns


class Best(str):
    """A cell in bold type."""


class Parts(str):
    """A cell that breaks between words where a table for a terminal is too wide."""


@dataclass(eq=False)
class Column:
    """A column of a table. `shown` is its head, perhaps with a line per word; `room` the letters of a line of a cell
    that are shown, None if all are."""

    head: str
    shown: str
    cells: list[str]
    numeric: bool
    room: int | None = None

    @property
    def width(self) -> int:
        return max(_longest([self.shown]), _longest(self.cells) if self.room is None else self.room)

    def with_broken_head(self) -> "Column":
        broken = re.sub("(?<=[a-z])[_ ](?=[a-z(])", lambda found: found[0].strip() + "\n", self.head)
        return replace(self, shown=re.sub("=(?=[a-z])", "=\n", broken))

    def with_broken_cells(self, room: int) -> "Column":
        """Cells of parts get lines of at most `room` letters, and no shorter than a word or PART."""
        cells = [_lines(cell, max(PART, room)) if isinstance(cell, Parts) else cell for cell in self.cells]
        return replace(self, cells=cells)

    def texts(self) -> list[Text]:
        width = None if self.room is None or self.head == MERGED else self.width
        return [_text(cell, width) for cell in self.cells]


def bordered(heads: list[str], cells: list[list[str]], numeric: list[bool], one_line: bool) -> tuple[Table, list[str]]:
    """The table, with `one_line` as wide as the console allows, and the columns that are not in it."""
    pairs = enumerate(zip(heads, numeric, strict=True))
    columns = [Column(head, head, [row[n] for row in cells], right) for n, (head, right) in pairs]
    left_out: list[str] = []
    if one_line:
        columns, left_out = fitted(columns, console().width)
    elif total_width(columns) > console().width:
        columns = [column.with_broken_head() for column in columns]
    table, least = Table(), 1
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.numeric else "left"
        fixed = column.width if one_line else None
        table.add_column(rich(column.shown), justify=justify, no_wrap=column.numeric, overflow="fold", width=fixed)
        least += BORDER + (column.width if one_line or column.numeric else min(column.width, SYLLABLE))
    for row in zip(*(column.texts() for column in columns), strict=True):
        table.add_row(*row)
    if least > console().width:  # wider than the terminal, but every number is there
        table.width = least
    return table, left_out


def fitted(columns: list[Column], room: int) -> tuple[list[Column], list[str]]:
    """Columns of a table no wider than `room`, and the heads of those that are hidden.

    First heads break at underscores, then less important columns are hidden, then words are shortened. If this is not
    enough, the settings become one column, which wraps.
    """
    if total_width(columns) > room:
        columns = [column.with_broken_head() for column in columns]
        wide = [column for column in columns if any(isinstance(cell, Parts) for cell in column.cells)]
        left = room - total_width([column for column in columns if column not in wide])
        columns = [column.with_broken_cells(left // max(1, len(wide)) - BORDER) for column in columns]
    columns = [replace(column, room=_longest(column.cells)) for column in columns]
    shown = list(columns)
    for name in LESS_IMPORTANT:
        _hide(shown, name, room)
    _shorten_words(shown, room)
    for name in LEAST_ROOM:
        _hide(shown, name, room)
        _shorten_words(shown, room)
    left_out = [column.head for column in columns if column not in shown]
    return _with_settings_merged(columns, shown, room), left_out


def total_width(columns: list[Column]) -> int:
    return sum(column.width + BORDER for column in columns) + 1


def _hide(shown: list[Column], head: str, room: int) -> None:
    """Take away the column with this head, if there is no room for all."""
    found = [column for column in shown if column.head == head]
    if found and total_width(shown) > room and len(shown) > 1:
        shown.remove(found[0])


def _shorten_words(shown: list[Column], room: int) -> None:
    """Give words less room, until the table fits: the longest ones become as short as the next ones, together."""
    words = [column for column in shown if not column.numeric and column.head not in WHOLE]
    while (over := total_width(shown) - room) > 0 and words:
        longest = max(column.room or 0 for column in words)
        if longest <= SHORTEST:
            break
        for column in [column for column in words if column.room == longest][:over]:
            column.room = longest - 1


def _with_settings_merged(columns: list[Column], shown: list[Column], room: int) -> list[Column]:
    """The shown columns; if they do not fit, with the settings as one.

    A row that repeats all settings but the last, as those of one base do, has only that.
    """
    number = next((n for n, column in enumerate(columns) if column.head == "n" or "=" in column.head), 0)
    settings = [column for column in columns[:number] if column in shown]
    if total_width(shown) <= room or len(settings) < 2:
        return shown
    rest = [column for column in shown if column not in settings]
    left = room - total_width(rest) - BORDER
    if left < SHORTEST:  # the table is wider than the terminal in any case
        return shown
    texts, repeated, last = _in_words(settings), _in_words(settings[:-1]), _in_words(settings[-1:])
    for row in range(1, len(texts)):
        if repeated[row] == repeated[row - 1]:
            texts[row] = f"… {last[row] if len(last[row]) < left - 1 else settings[-1].cells[row]}"
    return [Column(MERGED, MERGED, texts, numeric=False, room=left), *rest]


def _in_words(settings: list[Column]) -> list[str]:
    """The settings of each row."""
    heads = [column.head for column in settings]
    return [
        " ".join(f"{head}={cell}" for head, cell in zip(heads, row, strict=True) if cell != "–").replace("\n", " ")
        for row in zip(*(column.cells for column in settings), strict=True)
    ]


def _longest(texts: Iterable[str]) -> int:
    """The width of the longest line in some texts."""
    return max((cell_len(part) for text in texts for part in text.split("\n")), default=0)


def _lines(cell: str, width: int) -> str:
    return "\n".join(wrap(cell, width, break_long_words=False, break_on_hyphens=False)) or cell


def _text(cell: str, width: int | None) -> Text:
    lines = [shorten(line, width or len(line)) for line in terminal(cell).split("\n")]
    return Text("\n".join(lines), style="bold" if isinstance(cell, Best) else "")


def shorten(text: str, width: int) -> str:
    """A text of at most `width` characters; longer texts lose their middle."""
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return f"{text[: width - 1 - end]}…{text[len(text) - end :]}"
