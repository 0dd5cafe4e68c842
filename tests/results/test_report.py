"""The page that can be sent: complete, escaped, alone; readable on a phone and in print."""

import json
import os
import re
import shutil
import signal
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic import finished_run

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), "")
OUTSIDE = re.compile(
    r"""(?:src|href)\s*=\s*["'](?!#|data:)|url\((?!#|["']?#)|@import|<script|<link|<iframe""", re.IGNORECASE
)


class Page(HTMLParser):
    """Text of a page, and its tags in order; complains about tags that do not close."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.rows = 0
        self.feed(markup)
        assert not self.open

    def handle_starttag(self, tag, attributes) -> None:
        self.rows += tag == "tr"
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes) -> None:
        pass

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def some_runs(trained, runs) -> Path:
    """Two finished, one interrupted, one failed, one never begun."""
    trained("-m", "num_routing=1,2", "seed=0")
    trained("training.lr=1e30")
    trained("-m", "seed=7,8", signal_at=(signal.SIGTERM, 8))
    (failed,) = [folder for folder in runs.folders() if (folder / "error.txt").exists()]
    runs.change_record(failed, error='FloatingPointError: <script>alert("loss")</script>')
    return Path("runs")


def test_page_has_everything(some_runs, runs, capsule_sweeps) -> None:
    ended = capsule_sweeps("report", "--out", "page.html")
    assert ended.code == 0 and "page.html" in ended.out
    markup = Path("page.html").read_text()
    assert not OUTSIDE.search(markup)
    assert set(re.findall(r"https?://[^\s\"'<]+", markup)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    text = Page(markup).text
    assert (
        "4 runs: " in text
        and "< 0.01 hours of training" in text
        and "2 finished" in text
        and "1 failed" in text
        and "1 interrupted" in text
    )
    for folder in runs.folders():
        assert text.count(folder.name) >= 1
    assert "num_routing=1,2" in text and "1 interrupted, 1 new" in text and "1 resume, 1 run" in text
    assert "selection rule: last" in text and "Left out: 1 of 1 run," in text
    assert "lr=0.1" in text and "seed=7" in text and "num_routing=2" in text
    assert '<script>alert("loss")</script>' in text and "&lt;script&gt;" in markup
    assert "Traceback" in text and "1 of 2" in text and "torch 2" in text and "commit " in text
    assert markup.count("<svg") >= 3


def test_page_of_chosen_runs_and_rule(some_runs, capsule_sweeps) -> None:
    assert capsule_sweeps("report", "num_routing=2", "--rule", "best_test").code == 0
    page = Page(Path("report.html").read_text())
    assert "1 run:" in page.text and "best_test" in page.text and "Failed runs None." in page.text


def test_no_page_without_runs(place, capsule_sweeps) -> None:
    Path("runs").mkdir()
    ended = capsule_sweeps("report")
    assert ended.code == 1 and ended.err == "Error: no run is in runs; set --runs-dir to the folder of the runs\n"
    assert not Path("report.html").exists()


def test_names_are_escaped(place, capsule_sweeps) -> None:
    finished_run(["dataset=digits", "runs_dir='<b>&'"], 0.5)
    assert capsule_sweeps("report", "--runs-dir", "<b>&").code == 0
    assert "<b>" not in Path("report.html").read_text()


def test_page_has_published_and_ablation_tables(place, capsule_sweeps) -> None:
    """Published cells by their own rule, missing ones with the command that fills them here; the forest plot."""
    for seed, accuracy in enumerate([0.9470, 0.9480, 0.9475]):
        finished_run(["runs_dir=mine", "dataset=CIFAR10", "num_routing=1", f"seed={seed}"], 0.9, accuracy)
        finished_run(["runs_dir=mine", "dataset=CIFAR10", "ablation=squash", f"seed={seed}"], accuracy - 0.1)
    assert capsule_sweeps("report", "--runs-dir", "mine").code == 0
    markup = Path("report.html").read_text()
    text = Page(markup).text
    for words in (
        "CIFAR-10, num_routing 1 average (%) 94.73 fixed windows 94.75 3 0.12 0.02 reproduced",
        "CIFAR-10, num_routing 2 average (%) 94.85 fixed windows – 0 – – missing",
        "CIFAR-10 parameters (million) 1.83 1.83 – – -0.001 reproduced",
        "Selection rule: best_test for every accuracy",
        "python launch.py -m dataset=CIFAR100 num_routing=2 seed=0,1,2,3,4 runs_dir=mine",
        "squash 3 84.75 -5.25",
        "No finished runs beside a base: no_augmentation",
    ):
        assert words in text, (words, text[text.find("CIFAR-10, num") :][:600])
    assert 'aria-label="Difference of each ablation' in markup and not OUTSIDE.search(markup)
    names = re.findall(r' id="([^"]+)"', markup)
    assert len(set(names)) == len(names)
    asked = set(re.findall(r'(?:href="|url\()#([^")]+)', markup))
    assert asked and asked <= set(names)


def test_page_without_such_runs_has_no_such_tables(some_runs, capsule_sweeps) -> None:
    assert capsule_sweeps("report").code == 0
    text = Page(Path("report.html").read_text()).text
    assert "Published numbers" not in text and "Ablations" not in text


def test_folder_that_is_not_there(some_runs, capsule_sweeps) -> None:
    ended = capsule_sweeps("report", "--out", "nowhere/page.html")
    assert ended.code == 1 and ended.err.startswith("Error: ") and "nowhere" in ended.err


def browse(tmp_path: Path, *arguments: str) -> str:
    alone = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path}/browser"]
    command = [BROWSER, *alone, "--host-resolver-rules=MAP * ~NOTFOUND", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "TMPDIR"}  # too long for its sockets
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=600, env=environment).stdout


MEASURE = """<script>
const box = e => e.getBoundingClientRect();
const seen = [...document.querySelectorAll("body *")].filter(e => !e.closest("svg, .scroll *"));
const wide = seen.filter(e => box(e).right > innerWidth + 1);
parent.document.title = JSON.stringify({width: innerWidth, page: document.documentElement.scrollWidth,
  wide: wide.map(e => e.outerHTML.slice(0, 80)), heads: getComputedStyle(document.querySelector("thead")).display,
  figure: box(document.querySelector("figure svg")).width, font: getComputedStyle(document.body).fontSize});
