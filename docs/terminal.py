"""Draw docs/terminal.svg: what a sweep shows on a terminal, from a real run in a temporary folder.

    python docs/terminal.py

The picture has the plan, the bars as they were in the middle of the sweep, and the table at the end.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "python launch.py -m num_routing=1,2,3 dataset=digits training=quick"
HIDDEN = ["tracking=none", "training.compile=off"]  # what a reader of the picture need not know
WIDTH = 128


def record(command: list[str]) -> str:
    """All that a command writes to a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(WIDTH), "LINES": "50", "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    found = b""
    with suppress(OSError):  # the end of a terminal's output
        while piece := os.read(ours, 65536):
            found += piece
    if process.wait():
        raise SystemExit(found.decode())
    return found.decode().replace("\r\n", "\n")


def frames(text: str) -> tuple[str, str, str]:
    """The plan, the bars of the middle frame, the table."""
    plan, _, rest = text.partition("\x1b[?25l")
    bars, _, table = rest.rpartition("\x1b[?25h")
    drawn = [frame.strip("\r\n") for frame in re.split(r"(?:\r?\x1b\[(?:2K|1A))+", bars)]
    drawn = [frame for frame in drawn if frame.count("\n") == 1 and "loss" in frame.splitlines()[1]]
    return plan, drawn[len(drawn) // 2], re.sub(r"^(\r?\x1b\[(2K|1A|0m))+", "", table).strip("\n")


def main() -> None:
    with TemporaryDirectory() as folder:
        program, *words = COMMAND.split()[1:]
        place = [f"runs_dir={folder}/runs", f"data_dir={folder}/data"]
        plan, bars, table = frames(record([sys.executable, str(ROOT / program), *words, *HIDDEN, *place]))
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w"))  # noqa: SIM115
    for part in (f"\x1b[1m$ {COMMAND}\x1b[0m\n", plan, bars + "\n", table):
        console.print(Text.from_ansi(part), no_wrap=True, crop=False)
    svg = console.export_svg(title="capsule_sweeps", unique_id="terminal")
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # fonts of the reader, not of a server
    svg = svg.replace("Fira Code", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono")
    (ROOT / "docs" / "terminal.svg").write_text(svg)


if __name__ == "__main__":
    main()
