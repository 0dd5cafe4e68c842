"""W&B as a mirror: what it receives, and that its failures never fail a run."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import types
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
from conftest import PATIENCE
from omegaconf import OmegaConf

from capsule_sweeps.runs.record import read_record
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signature import columns
from capsule_sweeps.tracking import wandb as tracking
from capsule_sweeps.tracking import wandb_client as client
from capsule_sweeps.tracking.base import prepare
from capsule_sweeps.tracking.wandb_send import METRICS, facts_of, summary_keys

ROOT = Path(__file__).resolve().parents[2]


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
    """id, name, group, …, config, summary, history and exit code of an offline log, and whether it is preempted."""
    log: dict[str, Any] = {"config": {}, "summary": {}, "history": [], "exit_code": None, "preempting": False}

    def put(target: dict[str, Any], items: Any) -> None:
        for item in items:
            target[".".join(item.nested_key) or item.key] = json.loads(item.value_json)

    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            log |= {"id": run.run_id, "name": run.display_name, "group": run.run_group, "project": run.project}
            log |= {"job_type": run.job_type, "tags": list(run.tags)}
            put(log["config"], run.config.update)
        elif kind == "config":
            put(log["config"], record.config.update)
        elif kind == "summary":
            put(log["summary"], record.summary.update)
        elif kind == "history":
            log["history"].append({})
            put(log["history"][-1], record.history.item)
        elif kind == "metric":
            log.setdefault("metrics", {})[record.metric.glob_name or record.metric.name] = record.metric.step_metric
        elif kind == "preempting":
            log["preempting"] = True
        elif kind == "exit":
            log["exit_code"] = record.exit.exit_code
    return log


def logs(folder: Path) -> list[dict[str, Any]]:
    return [read_log(path) for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


def rows_of(log: dict[str, Any]) -> list[dict[str, Any]]:
    """What was logged, without W&B's own keys."""
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in log["history"]]


def expected_config(folder: Path) -> dict[str, Any]:
    config = OmegaConf.load(folder / "config.yaml")
    facts = facts_of(read_record(folder))
    assert facts["origin"] and facts["data_sha256"]
    return {**columns(config), **facts, "resolved": OmegaConf.to_container(config)}


def test_offline_runs_can_be_read_back(python, tiny, runs) -> None:
    base = [text for text in tiny if text != "tracking=none"]  # wandb is the default
    ended = python(ROOT / "launch.py", "-m", *base, "seed=0,1", "dataset.val_size=20", "training.ema=0.9")
    assert ended.code == 0, ended.text
    said = [line for line in ended.text.splitlines() if "W&B" in line]
    assert len(said) == 1 and "offline" in said[0] and "WANDB_API_KEY" in said[0] and "sync" in said[0]
    assert "wandb: WARNING" not in ended.text
    groups = set()
    for folder in runs.folders():
        (log,) = logs(folder)
        assert (log["id"], log["name"], log["project"]) == (folder.name[-8:], folder.name, "capsule_sweeps")
        assert (log["job_type"], log["exit_code"], log["preempting"]) == ("train", 0, False)
        assert {"digits", "capsnet", "simple", "inverted_attention"} == set(log["tags"])
        assert log["metrics"]["*"] == "epoch"
        groups.add(log["group"])
        assert {key: value for key, value in log["config"].items() if key != "_wandb"} == expected_config(folder)
        assert rows_of(log) == runs.metrics(folder)
        assert [row["_step"] for row in log["history"]] == [row["epoch"] for row in log["history"]]
        assert set(rows_of(log)[0]) == set(METRICS)
        summary = json.loads((folder / "summary.json").read_text())
        assert {key: log["summary"][key] for key in summary_keys()} == {key: summary[key] for key in summary_keys()}
    assert len(groups) == 1 and groups != {""}
    assert [path.name for path in Path.cwd().iterdir()] == ["runs"]
    assert_as_wandb_reads_it(folder, log)


def assert_as_wandb_reads_it(folder: Path, log: dict[str, Any]) -> None:
    """The reader above agrees with W&B's own."""
    (path,) = folder.glob("wandb/offline-run-*")
    inspect = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--summary", "--json", path]
    told = json.loads(subprocess.run(inspect, capture_output=True, text=True, check=True).stdout)
    assert (told["run_id"], told["name"], told["state"]) == (log["id"], log["name"], "finished")
    assert told["summary"]["accuracy_last"] == log["summary"]["accuracy_last"]
    assert told["config"]["num_routing"] == log["config"]["num_routing"] == 1