</script></body>"""


@pytest.mark.skipif(not BROWSER, reason="there is no Chromium")
@pytest.mark.parametrize("width", [360, 1300])
def test_page_in_a_browser(some_runs, capsule_sweeps, tmp_path, width) -> None:
    """Nothing is cut off at the width of a phone or of a desk; a frame can be narrower than a headless window."""
    capsule_sweeps("report", "--out", "page.html")
    page = escape(Path("page.html").read_text().replace("</body>", MEASURE))
    Path("frame.html").write_text(
        f'<meta charset="utf-8"><title></title><iframe style="border: 0; width: {width}px" srcdoc="{page}"></iframe>'
    )
    dom = browse(tmp_path, "--window-size=1400,900", "--dump-dom", Path("frame.html").absolute().as_uri())
    found = json.loads(re.search("<title>(.*?)</title>", dom)[1])
    assert found["width"] == width and found["page"] <= width and not found["wide"], found
    assert (found["heads"] == "none") == (width == 360)
    assert 200 < found["figure"] <= width and found["font"] == "16px"


@pytest.mark.skipif(not BROWSER, reason="there is no Chromium")
def test_page_in_print(some_runs, capsule_sweeps, tmp_path) -> None:
    capsule_sweeps("report", "--out", "page.html")
    browse(tmp_path, f"--print-to-pdf={tmp_path}/page.pdf", Path("page.html").absolute().as_uri())
    pdf = (tmp_path / "page.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and 1 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 6
