"""What W&B lacks is sent from the run folder, and looked for there; W&B's agent drives launch.py."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from capsule_sweeps import compose_config
from capsule_sweeps.runs.record import read_record
from capsule_sweeps.runs.signature import columns
from capsule_sweeps.tracking.wandb_send import facts_of

ROOT = Path(__file__).resolve().parents[2]
WANDB = Path(sys.executable).with_name("wandb")
STANDS_STILL = """
import psutil
from capsule_sweeps import __main__
from capsule_sweeps.tracking import wandb_sync as sync
from capsule_sweeps.tracking import wandb_client as tracking
def end(patience):
    (service,) = [child for child in psutil.Process().children() if child.name().startswith("wandb-core")]
    service.suspend()
    tracking.end_service(1)
    gone, _ = psutil.wait_procs([service], 5)
    print("ended" if gone else "still there")
sync.end_service = end
__main__.main()
"""
LOST_ONCE = """
import psutil
from capsule_sweeps import __main__
from capsule_sweeps.tracking import wandb_sync as sync
send = sync.send
def send_and_lose(*arguments):
    sync.send = send
    send(*arguments)
    (service,) = [child for child in psutil.Process().children() if child.name().startswith("wandb-core")]
    service.kill()
sync.send = send_and_lose
__main__.main()
"""
AGENT_STANDS_STILL = """
import runpy, sys, psutil
from capsule_sweeps.tracking import wandb as sync
send = sync.send
def send_and_stop(*arguments):
    send(*arguments)
    (service,) = [child for child in psutil.Process().children() if child.name().startswith("wandb-core")]
    service.suspend()
sync.send, sync.SEND_SECONDS = send_and_stop, 1
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
IMPATIENT = """
from capsule_sweeps import __main__
from capsule_sweeps.tracking import wandb_sync
wandb_sync.LOOK_AGAIN = (0.0,)
__main__.main()
"""


@pytest.fixture
def sync(python):
    return lambda *arguments, **told: python("-m", "capsule_sweeps", "sync", *arguments, PYTHONPATH=str(ROOT), **told)


@pytest.fixture
def offline(launch, runs):
    """Runs as if they had been tracked offline, without the time that wandb takes."""

    def make(*arguments: str, **options) -> list[Path]:
        launch(*arguments, **options)
        for folder in runs.folders():
            path = folder / "config.yaml"
            text = path.read_text().replace("name: none", "name: wandb").replace("mode: auto", "mode: offline")
            path.write_text(text.replace("tracking.base.Tracker", "tracking.wandb.WandbTracker"))
        return runs.folders()

    return make


def assert_is_mirror(server, folder: Path, runs, identity: str | None = None) -> None:
    """The W&B run is what the folder says."""
    identity = identity or folder.name[-8:]
    config = OmegaConf.load(folder / "config.yaml")
    assert server.rows(identity) == runs.metrics(folder)
    facts = facts_of(read_record(folder))
    assert server.config(identity) == {**columns(config), **facts, "resolved": OmegaConf.to_container(config)}
    run = server.runs[identity]
    assert (run["name"], run["group"]) == (folder.name, runs.record(folder)["sweep"])
    if (folder / "summary.json").exists():
        summary = json.loads((folder / "summary.json").read_text())
        for key in ("accuracy_last", "accuracy_best_test", "parameters", "seconds"):
            assert run["summary"][key] == summary[key]
        assert server.state(run) == "finished"


def test_offline_runs_arrive_once(python, tiny, runs, sync, wandb_server) -> None:
    settings = ("tracking=wandb", "tracking.mode=offline", "seed=0,1")
    assert python(ROOT / "launch.py", "-m", *tiny, *settings).code == 0
    assert not wandb_server.num_requests
    ended = sync()
    assert ended.code == 0 and ended.out.count("sent, 2 epochs are there") == 2, ended.text
    for folder in runs.folders():
        assert_is_mirror(wandb_server, folder, runs)
    before = json.dumps(wandb_server.runs, default=str)
    ended = sync()
    assert ended.code == 0 and ended.out.count("is there") == 2, ended.text
    assert json.dumps(wandb_server.runs, default=str) == before and not wandb_server.unknown
    logs = [str(path) for path in Path("runs").glob("*/wandb/offline-run-*")]
    skipped = subprocess.run([WANDB, "sync", *logs], capture_output=True, text=True)
    assert "Skipped 2 synced" in skipped.stdout + skipped.stderr
    assert json.dumps(wandb_server.runs, default=str) == before