# ── killed, interrupted, resumed ─────────────────────────────────────────────────────────────────────────────────────


def test_interrupted_run_resumes_in_the_same_offline_run(hold, python, tiny, runs) -> None:
    assert hold("step", 8, "tracking=wandb").send(signal.SIGTERM) == 143
    (log,) = logs(runs.only())
    assert log["preempting"] and log["exit_code"] == 143
    assert [row["epoch"] for row in log["history"]] == [1]
    ended = python(ROOT / "launch.py", *tiny, "tracking=wandb")
    assert ended.code == 0
    (log,) = logs(runs.only())
    assert log["id"] == runs.only().name[-8:] and log["exit_code"] == 0
    assert rows_of(log) == runs.metrics(runs.only())


def wait_for(condition: Any) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_epochs_after_the_last_checkpoint_are_not_there_twice(hold, python, tiny, runs, wandb_server) -> None:
    """Killed in the middle of epoch 4 with a checkpoint of epoch 2: epoch 3 is trained again."""
    settings = ["tracking=wandb", "training.epochs=5", "training.checkpoint_epochs=2"]
    held = hold("step", 17, *settings)
    identity = runs.only().name[-8:]
    wait_for(lambda: len(wandb_server.runs[identity]["history"]) == 3)
    held.kill()
    assert wandb_server.state(wandb_server.runs[identity]) == "running"
    ended = python(ROOT / "launch.py", *tiny, *settings)
    assert ended.code == 0 and "W&B" not in ended.text, ended.text
    assert [row["epoch"] for row in wandb_server.rows(identity)] == [1, 2, 3, 4, 5]
    assert [row["test_accuracy"] for row in wandb_server.rows(identity)] == [
        row["test_accuracy"] for row in runs.metrics(runs.only())
    ]
    assert wandb_server.state(wandb_server.runs[identity]) == "finished" and not wandb_server.unknown


def test_offline_log_survives_a_kill(hold, runs) -> None:
    held = hold("step", 8, "tracking=wandb")
    wait_for(lambda: logs(runs.only()) and logs(runs.only())[0]["history"])
    held.kill()
    (log,) = logs(runs.only())
    assert rows_of(log) == runs.metrics(runs.only()) and log["config"]["seed"] == 0


def test_run_that_began_offline_is_whole_online(hold, python, tiny, runs, wandb_server) -> None:
    assert hold("step", 8, "tracking=wandb", "tracking.mode=offline").send(signal.SIGTERM) == 143
    assert not wandb_server.num_requests
    assert python(ROOT / "launch.py", *tiny, "tracking=wandb").code == 0
    assert wandb_server.rows(runs.only().name[-8:]) == runs.metrics(runs.only())


# ── online ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_online_sweep(python, tiny, runs, wandb_server) -> None:
    ended = python(ROOT / "launch.py", "-m", *tiny, "tracking=wandb", "seed=0,1", "hydra.launcher.parallel=2")
    assert ended.code == 0 and "W&B" not in ended.text and not wandb_server.unknown, ended.text
    groups = set()
    for folder in runs.folders():
        run = wandb_server.runs[folder.name[-8:]]
        assert (run["name"], run["project"], run["jobType"]) == (folder.name, "capsule_sweeps", "train")
        assert wandb_server.state(run) == "finished"
        assert wandb_server.rows(folder.name[-8:]) == runs.metrics(folder)
        assert wandb_server.config(folder.name[-8:]) == expected_config(folder)
        assert (
            run["summary"]["accuracy_best_test"]
            == json.loads((folder / "summary.json").read_text())["accuracy_best_test"]
        )
        assert os.environ["WANDB_API_KEY"].encode() not in b"".join(
            file.read_bytes() for file in folder.rglob("*") if file.is_file()
        )
        groups.add(run["group"])
    assert len(groups) == 1


@pytest.mark.nightly
def test_interrupted_run_reads_as_preempted(hold, wandb_server) -> None:
    assert hold("step", 8, "tracking=wandb").send(signal.SIGTERM) == 143
    (run,) = wandb_server.runs.values()
    assert wandb_server.state(run) == "preempted"


