"""Write the outputs in docs/quickstart.md: run its commands, in a temporary folder, and insert what they print.

    python docs/quickstart.py

A command is a line `$ …` in a block `console`. A block with ^C is stopped by Ctrl-C after the third epoch. Of the
epochs of each run only the first and the last are kept.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "quickstart.md"
BLOCK = re.compile(r"(?<=^```console\n)\$ (?P<command>.*)\n(?P<output>(?:(?!```).*\n)*)", re.MULTILINE)
EPOCH = re.compile(r"^\S+  epoch \d+/\d+  .*")


def run(command: str, folder: Path, interrupt: bool) -> str:
    """What a command prints in `folder`, 80 columns wide."""
    program, *words = shlex.split(command)
    assert program == "python", command
    words = [str(ROOT / word) if word == "launch.py" else word for word in words]
    private = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment = {**private, "COLUMNS": "80", "OMP_NUM_THREADS": "1", "HOME": str(folder), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if interrupt and " epoch 3/" in line:
            time.sleep(0.5)  # into the fourth epoch
            process.send_signal(signal.SIGINT)
            lines.append("^C")
    if process.wait() and not interrupt:
        raise SystemExit("\n".join([f"{command} failed:", *lines]))
    return "\n".join(shortened(lines)) + "\n"


def shortened(lines: list[str]) -> list[str]:
    """Lines without those of epochs between two others."""
    epochs = [bool(EPOCH.match(line)) for line in lines]
    inner = [all(epochs[max(0, n - 1) : n + 2]) and 0 < n < len(lines) - 1 for n in range(len(lines))]
    return ["…" if inner[n] else line for n, line in enumerate(lines) if not (inner[n] and inner[n - 1])]


def main() -> None:
    with TemporaryDirectory() as folder:

        def output(block: re.Match[str]) -> str:
            printed = run(block["command"], Path(folder), "^C" in block["output"].splitlines())
            return f"$ {block['command']}\n{printed}"

        PAGE.write_text(BLOCK.sub(output, PAGE.read_text()))


if __name__ == "__main__":
    main()