def test_running_run_is_sent_as_far_as_it_is(hold, runs, sync, wandb_server) -> None:
    held = hold("step", 8, "tracking=wandb", "tracking.mode=offline")
    identity = runs.only().name[-8:]
    ended = sync()
    assert ended.code == 0 and "sent, 1 epoch is there" in ended.out, ended.text
    assert [row["epoch"] for row in wandb_server.rows(identity)] == [1]
    assert wandb_server.state(wandb_server.runs[identity]) == "running"
    assert not list(Path("runs").rglob("*.synced"))
    assert held.release() == 0
    assert sync().code == 0
    assert_is_mirror(wandb_server, runs.only(), runs)


def test_failed_and_interrupted_runs_are_sent_as_such(offline, sync, runs, wandb_server) -> None:
    offline("training.lr=1e30")
    (failed,) = runs.folders()
    offline(signal_at=(signal.SIGTERM, 8))
    ended = sync()
    assert ended.code == 0 and [line.split()[0] for line in ended.out.splitlines()] == ["ok", "ok"], ended.text
    states = {name: wandb_server.state(run) for name, run in wandb_server.runs.items()}
    (interrupted,) = set(runs.folders()) - {failed}
    assert states == {failed.name[-8:]: "failed", interrupted.name[-8:]: "preempted"}
    assert len(wandb_server.rows(interrupted.name[-8:])) == 1


@pytest.mark.nightly
def test_queued_runs(offline, python, runs, wandb_server) -> None:
    """An interrupted run is sent as far as it is; a run that has not started has nothing to send."""
    (stopped,) = offline(signal_at=(signal.SIGTERM, 8))
    (stopped.parent / "digits-r1-s1-0123abcd").mkdir()
    queued = "from capsule_sweeps import __main__\nfrom capsule_sweeps.runs.run import Run\n"
    queued += "Run.state = lambda *_: 'queued'\n__main__.main()"
    ended = python("-c", queued, "sync", PYTHONPATH=str(ROOT))
    assert ended.code == 0 and "0123abcd" not in ended.out and "sent, 1 epoch is there" in ended.out, ended.text
    assert wandb_server.state(wandb_server.runs[stopped.name[-8:]]) == "preempted"


def test_what_did_not_arrive_is_reported(offline, python, wandb_server) -> None:
    offline("-m", "seed=0,1")
    wandb_server.deaf = True
    ended = python("-c", IMPATIENT, "sync", PYTHONPATH=str(ROOT))
    assert ended.code == 1 and ended.out.count("MISSING") == 2, ended.text
    assert ended.out.count("lacks epochs 1–2 and lacks accuracy_last") == 2
    wandb_server.deaf = False
    ended = python("-c", IMPATIENT, "sync", PYTHONPATH=str(ROOT))
    assert ended.code == 0 and ended.out.count("sent, 2 epochs") == 2, ended.text


@pytest.mark.nightly
def test_service_that_hangs_at_the_end_is_not_waited_for(offline, python, wandb_server) -> None:
    offline()
    ended = python("-c", STANDS_STILL, "sync", PYTHONPATH=str(ROOT))
    assert ended.code == 0 and "sent, 2 epochs" in ended.out and ended.out.endswith("ended\n"), ended.text


def test_service_that_is_lost_costs_one_run_of_a_sync(offline, python, sync, wandb_server) -> None:
    offline("-m", "seed=0,1")
    ended = python("-c", LOST_ONCE, "sync", PYTHONPATH=str(ROOT))
    assert ended.code == 1 and ended.out.count("MISSING") == 1 and ended.out.count("sent, 2 epochs") == 1, ended.text
    ended = sync()
    assert ended.code == 0 and ended.out.count("is there") == 2, ended.text


def test_rebuilt_from_the_folder_alone(trained, runs, sync, wandb_server) -> None:
    assert trained().code == 0  # tracking=none
    ended = sync()
    assert ended.code == 0 and "--rebuild" in ended.out and not wandb_server.runs
    ended = sync("--rebuild")
    assert ended.code == 0, ended.text
    assert_is_mirror(wandb_server, runs.only(), runs)
    assert {path.name for path in runs.only().iterdir()} >= {"config.yaml"} and not list(Path("runs").rglob("*wandb*"))


