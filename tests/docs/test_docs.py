"""What the documentation says is so: commands, the table of settings, error messages, links."""

import ast
import re
import runpy
import shlex
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import rich
from PIL import Image

from capsule_sweeps.cli.main import make_parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def page_text(page: Path) -> str:
    """The text of a page, with commands of several lines in one."""
    return re.sub(r"\\\n\s*", "", page.read_text())


def commands(start: str) -> list[str]:
    """The commands of all pages that begin so, without comments and the marks of optional words."""
    found: dict[str, None] = {}
    for page in PAGES:
        for line in re.findall(rf"^(?: {{4,}}|\$ )({re.escape(start)}.*)", page_text(page), flags=re.MULTILINE):
            command = re.sub(r"\s{2,}\S.*|\s+#.*", "", line)
            found[re.sub(r"[\[\]]", "", command) if " [--" in command else command] = None
    assert found
    return list(found)


@pytest.fixture
def images(place) -> None:
    """What the pages call photos and *.npz."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("one", "other"):
            folder = place / "photos" / split / name
            folder.mkdir(parents=True)
            Image.fromarray(random.integers(0, 255, (28, 28), dtype=np.uint8)).save(folder / "1.png")
    arrays = {f"{split}_images": np.zeros((2, 28, 28), np.uint8) for split in ("train", "val", "test")}
    labels = {f"{split}_labels": np.array([0, 1]) for split in ("train", "val", "test")}
    np.savez(place / "pneumoniamnist.npz", **arrays, **labels)


@pytest.mark.slow
@pytest.mark.parametrize("command", commands("python launch.py"))
def test_every_sweep_composes(command, images, launch) -> None:
    if "sharp" in command:
        pytest.skip("run by test_extending.py")
    if "hydra/sweeper=search" in command and find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
        pytest.skip("needs the package hydra-optuna-sweeper")
    words = shlex.split(command)[2:]
    if "-m" in words:
        ended = launch(*words, "hydra.launcher.dry_run=true", base=[])
        assert ended.code == 0 and "Plan" in ended.out, ended.text
    else:
        ended = launch(*words, *(() if "--cfg" in words else ("--cfg=job",)), base=[])
        assert ended.code == 0 and "num_routing" in ended.out, ended.text


@pytest.mark.parametrize("command", commands("python -m capsule_sweeps"))
def test_every_command_is_one(command, capsys) -> None:
    words = shlex.split(re.sub(r"\|\w+", "", command))[3:]
    if words in (["--version"], ["--help"], ["hours", "dataset=stripes"]):
        return
    _, choices = make_parser(words[0])
    escape = choices[words[0]].get_default("escape") or (lambda words: words)
    choices[words[0]].parse_intermixed_args(escape(words)[1:])


def test_every_target_of_make_is_one() -> None:
    targets = re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for command in commands("make "):
        assert command.split()[1] in targets, command
    for page in PAGES:
        for target in re.findall(r"`make ([\w-]+)", page.read_text()):
            assert target in targets, (page.name, target)


def test_every_setting_is_in_the_table(monkeypatch) -> None:
    page = runpy.run_path(str(ROOT / "docs" / "configuration.py"))["page"]()
    assert page == (ROOT / "docs" / "configuration.md").read_text(), "run python docs/configuration.py"


def templates() -> list[str]:
    """The texts in the code, with … for each value that is put in."""
    found = []
    for path in [*(ROOT / "capsule_sweeps").rglob("*.py"), ROOT / "launch.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[sd.\w]", "…", node.value))
    return found


def test_the_plan_in_quickstart_is_what_the_command_prints(launch, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(rich, "_console", None)  # its width is that of an earlier test
    quickstart = runpy.run_path(str(ROOT / "docs" / "quickstart.py"))
    blocks = list(quickstart["BLOCK"].finditer(quickstart["PAGE"].read_text()))
    assert len(blocks) >= 6 and all(block["output"].strip() for block in blocks), "run python docs/quickstart.py"
    ended = launch(*shlex.split(blocks[0]["command"])[2:], "hydra.launcher.dry_run=true", base=[])
    plan = [line.rstrip() for line in ended.out.splitlines()]
    assert blocks[0]["output"].splitlines()[: len(plan)] == plan, "run python docs/quickstart.py"


def test_every_message_of_troubleshooting_is_in_the_code() -> None:
    quoted = re.findall(r"^### `(.*)`$", (ROOT / "docs" / "troubleshooting.md").read_text(), flags=re.MULTILINE)
    assert len(quoted) >= 12
    known = templates()
    for message in quoted:
        pattern = ".*".join(map(re.escape, re.split("…", message)))
        assert any(re.search(pattern, text, flags=re.DOTALL) for text in known), message


def test_every_link_leads_somewhere() -> None:
    """Of README and CONTRIBUTING, which mkdocs does not build."""
    for page in PAGES[:2]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


def test_the_site_has_no_address_of_another_site() -> None:
    for path in (ROOT / "docs").glob("*.svg"):
        loaded = re.findall(r"(?:url\(|href=|src=|@import )[\"']?(https?://[^\s\"'<>)]+)", path.read_text())
        assert not loaded, (path.name, loaded)
    text = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in text and "strict: true" in text and "http" not in text
