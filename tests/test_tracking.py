"""W&B as a mirror: what it is told, and that no trouble of it is a run's trouble."""

import json
import signal
import struct
import sys
import types
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]


def records(path: Path) -> Iterator[Any]:
    """The records of an offline log: 7 bytes of header, then LevelDB's framing in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    data, position, buffer = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        checksum, size, kind = struct.unpack("<IHB", data[position : position + 7])
        chunk = data[position + 7 : position + 7 + size]
        if kind == 0 or len(chunk) < size:
            return
        assert checksum == zlib.crc32(chunk, zlib.crc32(bytes([kind])))
        position += 7 + size
        buffer = chunk if kind in (1, 2) else buffer + chunk
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(buffer)


def read_log(path: Path) -> dict[str, Any]:
    """id, name, group, project, config, summary, history and exit code of an offline log."""
    log: dict[str, Any] = {"config": {}, "summary": {}, "history": [], "exit_code": None}

    def put(target: dict[str, Any], items: Any) -> None:
        for item in items:
            target[".".join(item.nested_key) or item.key] = json.loads(item.value_json)

    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            log |= {"id": run.run_id, "name": run.display_name, "group": run.run_group, "project": run.project}
            put(log["config"], run.config.update)
        elif kind == "config":
            put(log["config"], record.config.update)
        elif kind == "summary":
            put(log["summary"], record.summary.update)
        elif kind == "history":
            log["history"].append({})
            put(log["history"][-1], record.history.item)
        elif kind == "exit":
            log["exit_code"] = record.exit.exit_code
    return log


def logs(folder: Path) -> list[dict[str, Any]]:
    return [read_log(path) for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


@pytest.fixture
def offline(tmp_path) -> dict[str, str]:
    """Environment in which wandb keeps to a temporary home."""
    return {"HOME": str(tmp_path / "home"), "WANDB_ERROR_REPORTING": "false", "WANDB_API_KEY": "5ecre7" + 34 * "0"}


def test_offline_runs_can_be_read_back(python, tiny, runs, offline) -> None:
    base = [text for text in tiny if text != "tracking=none"]  # wandb is the default
    ended = python(ROOT / "launch.py", "-m", *base, "seed=0,1", **offline)
    assert ended.code == 0 and "W&B" not in ended.text, ended.text
    groups = set()
    for folder in runs.folders():
        (log,) = logs(folder)
        assert log["id"] == folder.name[-8:] and log["name"] == folder.name and log["project"] == "capsule_sweeps"
        assert log["exit_code"] == 0
        groups.add(log["group"])
        resolved = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        assert {key: value for key, value in log["config"].items() if key != "_wandb"} == resolved
        rows = [{key: value for key, value in row.items() if not key.startswith("_")} for row in log["history"]]
        assert rows == runs.metrics(folder)
        summary = json.loads((folder / "summary.json").read_text())
        for key in ("accuracy_last", "accuracy_best_test", "parameters", "seconds"):
            assert log["summary"][key] == summary[key]
        assert not any(
            offline["WANDB_API_KEY"].encode() in file.read_bytes() for file in folder.rglob("*.*") if file.is_file()
        )
    assert len(groups) == 1 and groups != {""}
    assert [path.name for path in Path.cwd().iterdir()] == ["runs"]


def test_interrupted_run_goes_on_in_the_same_wandb_run(hold, launch, python, tiny, runs, offline, monkeypatch) -> None:
    for key, value in offline.items():
        monkeypatch.setenv(key, value)
    assert hold("step", 8, "tracking=wandb").send(signal.SIGTERM) == 143
    ended = python(ROOT / "launch.py", *tiny, "tracking=wandb")
    assert ended.code == 0 and "W&B" not in ended.text
    both = logs(runs.only())
    assert [log["id"] for log in both] == [runs.only().name[-8:]] * 2
    assert [row["epoch"] for log in both for row in log["history"]] == [1, 2]


class FakeRun:
    def __init__(self, told: dict[str, Any], trouble: str) -> None:
        self.told, self.trouble, self.summary = told, trouble, self
        told |= {"rows": [], "summary": {}, "exit_code": None}

    def _maybe(self, method: str) -> None:
        if self.trouble == method:
            raise RuntimeError(f"{method} did not\nwork")

    def define_metric(self, *args: Any, **kwargs: Any) -> None:
        self._maybe("define_metric")

    def log(self, row: dict[str, Any]) -> None:
        self._maybe("log")
        self.told["rows"].append(dict(row))

    def update(self, values: dict[str, Any]) -> None:
        self._maybe("update")
        self.told["summary"] |= values

    def finish(self, exit_code: int = 0) -> None:
        self.told["exit_code"] = exit_code
        self._maybe("finish")


@pytest.fixture
def fake_wandb(monkeypatch):
    """wandb replaced by a module that remembers what it was told in the last run, and makes trouble where asked to."""

    def install(trouble: str = "") -> dict[str, Any]:
        told: dict[str, Any] = {}

        def init(**options: Any) -> FakeRun:
            if trouble == "init":
                raise RuntimeError("no init")
            told.clear()
            told.update(options)
            return FakeRun(told, trouble)

        module = types.ModuleType("wandb")
        module.init, module.Settings = init, lambda **options: options
        monkeypatch.setitem(sys.modules, "wandb", None if trouble == "missing" else module)
        return told

    return install


@pytest.mark.parametrize(
    ("setting", "variable", "mode"),
    [
        ("offline", None, "offline"),
        ("online", None, "online"),
        ("online", "offline", "offline"),
        ("disabled", "offline", "offline"),
        ("offline", "", "offline"),
        ("offline", "online", "online"),
        ("disabled", None, None),
        ("online", "disabled", None),
    ],
)
def test_environment_variable_wins(launch, fake_wandb, monkeypatch, setting, variable, mode) -> None:
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    told = fake_wandb()
    assert launch("tracking=wandb", f"tracking.mode={setting}").code == 0
    assert told.get("mode") == mode


def test_what_wandb_is_told(launch, fake_wandb, runs) -> None:
    told = fake_wandb()
    assert launch("tracking=wandb", "tracking.project=mine", "tracking.entity=me", "dataset.val_size=20").code == 0
    folder = runs.only()
    assert (told["id"], told["project"], told["entity"]) == (folder.name[-8:], "mine", "me")
    assert told["config"] == OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert told["rows"] == runs.metrics(folder)
    assert told["summary"].items() <= json.loads((folder / "summary.json").read_text()).items()
    assert told["exit_code"] == 0


def test_group_is_the_sweep_and_the_same_at_every_repeat(launch, fake_wandb) -> None:
    told = fake_wandb()
    assert launch("-m", "tracking=wandb", "seed=0,1", signal_at=(signal.SIGTERM, 13)).code == 143
    group = told["group"]
    told.clear()
    assert launch("-m", "tracking=wandb", "seed=1,0").code == 0
    assert told["group"] == group
    assert launch("-m", "tracking=wandb", "seed=2,3").code == 0
    assert told["group"] != group


def test_failed_run_is_marked(launch, fake_wandb) -> None:
    told = fake_wandb()
    assert launch("tracking=wandb", "training.lr=1e30").code == 1
    assert told["exit_code"] == 1


@pytest.mark.parametrize("trouble", ["missing", "init", "define_metric", "log", "update", "finish"])
def test_trouble_of_wandb_is_not_the_runs(launch, fake_wandb, runs, trouble) -> None:
    assert launch("runs_dir=untouched").code == 0
    fake_wandb(trouble)
    ended = launch("tracking=wandb")
    assert ended.code == 0 and "Traceback" not in ended.text
    assert "W&B" in ended.text  # said, once or more
    runs.assert_same(runs.only(), runs.only("untouched"))


def test_disabled_and_none_write_nothing_and_import_nothing(python, tiny, runs, tmp_path) -> None:
    ended = python("-X", "importtime", ROOT / "launch.py", *tiny, "tracking=wandb", WANDB_MODE="disabled")
    assert ended.code == 0
    assert not [line for line in ended.err.splitlines() if line.endswith("| wandb") or line.rstrip().endswith(" wandb")]
    assert not list(Path.cwd().rglob("*wandb*")) and not list((tmp_path / "home").rglob("*wandb*"))