def test_what_wandb_has_wrong_is_sent_again_under_another_id(offline, runs, sync, wandb_server) -> None:
    (folder,) = offline()
    sync()
    identity = folder.name[-8:]
    wandb_server.runs[identity]["history"][0]["test_accuracy"] = 0.123
    ended = sync()
    assert ended.code == 1 and "has other numbers in epochs 1" in ended.out and "--rebuild" in ended.out
    ended = sync("--rebuild")
    assert ended.code == 0, ended.text
    assert_is_mirror(wandb_server, folder, runs, f"{identity}-2")
    ended = sync()
    assert ended.code == 0 and f"is there as {identity}-2" in ended.out, ended.text
    assert set(wandb_server.runs) == {identity, f"{identity}-2"}


@pytest.mark.nightly
def test_run_that_was_deleted_there_is_sent_under_another_id(offline, runs, sync, wandb_server) -> None:
    (folder,) = offline()
    identity = folder.name[-8:]
    wandb_server.deleted.add(identity)
    ended = sync()
    assert ended.code == 0 and f"are there as {identity}-2; {identity} was deleted there" in ended.out, ended.text
    assert_is_mirror(wandb_server, folder, runs, f"{identity}-2")
    ended = sync()
    assert ended.code == 0 and f"is there as {identity}-2" in ended.out, ended.text


def test_recorded_place_counts(offline, runs, sync, wandb_server) -> None:
    """Not what the environment says now: the agent's project, an entity of then."""
    (folder,) = offline()
    runs.change_record(folder, wandb_project="theirs", wandb_entity="me")
    assert sync(WANDB_PROJECT="theirs").code == 0
    assert wandb_server.runs[folder.name[-8:]]["project"] == "theirs"
    ended = sync()
    assert ended.code == 0 and "is there" in ended.out, "what is there needs no consent"


def test_two_folders_of_one_signature_are_two_runs(trained, offline, runs, sync, wandb_server) -> None:
    """A colleague's run of the same name and a run of the user are sent to one project."""
    (mine,) = offline(signal_at=(signal.SIGTERM, 8))
    trained("runs_dir=theirs")
    identity = mine.name[-8:]
    assert sync().code == 0 and set(wandb_server.runs) == {identity}
    before = json.dumps(wandb_server.runs[identity], default=str)
    ended = sync("--runs-dir", "theirs", "--rebuild")
    assert ended.code == 0 and f"as {identity}-2; {identity} there is the run of another run folder" in ended.out
    assert json.dumps(wandb_server.runs[identity], default=str) == before
    assert_is_mirror(wandb_server, runs.only("theirs"), runs, f"{identity}-2")
    ended = sync("--runs-dir", "theirs", "--rebuild")
    assert ended.code == 0 and f"is there as {identity}-2" in ended.out and len(wandb_server.runs) == 2, ended.text


def test_one_damaged_folder_keeps_no_other_back(offline, runs, sync, wandb_server) -> None:
    damaged, whole = offline("-m", "seed=0,1")
    (damaged / "config.yaml").write_text("model: [")
    ended = sync()
    assert ended.code == 1 and "config.yaml is not usable" in ended.out, ended.text
    assert_is_mirror(wandb_server, whole, runs)


def test_without_a_key_or_server_one_sentence(offline, sync, wandb_server, monkeypatch) -> None:
    offline()
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    ended = sync()
    assert ended.code == 1 and ended.err.startswith("Error: nothing can be sent: 127.0.0.1:9 does not answer")
    monkeypatch.setenv("WANDB_BASE_URL", wandb_server.url)
    monkeypatch.delenv("WANDB_API_KEY")
    ended = sync()
    assert ended.code == 1 and "no API key" in ended.err and ended.err.count("\n") == 1
    assert not wandb_server.num_requests


# ── W&B's agent ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_shipped_sweep_is_one_that_launch_understands() -> None:
    sweep = yaml.safe_load((ROOT / "conf/wandb_sweep.yaml").read_text())
    assert sweep["program"] == "launch.py" and "${args_no_hyphens}" in sweep["command"]
    assert sweep["metric"]["name"] == "accuracy_last"
    for name, entry in sweep["parameters"].items():
        for value in entry["values"]:
            compose_config([f"{name}={value}"])


