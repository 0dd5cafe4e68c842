"""Rendered notebooks show names from runs as text and load nothing from a network; their kernel does not use TCP."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import nbformat
import pandas as pd
import pytest

from capsule_sweeps.results.render import render as table

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "<script>document.title=1</script>"
IMAGE = """<img src=x onerror="document.title='PWNED'">"""


@pytest.fixture(scope="module")
def rendering(tmp_path_factory) -> ModuleType:
    """analysis/render.py beside two notebooks of its own."""
    here = tmp_path_factory.mktemp("n") / "analysis"
    here.mkdir()
    (here / "render.py").write_text((ROOT / "analysis" / "render.py").read_text())
    parameters = nbformat.v4.new_code_cell("runs_dir = 'runs'", metadata={"tags": ["parameters"]})
    asked = "import json, ipykernel\njson.loads(ipykernel.get_connection_info())['transport']"
    shown = f"from IPython.display import HTML, Markdown\\nMarkdown({IMAGE + SCRIPT!r})".replace("\\n", "\n")
    for name, cells in (
        ("hostile", [asked, shown, f"HTML({SCRIPT + IMAGE!r})"]),
        ("lacking", ["raise ValueError('<b>no ablation')"]),
    ):
        prose = nbformat.v4.new_markdown_cell("# Heading\n\ntext\n\n| name |\n|---|\n| value |")
        notebook = nbformat.v4.new_notebook(cells=[parameters, *map(nbformat.v4.new_code_cell, cells), prose])
        nbformat.write(notebook, here / f"{name}.ipynb")
    spec = importlib.util.spec_from_file_location("rendering", here / "render.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_pages_are_text_and_the_kernel_has_no_port(rendering, tmp_path, capfd) -> None:
    assert rendering.main(str(tmp_path)) == 0, "what is missing is no failure"
    said = capfd.readouterr()
    assert "lacking.html says what is missing: <b>no ablation" in said.out and "TCP" not in said.err
    page = (rendering.HERE / "rendered" / "hostile.html").read_text()
    assert "<h1" in page and "<p>text</p>" in page and re.search("<th>name</th>.*<td>value</td>", page, re.DOTALL)
    assert not re.search("<script|<img[^>]*onerror|cdnjs", page, re.IGNORECASE)
    executed = nbformat.read(rendering.HERE / "rendered" / "hostile.ipynb", as_version=4)
    assert executed.cells[2].outputs[0].data["text/plain"] == "'ipc'"
    assert "<p>&lt;b&gt;no ablation</p>" in (rendering.HERE / "rendered" / "lacking.html").read_text()


def test_heads_notes_and_captions_of_a_markdown_table_are_text() -> None:
    page = table(pd.DataFrame([{SCRIPT: "value"}]), "md", title=IMAGE, note=SCRIPT, caption=f"{IMAGE}[a](javascript:x)")
    assert "<" not in page and "&lt;script" in page and r"\[a\](javascript:x)" in page, "heads, notes and captions too"
