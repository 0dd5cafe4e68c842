"""Output on terminals and in files that are not UTF-8: lines of tables become ASCII, and nothing fails."""

import codecs
import io
import sys
import unicodedata

NAME = "capsule_sweeps.plain"
PLAIN = {
    "…": "...",
    "–": "-",
    "—": "-",
    "−": "-",
    "×": "x",
    "·": "*",
    "±": "+-",
    "→": "->",
    "√": "sqrt",
    "≤": "<=",
    "≥": ">=",
}
HORIZONTAL, VERTICAL = "─━═╌╍┄┅┈┉", "│┃║╎╏┆┇┊┋"


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
    codecs.register_error(NAME, _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(errors=NAME)
