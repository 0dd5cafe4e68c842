"""The commands as a user types them: options, exit codes, completion, thousands of runs."""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from synthetic import make_run

from capsule_sweeps import __version__, cli, load_runs
from capsule_sweeps.cli.main import make_parser
from capsule_sweeps.runs.signature import signature as hash_of

ROOT = Path(__file__).resolve().parents[2]
ACTING = ["cancel", "retry", "gc", "sync", "prepare-data"]
COMMANDS = ["status", "results", "show", "doctor", "evaluate", "describe", "bench", "diff", *ACTING]
MANY = 2_000


def parsers() -> dict[str, argparse.ArgumentParser]:
    return make_parser()[1]


def options(command: str) -> set[str]:
    return {text for action in parsers()[command]._actions for text in action.option_strings}


def test_each_file_is_a_command_and_why_an_alias_of_show() -> None:
    files = {path.stem.replace("_", "-") for path in (ROOT / "capsule_sweeps/cli").glob("*.py")}
    assert files - {"--init--", "main"} == set(parsers()) >= {*COMMANDS, "why", "import-checkpoint"}


def test_commands_that_print_take_a_format_and_those_that_act_take_none() -> None:
    for command in COMMANDS:
        assert "--runs-dir" in options(command) or command in ("prepare-data", "describe", "bench")
        assert ("--format" in options(command)) == (command not in ACTING), command


def test_a_new_command_is_one_new_file(tmp_path, monkeypatch, capsule_sweeps) -> None:
    source = '''"""Greet somebody."""

def add_arguments(parser):
    parser.add_argument("names", nargs="*")
    parser.add_argument("--loud", action="store_true")

def run(arguments):
    text = " ".join(["hello", *arguments.names])
    print(text.upper() if arguments.loud else text)
'''
    (tmp_path / "say_hello.py").write_text(source)
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "capsule_sweeps.cli.say_hello", raising=False)
    assert capsule_sweeps("say-hello", "a", "--loud", "b=1").out == "HELLO A B=1\n"
    assert "say-hello" in (overview := capsule_sweeps("--help").out) and "Greet somebody." in overview


def test_a_broken_command_breaks_no_other(tmp_path, monkeypatch, capsule_sweeps) -> None:
    (tmp_path / "broken.py").write_text("import nothing_like_this")
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    (tmp_path / "runs").mkdir()
    assert "no run is in" in capsule_sweeps("status", "--runs-dir", str(tmp_path / "runs")).err
    (tmp_path / "broken.py").write_text("def add_arguments(parser): ...")
    ended = capsule_sweeps("broken")
    assert ended.code == 1 and "broken.py is no command: define the function run in it" in ended.err, ended.text


@pytest.mark.parametrize("words", [["--version"], ["-h"]])
def test_version_and_overview(python, words) -> None:
    started = time.perf_counter()
    ended = python("-X", "importtime", "-m", "capsule_sweeps", *words, PYTHONPATH=str(ROOT))
    print(f"{words[0]}: {time.perf_counter() - started:.2f} s")
    assert ended.code == 0
    assert not re.search(r"\| +(torch|numpy|pandas|rich|hydra|omegaconf)$", ended.err, re.MULTILINE)
    assert ended.out == f"capsule_sweeps {__version__}\n" if words == ["--version"] else "why" not in ended.out


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "RUN", "data_dir=x", "device=cpu", "--format", "md"],
        ["evaluate", "--format", "md", "RUN", "data_dir=x", "device=cpu"],
        ["evaluate", "RUN", "data_dir=x", "--format=md", "device=cpu"],
        ["evaluate", "RUN", "--format", "md", "data_dir=x", "device=cpu"],
    ],
)
def test_options_stand_before_between_and_behind_overrides(words, monkeypatch, capsule_sweeps) -> None:
    seen = []
    monkeypatch.setattr("capsule_sweeps.cli.evaluate.run", seen.append)
    assert capsule_sweeps(*words).code == 0
    assert (seen[0].runs, seen[0].format) == (["RUN", "data_dir=x", "device=cpu"], "md")


def test_without_a_command_all_are_listed(capsule_sweeps) -> None:
    ended = capsule_sweeps()
    assert (ended.code, ended.out) == (2, "") and "Print the table of accuracies" in ended.err