def test_key_of_another_server_is_no_key(place, wandb_server, monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    path = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(path))
    code = "import os, psutil; from capsule_sweeps.tracking.wandb_client import obstacle; print(obstacle())\n"
    code += "assert not psutil.Process().children() and 'WANDB_SERVICE' not in os.environ"  # which children would get

    def told(machine: str) -> str:
        path.write_text(f"machine {machine} login user password {40 * 'a'}")
        path.chmod(0o600)
        command = [sys.executable, "-c", code]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout

    assert "no API key" in told("elsewhere.example") and not wandb_server.num_requests
    assert told(wandb_server.url.removeprefix("http://")) == "None\n"


@pytest.mark.parametrize(
    ("trouble", "mode"), [("refused", "auto"), ("silent", "auto"), ("broken", "auto"), ("broken", "online")]
)
def test_server_that_does_not_answer_means_offline(
    place, wandb_server, monkeypatch, caplog, tiny_config, mode, trouble
) -> None:
    if trouble == "refused":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(client, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(client, "server_url", lambda: os.environ["WANDB_BASE_URL"])
    wandb_server.silent = trouble == "silent"
    wandb_server.broken = trouble == "broken"
    configs = [tiny_config("tracking=wandb", f"tracking.mode={mode}", f"seed={seed}") for seed in (0, 1)]
    prepare(configs)
    assert [config.tracking.mode for config in configs] == ["offline", "offline"]
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("capsule_sweeps")]
    assert "offline" in said and "127.0.0.1" in said and "sync --runs-dir runs" in said