@pytest.mark.nightly
def test_agent_s_finished_run_does_not_wait_for_the_service(launch, trained, python, tiny, wandb_server) -> None:
    assert trained().code == 0
    told = {"WANDB_SWEEP_ID": "sw1", "WANDB_RUN_ID": "agent1", "PYTHONPATH": str(ROOT)}
    settings = [text for text in tiny if text != "tracking=none"]
    ended = python("-c", AGENT_STANDS_STILL, ROOT / "launch.py", *settings, "tracking=wandb", **told)
    assert ended.code == 0 and wandb_server.runs["agent1"]["summary"]["accuracy_last"] >= 0, ended.text


@pytest.mark.slow
def test_agent_drives_launch(launch, tiny, runs, place, wandb_server, monkeypatch) -> None:
    """`wandb sweep` and `wandb agent`, with the command of the shipped file; one of its runs is finished already."""
    assert launch("num_routing=1").code == 0
    sweep = yaml.safe_load((ROOT / "conf/wandb_sweep.yaml").read_text())
    fixed = dict(text.split("=", 1) for text in tiny if text != "tracking=none")
    values = {key: {"value": value} for key, value in fixed.items()}
    sweep["parameters"] = {**values, "num_routing": {"values": [1, 2]}, "dataset.train_size": {"value": 40}}
    sweep["program"] = str(ROOT / "launch.py")
    Path("sweep.yaml").write_text(yaml.safe_dump(sweep))
    monkeypatch.setenv("PATH", str(WANDB.parent), prepend=":")
    made = subprocess.run([WANDB, "sweep", "sweep.yaml"], capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr
    agent = subprocess.run(
        [WANDB, "agent", "me/capsule_sweeps/sw1"], capture_output=True, text=True, timeout=300, cwd=place
    )
    assert agent.returncode == 0, agent.stderr
    assert set(wandb_server.runs) == {"agent1", "agent2"} and len(runs.folders()) == 2, agent.stderr
    for identity, folder in zip(("agent1", "agent2"), runs.folders(), strict=True):
        assert wandb_server.rows(identity) == runs.metrics(folder)
        config = wandb_server.config(identity)
        assert config["signature"] == folder.name[-8:] and config["num_routing"] in (1, 2)
        assert config["resolved"]["dataset"]["name"] == config["dataset"] == "digits"
        assert wandb_server.state(wandb_server.runs[identity]) == "finished"
        assert wandb_server.runs[identity]["summary"]["accuracy_last"] >= 0


def test_tags_and_notes_are_mirrored_and_merged_runs_are_sent_only_if_asked(
    offline, sync, runs, capsule_sweeps, wandb_server
) -> None:
    (folder,) = offline()
    identity = folder.name[-8:]
    capsule_sweeps("tag", identity, "+good", "+bad")
    capsule_sweeps("note", identity, "look at the margins")
    assert sync().code == 0
    run = wandb_server.runs[identity]
    before = set(run["tags"])
    assert {"good", "bad", "digits"} <= before and run["notes"] == "look at the margins"
    run["tags"] = [*run["tags"], "theirs"]  # set on the page
    capsule_sweeps("tag", identity, "-bad")
    ended = sync()
    assert ended.code == 0 and "is there" in ended.out, ended.text
    assert set(run["tags"]) == (before - {"bad"}) | {"theirs"} and run["notes"] == "look at the margins"
    assert wandb_server.state(run) == "finished"
    capsule_sweeps("note", identity, "")
    assert sync().code == 0 and run["notes"] == ""

    assert capsule_sweeps("bundle", "--out", "b.tar.gz").code == 0
    assert capsule_sweeps("merge", "b.tar.gz", "--runs-dir", "merged").code == 0
    num_requests = wandb_server.num_requests
    assert "nothing to send" in sync("--runs-dir", "merged").out
    assert len(wandb_server.runs) == 1
    ended = sync("--runs-dir", "merged", "--merged")
    assert ended.code == 0 and "is there" in ended.out, ended.text
    assert wandb_server.num_requests > num_requests and len(wandb_server.runs) == 1 and not wandb_server.unknown