@pytest.mark.parametrize("word", ["--runs-dir", "--out"])
def test_a_path_may_begin_at_home(word, monkeypatch, capsule_sweeps, tmp_path) -> None:
    seen = []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("capsule_sweeps.cli.report.run", seen.append)
    capsule_sweeps("report", f"{word}=~/here")
    assert vars(seen[0])[word.strip("-").replace("-", "_")] == tmp_path / "here"
    ended = capsule_sweeps("report", f"{word}=~/{'x' * 300}")
    assert ended.code == 2 and len(seen) == 1, "before anything is computed"
    assert f"{word}: {'x' * 20}… is too long: a name has up to 250 bytes" in ended.err
    ended = capsule_sweeps("report", f"{word}=~nobody-here/x")
    assert ended.code == 2 and "the home folder of ~nobody-here is unknown; set the whole path" in ended.err
    with pytest.raises(ValueError, match="the home folder of ~nobody-here is unknown"):
        load_runs("~nobody-here/runs")
    for words in (["status", "~nobody-here/x"], ["diff", "a", "~nobody-here/x"], ["tag", "~nobody-here/x", "+y"]):
        assert "the home folder of ~nobody-here is unknown" in capsule_sweeps(*words).err
    assert (word == "--out") == ("name a file in it" in capsule_sweeps("report", f"{word}=.").err)


@pytest.mark.parametrize("command", ["status", "results", "cancel", "retry", "gc"])
def test_each_command_takes_filters(command) -> None:
    parsed = make_parser(command)[0].parse_args([command, "dataset=CIFAR10", "num_routing=2", "state=failed"])
    assert parsed.runs == ["dataset=CIFAR10", "num_routing=2", "state=failed"]


@pytest.mark.parametrize(
    "arguments", [[], ["nothing"], ["status", "--format", "xml"], ["results", "--rule", "best"], ["gc", "--format=csv"]]
)
def test_wrong_usage(capsule_sweeps, arguments) -> None:
    ended = capsule_sweeps(*arguments)
    assert ended.code == 2 and "usage" in ended.err


def test_help(capsule_sweeps) -> None:
    for command in COMMANDS:
        ended = capsule_sweeps(command, "--help")
        assert ended.code == 0 and "--help" in ended.out and ended.out.count("\n\n") >= 2


def test_watch_shows_it_again_until_ctrl_c(tiny_config, capsule_sweeps, monkeypatch) -> None:
    make_run(tiny_config())
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        make_run(tiny_config("seed=1"), "failed")
        if len(naps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", nap)
    ended = capsule_sweeps("status", "--watch")
    assert ended.code == 130 and "Traceback" not in ended.text
    assert "1 finished, 1 failed" in ended.out and ended.out.count("Runs in runs") == 2


@pytest.mark.slow
def test_reader_that_leaves_early_is_no_traceback(tiny_config, place) -> None:
    config = tiny_config()
    for config.seed in range(30):
        make_run(config)
    command = f"{sys.executable} -m capsule_sweeps status --format md | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.startswith("| run") and done.stderr == ""
    command = f"{sys.executable} {ROOT / 'launch.py'} --help | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.startswith("Trains") and done.stderr == ""


def test_prepare_data_says_what_is_ready(capsule_sweeps, place, data_dir) -> None:
    ended = capsule_sweeps("prepare-data", "dataset=digits", f"data_dir={data_dir}")
    assert ended.code == 0 and re.search(r"digits: 1,400 training images and 397 test images", ended.out)
    ended = capsule_sweeps("prepare-data", "dataset=MNIST,digits", f"data_dir={data_dir}")
    assert ended.code == 1 and ended.err.startswith("Error: ") and "MNIST" in ended.err
    assert "digits: 1,400 training images and 397 test images are ready" in ended.out  # whatever became of the others
    assert not Path("runs").exists()


def test_nothing_that_lists_imports_torch(tiny_config, python) -> None:
    name, other = (make_run(tiny_config(f"seed={seed}")).folder.name for seed in (0, 1))
    program = """
import sys
from capsule_sweeps.__main__ import main
for line in sys.argv[1:]:
    sys.argv = ["capsule-sweeps", *line.split()]
    try:
        main()
    except SystemExit as leaving:  # of --help
        assert not leaving.code, line
    found = {"torch", "torchvision", "wandb", "sklearn"} & set(sys.modules)
    assert not found, (line, found)
"""
    lines = [
        "status",
        "status state=finished --format json",
        "results",
        f"show {name}",
        f"why {name}",
        f"diff {name} {other}",
    ]
    ended = python("-c", program, *lines, "gc", "cancel seed=0", "gc --yes", "report", "describe --help")
    assert ended.code == 0 and ended.err == "", ended.err


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("line", "offered", "not_offered"),
    [
        ("capsule-sweeps ", {*COMMANDS, "why", "export", "import-checkpoint"}, {}),
        ("capsule-sweeps st", {"status"}, {"show"}),
        ("capsule-sweeps evaluate --", {"--num-routing", "--figure", "--format"}, {"--out"}),
        ("capsule-sweeps status --f", {"--format"}, {"--watch"}),
        ("capsule-sweeps gc --", {"--yes", "--runs-dir"}, {"--format"}),
        ("capsule-sweeps results --rule ", {"last", "best_val", "best_test", "ema_last"}, {}),
        ("capsule-sweeps show --format ", {"table", "md", "csv", "json"}, {}),
    ],
)
def test_tab_completion(python, tmp_path, line, offered, not_offered) -> None:
    environment = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    environment["_ARGCOMPLETE_STDOUT_FILENAME"] = str(tmp_path / "offered")
    ended = python("-X", "importtime", "-m", "capsule_sweeps", PYTHONPATH=str(ROOT), **environment)
    found = {word.strip() for word in (tmp_path / "offered").read_text().split("\n")}
    assert set(offered) <= found and not set(not_offered) & found
    assert not re.search(r"\| +(torch|numpy|pandas|hydra)$", ended.err, re.MULTILINE)