def test_wandb_mode_that_is_unknown(launch, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "later")
    ended = launch("tracking=wandb")
    assert ended.code == 1 and "WANDB_MODE=later" in ended.err and not Path("runs").exists()


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("trouble", ["server killed", "server silent", "service killed", "service stands still"])
def test_what_is_lost_in_the_middle_costs_no_run(hold, runs, launch, place, monkeypatch, trouble) -> None:
    """The stand-in in a process of its own is killed or stopped, or W&B's own process is, while a run is in epoch 2."""
    server = subprocess.Popen(
        [sys.executable, ROOT / "tests/wandb_server.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        monkeypatch.setenv("WANDB_BASE_URL", server.stdout.readline().strip())
        monkeypatch.setenv("WANDB_API_KEY", 40 * "a")
        held = hold("step", 8, "hydra.mode=MULTIRUN", "tracking=wandb", "tracking.mode=online", "seed=0,1")
        (service,) = [
            child
            for child in psutil.Process(held.process.pid).children(recursive=True)
            if child.name().startswith("wandb-core")
        ]
        lost = service if trouble.startswith("service") else psutil.Process(server.pid)
        lost.send_signal(signal.SIGKILL if "killed" in trouble else signal.SIGSTOP)
        assert held.release() == 0, held.output.read_text()  # without bounds it would never end
    finally:
        server.kill()
        server.communicate()
    assert len(runs.folders()) == 2
    assert "W&B" in held.output.read_text() and "Traceback" not in held.output.read_text()
    assert not psutil.pid_exists(service.pid) or service.status() == psutil.STATUS_ZOMBIE
    monkeypatch.delenv("WANDB_API_KEY")
    assert launch("-m", "runs_dir=untouched", "seed=0,1").code == 0
    for one, other in zip(runs.folders(), runs.folders("untouched"), strict=True):
        runs.assert_same(one, other)


# ── what W&B receives ─────────────────────────────────────────────────────────────────────────────────────────────────


class FakeRun:
    def __init__(self, told: dict[str, Any], trouble: str) -> None:
        self.told, self.trouble, self.summary, self.starting_step, self.offline = told, trouble, self, 0, False
        self.id, self.entity, self.project, self.url = (
            told["id"],
            told["entity"],
            told["project"],
            "https://wandb.example/run",
        )
        told |= {"rows": [], "summary": {}, "exit_code": None, "preempting": False}

    def _maybe(self, method: str) -> None:
        if self.trouble == method:
            raise RuntimeError(f"{method} did not\nwork")

    def define_metric(self, *args: Any, **kwargs: Any) -> None:
        self._maybe("define_metric")

    def log(self, row: dict[str, Any], step: int, commit: bool) -> None:
        self._maybe("log")
        assert step == row["epoch"] and commit
        self.told["rows"].append(dict(row))

    def mark_preempting(self) -> None:
        self._maybe("mark_preempting")
        self.told["preempting"] = True

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
            if trouble == "init" or trouble == f"{options['mode']} init":
                raise RuntimeError("no init")
            if trouble == "deleted" and "-" not in options["id"]:
                raise RuntimeError(f"HTTP 409: run {options['id']} was previously created and deleted")
            told.clear()
            told.update(options)
            return FakeRun(told, trouble)

        module = types.ModuleType("wandb")
        module.init, module.Settings = init, lambda **options: options
        monkeypatch.setitem(sys.modules, "wandb", None if trouble == "missing" else module)
        monkeypatch.setattr(tracking, "obstacle", lambda: None)
        monkeypatch.setattr(tracking, "find", lambda entity, project, identity: there.get(identity))
        return told

    there: dict[str, Any] = {}  # id → the run in W&B
    install.there = there  # type: ignore[attr-defined]
    return install


def test_what_wandb_receives(launch, fake_wandb, runs) -> None:
    told = fake_wandb()
    assert launch("tracking=wandb", "tracking.project=mine", "tracking.entity=me", "dataset.val_size=20").code == 0
    folder = runs.only()
    assert (told["id"], told["project"], told["entity"]) == (folder.name[-8:], "mine", "me")
    assert told["config"] == expected_config(folder)
    assert told["rows"] == runs.metrics(folder)
    assert told["summary"].items() <= json.loads((folder / "summary.json").read_text()).items()
    assert told["exit_code"] == 0
    record = runs.record(folder)
    assert [record[f"wandb_{key}"] for key in ("id", "entity", "project")] == [folder.name[-8:], "me", "mine"]
    assert record["wandb_url"] == "https://wandb.example/run"


@pytest.mark.parametrize("origin", ["0123456789ab", None])
def test_another_folders_run_of_the_same_name_is_left_alone(launch, fake_wandb, runs, origin) -> None:
    """Two people, or two trees of images called photos, have one signature and one project."""
    told = fake_wandb()
    launch("tracking=wandb", "runs_dir=elsewhere", "training.epochs=1")
    signature = runs.only("elsewhere").name[-8:]
    fake_wandb.there[signature] = types.SimpleNamespace(config={"origin": origin})
    ended = launch("tracking=wandb", "training.epochs=1", signal_at=(signal.SIGTERM, 3))
    assert ended.code == 143 and told["id"] == f"{signature}-2"
    assert f"{signature} is the run of another run folder; this run is sent as {signature}-2" in ended.text
    fake_wandb.there[f"{signature}-2"] = types.SimpleNamespace(config=dict(told["config"]))
    ended = launch("tracking=wandb", "training.epochs=1")
    assert ended.code == 0 and told["id"] == f"{signature}-2" and "W&B" not in ended.text
    assert runs.record(runs.only())["wandb_id"] == f"{signature}-2"


def test_own_run_is_resumed_also_when_its_folder_has_moved(launch, fake_wandb, runs) -> None:
    told = fake_wandb("online init")  # so that run.json does not know it as online
    launch("tracking=wandb", signal_at=(signal.SIGTERM, 3))
    config = dict(told["config"])
    Path("runs").rename("moved")
    told = fake_wandb()
    fake_wandb.there[config["signature"]] = types.SimpleNamespace(config=config)
    assert launch("tracking=wandb", "runs_dir=moved").code == 0
    assert told["id"] == config["signature"] and told["config"]["origin"] == config["origin"]


def test_server_that_cannot_say_whose_run_it_has_means_offline(launch, fake_wandb, monkeypatch) -> None:
    told = fake_wandb()

    def fail(*_: Any) -> None:
        raise RuntimeError("HTTP 500")

    monkeypatch.setattr(tracking, "find", fail)
    ended = launch("tracking=wandb")
    assert ended.code == 0 and told["mode"] == "offline" and "this run is offline, HTTP 500" in ended.text


def test_names_are_as_short_as_wandb_allows(fake_wandb, tiny_config, place) -> None:
    """W&B refuses names and groups of more than 128 letters and tags of more than 64, for ever."""
    told = fake_wandb()
    config = tiny_config("tracking=wandb", "dataset.name=" + 200 * "x", "dataset.source=npz", "dataset.root=a")
    client.init("offline", config, place, "abc", "sweep-" + 200 * "0", (None, "p"), {})
    assert told["name"] == columns(config)["run"] and len(told["name"]) <= 128
    assert len(told["group"]) == 128 and max(map(len, told["tags"])) == 64
    assert client.shortened("short", 128) == "short"


@pytest.mark.parametrize("project", ["a/b", 129 * "x"])
def test_project_that_wandb_refuses_is_reported_before_a_run_starts(launch, runs, project) -> None:
    ended = launch("tracking=wandb", "tracking.mode=offline", f"tracking.project={project}")
    assert ended.code == 1 and "project" in ended.err and ended.err.count("\n") == 1 and not runs.folders()


def test_settings_are_those_that_this_wandb_has(monkeypatch) -> None:
    import wandb

    told = client.make_settings(x_from_the_future=1)
    assert told.finish_timeout == client.FINISH_SECONDS and told.x_disable_stats is False, "people look at GPU use"
    fields = {name: field for name, field in wandb.Settings.model_fields.items() if "flush" not in name}
    monkeypatch.setattr(wandb, "Settings", Strict)
    Strict.model_fields = fields
    assert "x_transaction_log_flush_interval" not in client.make_settings().given


class Strict:
    """wandb.Settings of a version with these fields."""

    model_fields: ClassVar[dict[str, Any]] = {}

    def __init__(self, **given: Any) -> None:
        assert given.keys() <= self.model_fields.keys()
        self.given = given


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
    assert told["exit_code"] == 1 and not told["preempting"]


@pytest.mark.slow
def test_run_from_scratch_gets_a_name_of_its_own(launch, fake_wandb, runs) -> None:
    """Also when `gc` removed what was put aside, and when the new run is interrupted and resumes."""
    told = fake_wandb()
    force = ("tracking=wandb", "hydra.launcher.force=true")
    launch("tracking=wandb")
    signature = runs.only().name[-8:]
    assert told["id"] == signature
    assert launch(*force, signal_at=(signal.SIGTERM, 7)).code == 143
    assert told["id"] == f"{signature}-2" and told["preempting"]
    told.clear()
    assert launch("tracking=wandb").code == 0
    assert told["id"] == f"{signature}-2" and len(told["rows"]) == 2
    assert launch(*force).code == 0 and told["id"] == f"{signature}-3"
    for path in Path("runs/.superseded").glob("*.1"):
        shutil.rmtree(path)
    assert launch(*force).code == 0 and told["id"] == f"{signature}-4"


def test_agents_id_wins_and_the_signature_goes_into_the_config(launch, fake_wandb, monkeypatch, runs) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    told = fake_wandb()
    launch("tracking=wandb", "seed=1")
    (folder,) = runs.folders()
    assert told["id"] == folder.name[-8:]  # set by hand it is no agent's
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    launch("tracking=wandb", "seed=2")
    assert told["id"] == "abc123" and told["config"]["signature"] == next(
        folder.name[-8:] for folder in runs.folders() if "s2" in folder.name
    )
    ended = launch("-m", "tracking=wandb", "seed=3,4")
    assert ended.code == 1 and "agent" in ended.err and len(runs.folders()) == 2


@pytest.mark.parametrize(
    ("stored", "environment", "overrides", "expected"),
    [
        ("", {}, ["tracking.mode=offline"], ("offline", None, "capsule_sweeps")),
        ("", {"WANDB_MODE": "offline"}, ["tracking.mode=online"], ("offline", None, "capsule_sweeps")),
        ("", {"WANDB_MODE": "offline"}, ["tracking.mode=disabled"], ("offline", None, "capsule_sweeps")),
        ("", {"WANDB_MODE": ""}, ["tracking.mode=offline"], ("offline", None, "capsule_sweeps")),
        ("", {"WANDB_MODE": "online"}, ["tracking.mode=offline"], ("online", None, "capsule_sweeps")),
        ("", {}, ["tracking.mode=disabled"], ("disabled", None, None)),
        ("", {"WANDB_MODE": "disabled"}, ["tracking.mode=online"], ("disabled", None, None)),
        ("", {}, [], ("online", None, "capsule_sweeps")),
        ("mode = offline", {}, [], ("offline", None, "capsule_sweeps")),
        ("mode = disabled", {}, [], ("disabled", None, None)),
        ("mode = disabled", {}, ["tracking.mode=offline"], ("offline", None, "capsule_sweeps")),
        ("mode = disabled", {"WANDB_MODE": "dryrun"}, [], ("offline", None, "capsule_sweeps")),
        ("entity = team\nproject = theirs", {}, [], ("online", "team", "theirs")),
        ("entity = team", {"WANDB_ENTITY": "other", "WANDB_PROJECT": "mine"}, [], ("online", "other", "mine")),
        ("entity = team", {}, ["tracking.entity=me", "tracking.project=own"], ("online", "me", "own")),
    ],
)
def test_environment_wins_over_keys_and_keys_over_settings_of_wandb(
    tiny_config, monkeypatch, stored, environment, overrides, expected
) -> None:
    from wandb.sdk import wandb_setup

    monkeypatch.setattr(wandb_setup, "_singleton", None)
    monkeypatch.setattr(tracking, "obstacle", lambda: None)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    path = Path("~/.config/wandb/settings").expanduser()
    path.parent.mkdir(parents=True)
    path.write_text(f"[default]\n{stored}\n")
    config = tiny_config("tracking=wandb", *overrides)
    prepare([config])
    assert (config.tracking.mode, config.tracking.entity, config.tracking.project) == expected


def test_run_that_was_deleted_there_gets_another_id(launch, fake_wandb, runs) -> None:
    told = fake_wandb("deleted")
    ended = launch("tracking=wandb", signal_at=(signal.SIGTERM, 7))
    identity = f"{runs.only().name[-8:]}-2"
    assert ended.code == 143 and f"was deleted there; this run is sent as {identity}" in ended.text
    assert told["id"] == identity == runs.record(runs.only())["wandb_id"] and told["mode"] == "online"
    ended = launch("tracking=wandb")
    assert ended.code == 0 and told["id"] == identity and "W&B" not in ended.text


def test_online_run_that_cannot_be_started_is_kept_offline(launch, fake_wandb) -> None:
    told = fake_wandb("online init")
    ended = launch("tracking=wandb")
    assert ended.code == 0 and ended.text.count("W&B: this run is offline, no init") == 1
    assert told["mode"] == "offline" and len(told["rows"]) == 2


def test_server_that_refuses_a_run_costs_no_epoch(python, tiny, runs, wandb_server, monkeypatch) -> None:
    """wandb would say that the id is in use, had its service not been ended."""
    monkeypatch.delattr(type(wandb_server), "gql_UpsertBucket")
    ended = python(ROOT / "launch.py", *tiny, "tracking=wandb")
    assert ended.code == 0 and "this run is offline" in ended.text, ended.text
    (log,) = logs(runs.only())
    assert rows_of(log) == runs.metrics(runs.only())


def test_one_decision_for_the_whole_sweep(tiny_config, monkeypatch, caplog) -> None:
    asked: list[int] = []
    monkeypatch.setattr(tracking, "obstacle", lambda: asked.append(1))
    modes = ("auto", "offline", "online", "disabled")
    configs = [tiny_config("tracking=wandb", f"tracking.mode={mode}") for mode in modes]
    prepare([*configs, tiny_config()])
    assert [config.tracking.mode for config in configs] == ["online", "offline", "online", "disabled"]
    assert asked == [1] and not caplog.messages


def test_id_of_a_folder_without_a_record(place) -> None:
    assert tracking.wandb_id(Run(Path("runs/x-01234567"))) == "01234567"


@pytest.mark.parametrize("trouble", ["missing", "init", "define_metric", "log", "update", "finish"])
def test_trouble_of_wandb_is_not_the_runs(launch, trained, fake_wandb, runs, trouble) -> None:
    assert trained("runs_dir=untouched").code == 0
    fake_wandb(trouble)
    ended = launch("tracking=wandb")
    assert ended.code == 0 and "Traceback" not in ended.text
    assert ended.text.count("W&B") == 1 if trouble == "log" else "W&B" in ended.text
    runs.assert_same(runs.only(), runs.only("untouched"))


def test_disabled_and_none_write_nothing_and_import_nothing(python, tiny, runs, tmp_path) -> None:
    ended = python("-X", "importtime", ROOT / "launch.py", *tiny, "tracking=wandb", WANDB_MODE="disabled")
    assert ended.code == 0
    assert not [line for line in ended.err.splitlines() if line.endswith("| wandb") or line.rstrip().endswith(" wandb")]
    assert not list(Path.cwd().rglob("*wandb*")) and not list((tmp_path / "home").rglob("*wandb*"))
