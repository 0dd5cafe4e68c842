"""Execute the notebooks of this folder on some runs: python analysis/render.py RUNS [name ...]

Leaves an executed copy and a page (HTML) of each in analysis/rendered/, and what the notebooks themselves write. Where
the runs lack what a notebook shows, its page says what is missing and how to get it. A notebook that fails is reported
with its reason, and the others are rendered. Pages hold no scripts: names in runs come from others.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import bleach
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from traitlets.config import Config

from capsule_sweeps.display import html as html_text
from capsule_sweeps.display import terminal

TAGS = {*bleach.ALLOWED_TAGS, "p", "br", "hr", *(f"h{level}" for level in range(1, 7)), "div", "span", "pre"}
TAGS |= {"table", "thead", "tbody", "tr", "th", "td"}
HERE = Path(__file__).resolve().parent
PRINT = """<style>@media print {
  pre { white-space: pre-wrap !important } table { font-size: 7pt !important; margin: 0 !important }
  .jp-OutputPrompt, .jp-InputPrompt { display: none !important } tr, img { break-inside: avoid }
}</style>"""
STYLE = "<style>body { font: 1rem/1.5 sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem }</style>"


def clean_html(element: str | bytes) -> str:
    """HTML with the tags of headings, paragraphs, tables and highlighted code; all others become text."""
    text = element.decode() if isinstance(element, bytes) else str(element)
    return str(bleach.clean(text, tags=TAGS, attributes={"*": ["class", "id"], "a": ["href", "title"]}))


def render(path: Path, folder: Path, **parameters: str) -> None:
    """Execute a notebook in the folder above it, with a cell of parameters after its own; write copy and page."""
    notebook = nbformat.read(path, as_version=4)
    (place,) = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    injected = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(injected))
    resources = {"metadata": {"path": str(path.parent.parent)}}
    # The kernel listens on no TCP port, to which everyone on this machine could send messages
    with TemporaryDirectory(prefix="kernel") as scratch:
        config = Config({"ConnectionFileMixin": {"transport": "ipc", "ip": f"{scratch}/ipc"}})
        client = NotebookClient(notebook, timeout=3600, kernel_name="python3", resources=resources, config=config)
        client.execute()
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / path.name)
    exporter = HTMLExporter(embed_images=True, sanitize_html=True, filters={"clean_html": clean_html})
    page, _ = exporter.from_notebook_node(notebook)
    page = re.sub(r"<script\b.*?</script\s*>", "", page, flags=re.DOTALL | re.IGNORECASE)
    page = page.replace("</head>", f"{PRINT}</head>", 1)
    (folder / f"{path.stem}.html").write_text(page, encoding="utf-8")


def say_missing(name: str, folder: Path, sentence: str) -> None:
    """A page in place of a notebook's, for runs that lack what the notebook shows."""
    folder.mkdir(parents=True, exist_ok=True)
    words = f"<h1>{name}</h1>\n<p>{html_text(sentence)}</p>"
    page = f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{name}</title>{STYLE}\n{words}\n</html>\n'
    (folder / f"{name}.html").write_text(page, encoding="utf-8")


def main(runs_dir: str, *names: str) -> int:
    failed = 0
    for path in sorted(HERE.glob("*.ipynb")):
        if names and path.stem not in names:
            continue
        try:
            render(path, HERE / "rendered", runs_dir=str(Path(runs_dir).resolve()))
            print(f"{path.stem}: analysis/rendered/{path.stem}.html")
        except CellExecutionError as error:
            if error.ename == "ValueError":  # the sentence of our own functions
                say_missing(path.stem, HERE / "rendered", error.evalue)
                print(f"{path.stem}: analysis/rendered/{path.stem}.html says what is missing: {terminal(error.evalue)}")
                continue
            failed += 1
            print(f"{path.stem}: not executed, {error.ename}: {terminal(error.evalue)}", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("Error: pass the folder of the runs: python analysis/render.py runs")
    sys.exit(main(*sys.argv[1:]))