def test_readme_and_help_quote_what_a_shell_expands(capsule_sweeps) -> None:
    texts = [(ROOT / "README.md").read_text(), (ROOT / "conf/hydra/help/launch.yaml").read_text()]
    lines = [line for text in texts for line in text.splitlines() if re.search(r"^ *python launch.py", line)]
    found = [line for line in lines if re.search(r"=(range|choice|glob)\(", line)]
    assert found
    for line in found:
        assert re.search(r"'[^']*=(range|choice|glob)\([^']*'", line), line
    assert all("quote" in text for text in texts)


@pytest.mark.slow
def test_thousands_of_runs_are_read(tiny_config, capsule_sweeps, runs) -> None:
    """No time is asserted; it is said (pytest -s)."""
    run = make_run(tiny_config())
    record, attempt = runs.record(run.folder), (run.folder / "attempt-1.json").read_bytes()
    for number in range(1, MANY):
        signed = {**record["signed_config"], "seed": number}
        signature = hash_of(signed)
        folder = Path("runs") / f"digits-capsnet-simple-inverted_attention-r1-s{number}-{signature}"
        folder.mkdir()
        state = "finished" if number % 2 else "failed"
        changes = {"seed": number, "signature": signature, "run": folder.name, "state": state, "signed_config": signed}
        (folder / "run.json").write_text(json.dumps({**record, **changes}))
        (folder / "attempt-1.json").write_bytes(attempt)
        if number % 2:
            (folder / "summary.json").write_text("{}")
    for command in (["status"], ["results"], ["status", "--format", "csv"], ["status", "seed=77"]):
        started = time.perf_counter()
        ended = capsule_sweeps(*command)
        sys.__stderr__.write(f"{' '.join(command)} over {MANY} runs: {time.perf_counter() - started:.1f} s\n")
        assert ended.code == 0
        if command == ["status"]:
            assert f"{MANY // 2 + 1} finished, {MANY // 2 - 1} failed" in ended.out
        if command[-1] == "csv":
            assert len(ended.out.splitlines()) == MANY + 1
        if command == ["results"]:
            assert f"Left out: {MANY // 2 - 1} of {MANY:,} runs" in " ".join(ended.out.split())
    assert capsule_sweeps("show", folder.name, "--format", "json").code == 0
    assert capsule_sweeps("why", folder.name).code == 0
    assert os.listdir(".") == ["runs"]
