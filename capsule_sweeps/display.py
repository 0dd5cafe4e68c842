"""Text from others, made harmless for what shows it: one function for each medium.

Names of runs, classes and data sets, notes, errors and settings come from files that others wrote. On a terminal their
escape sequences would move the cursor and change its title, in a page or a table their letters would be markup. All
functions take text and return text of the same meaning in one medium, without control characters.
"""

from __future__ import annotations

import codecs
import dis
import html as markup
import io
import logging
import re
import sys
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.text import Text

MARKDOWN = r"([\\|`$\[\]])"  # links, images, formulas and ends of cells; HTML is escaped as in a page
TEX = {  # for characters that are commands in LaTeX, or missing in some fonts
    "\\": r"\textbackslash{}",
    **{letter: "\\" + letter for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # else an argument, and a star, of the line break before it
    "*": "{*}",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "√": r"$\surd$",
    "†": r"$\dagger$",
}

PLAIN = {  # for terminals that are not UTF-8
    "…": "...",
    "–": "-",
    "—": "-",
    "−": "-",
    "×": "x",
    "·": "*",
    "±": "+-",
    "→": "->",
    "√": "sqrt",
    "†": "+",
    "≤": "<=",
    "≥": ">=",
}
HORIZONTAL, VERTICAL = "─━═╌╍┄┅┈┉", "│┃║╎╏┆┇┊┋"


def terminal(text: object) -> str:
    """Lines of text without control characters, escape sequences and letters that turn the direction of writing."""
    return "".join(one if one == "\n" or one.isprintable() else " " if one.isspace() else "" for one in str(text))


def line(text: object) -> str:
    """The same as one line."""
    return " ".join(map(terminal, str(text).splitlines()))


def plain(text: str) -> str:
    """The text in ASCII, as readable as possible."""
    return "".join(map(_letter, text))


def _letter(letter: str) -> str:
    if letter in HORIZONTAL or letter in VERTICAL:
        return "-" if letter in HORIZONTAL else "|"
    if "\u2500" <= letter <= "\u257f":  # corners and crossings of lines
        return "+"
    base = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return PLAIN.get(letter) or base or "?"


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return plain(error.object[error.start : error.end]), error.end


def write_any_text() -> None:
    """Replace characters that standard output and error cannot encode, instead of raising errors."""
    codecs.register_error("capsule_sweeps", _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(errors="capsule_sweeps")


def listed(words: Sequence[str], most: int, between: str = ", ") -> str:
    """The first words of a list, and how many more there are."""
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return between.join(words[:most]) + more


def rich(text: object) -> Text:
    """Text for a table or a bar of rich, in which [bold] is no markup."""
    from rich.text import Text  # takes its time

    return Text(terminal(text))


def mathtext(text: object) -> str:
    """Text for a figure, in which a dollar sign begins no formula."""
    return terminal(text).replace("$", r"\$")


def latex(text: object) -> str:
    """A cell or a sentence of a LaTeX document."""
    return "".join(TEX.get(letter, letter) for letter in line(text))


def markdown(text: object) -> str:
    """A cell or a sentence of a Markdown page, in which no letter begins HTML, a link, an image or a formula."""
    return re.sub(MARKDOWN, r"\\\1", markup.escape(line(text), quote=False))


def html(text: object) -> str:
    """Text of a page, or of an attribute in quotes."""
    return markup.escape(terminal(text))


def csv(text: object) -> str:
    """A text cell of a CSV file. One that a spreadsheet would compute begins with an apostrophe, which hides there.

    Numbers such as -0.5 stay as they are.
    """
    found = line(text)
    if not found.lstrip().startswith(("=", "+", "-", "@")):
        return found
    try:
        float(found)
    except ValueError:
        return f"'{found}"
    return found


def counted(number: int, one: str, several: str = "") -> str:
    """A number and what is counted, such as 1 run and 1,200 runs; `several` where it is not `one` and an s."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def say(text: object, file: TextIO | None = None) -> None:
    """Print a sentence."""
    print(terminal(text), file=file or sys.stdout, flush=True)


class Formatter(logging.Formatter):
    """Log records as lines for terminals and for log files, which are read on terminals."""

    def format(self, record: logging.LogRecord) -> str:
        return terminal(super().format(record))


def raised_by(error: BaseException) -> str:
    """The module whose `raise` statement made an error; empty for one of Python itself, as of `a, b = 1, 2, 3`."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or last.tb_frame.f_code.co_code[last.tb_lasti] != dis.opmap["RAISE_VARARGS"]:
        return ""
    return str(last.tb_frame.f_globals.get("__name__", ""))
