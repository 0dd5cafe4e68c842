"""The ledger: signatures, claims, atomic files, names. Nothing in here trains."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import PATIENCE
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from capsule_sweeps import compose_config, load_runs
from capsule_sweeps.runs import claim as claims
from capsule_sweeps.runs import files
from capsule_sweeps.runs import lock as owner
from capsule_sweeps.runs.files import write_atomic
from capsule_sweeps.runs.folders import find_runs
from capsule_sweeps.runs.run import Busy, Run
from capsule_sweeps.runs.signature import NEUTRAL, columns, signature, signed_config

ROOT = Path(__file__).resolve().parents[2]

SIGNED = {  # key → values that are not the default and not each other's
    "dataset": ["CIFAR100", "digits"],
    "num_routing": ["2", "3"],
    "seed": ["1", "2147483647"],
    "routing": ["dynamic", "em", "self_routing"],
    "routing.schedule": ["sequential"],
    "capsules": ["digits"],
    "capsules.dropout": ["0.1", "0.2"],
    "capsules.pose": ["vector"],
    "capsules.primary.num_capsules": ["4", "5"],
    "capsules.layers": ["[]", "[{type: fc, num_capsules: 4, pose_size: 16}]"],
    "backbone": ["simple"],
    "dataset.source": ["folder"],
    "dataset.train_size": ["1000", "2000"],
    "dataset.val_size": ["100", "200"],
    "dataset.crop_padding": ["0", "2"],
    "training.epochs": ["2", "3"],
    "training.batch_size": ["32", "64"],
    "training.lr": ["0.01", "1e-5", "0.2"],
    "training.momentum": ["0.0", "0.5"],
    "training.weight_decay": ["0.0", "1e-4"],
    "training.milestones": ["[1]", "[1,2]"],
    "training.lr_decay": ["0.5"],
    "training.amp": ["bf16"],
    "training.loss": ["margin", "spread"],
}
EXECUTION = {
    "device": ["cpu", "cuda:1"],
    "data_dir": ["elsewhere"],
    "runs_dir": ["others"],
    "selection_rule": ["best_test"],
    "debug": ["true"],
    "tracking": ["none"],
    "tracking.project": ["another"],
    "training.compile": ["auto"],
    "training.channels_last": ["false"],
    "training.checkpoint_epochs": ["0", "7"],
}


def identity(overrides: list[str]) -> str:
    return signature(signed_config(compose_config(overrides)))


@st.composite
def chosen(draw, table: dict[str, list[str]], most: int) -> list[str]:
    keys = draw(st.lists(st.sampled_from(sorted(table)), unique=True, max_size=most))
    keys = [key for key in keys if key.partition(".")[0] not in keys or "." not in key]  # an option may lack the key
    return [f"{key}={draw(st.sampled_from(table[key]))}" for key in keys]


# Signatures


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(signed=chosen(SIGNED, 4), execution=chosen(EXECUTION, 3), order=st.randoms(use_true_random=False))
def test_signature_knows_no_order_and_no_execution(signed, execution, order: random.Random) -> None:
    shuffled = [*signed, *execution]
    order.shuffle(shuffled)
    assert identity(shuffled) == identity(signed)


def test_signature_changes_with_every_signed_value() -> None:
    one_each = [[f"{key}={values[0]}"] for key, values in SIGNED.items()]
    signatures = {identity(overrides): overrides for overrides in [[], *one_each]}
    assert len(signatures) == 1 + len(one_each)
    assert all(re.fullmatch("[0-9a-f]{8}", text) for text in signatures)


def leaves(node, prefix: str = ""):
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        value = node[key]
        if OmegaConf.is_config(value):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def other(value):
    """Some other value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return "another" if value is None else f"{value}x"


def test_every_key_of_the_configuration_is_signed_or_known_not_to_be() -> None:
    """`model` holds the ingredients; the groups beside it are what it was made of."""
    config = DictConfig(OmegaConf.to_container(compose_config(["training.milestones=[5]"])))
    known = {key for key in EXECUTION if not key.startswith("tracking")} | {"num_routing", "dataset.root"}
    unsigned = set()
    for key, value in leaves(config):
        changed = config.copy()
        OmegaConf.update(changed, key, other(value))
        if signature(signed_config(changed)) == signature(signed_config(config)):
            unsigned.add(key)
    ingredients = ("backbone.", "capsules.", "routing.", "tracking.")
    rest = {key for key in unsigned if not key.startswith(ingredients) and not key.endswith(".name")}
    assert rest == known
    assert "dataset.name" not in unsigned


def test_one_number_written_in_two_ways_is_one_run() -> None:
    for one, same in (("training.lr=1", "training.lr=1.0"), ("training.lr=1e-1", "training.lr=0.1")):
        assert identity([one]) == identity([same])
    assert identity(["training.epochs=350"]) == identity([])


def test_signature_is_the_same_in_every_process() -> None:
    code = (
        "from capsule_sweeps.runs.signature import signed_config, signature; "
        "from capsule_sweeps import compose_config; "
        "print(signature(signed_config(compose_config(['seed=3']))))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == identity(["seed=3"])


def test_names_of_groups_are_for_people() -> None:
    config = compose_config([])
    renamed = DictConfig(OmegaConf.to_container(config))
    renamed.model.routing.name = renamed.model.capsules.name = "another"
    assert signature(signed_config(renamed)) == signature(signed_config(config))


def with_new_field(config: DictConfig, value: int) -> DictConfig:
    newer = DictConfig(OmegaConf.to_container(config))
    newer.training.warmup_epochs = value
    return newer


def compare(run: Run, config: DictConfig) -> None:
    run.compare(signed_config(config), run.record())


def test_new_field_with_a_neutral_default_keeps_old_signatures(monkeypatch, tmp_path) -> None:
    config = compose_config([])
    monkeypatch.setitem(NEUTRAL, "training.warmup_epochs", 0)
    assert columns(with_new_field(config, 0)) == columns(config)
    assert columns(with_new_field(config, 5))["signature"] != columns(config)["signature"]
    run = Run(tmp_path / columns(config)["run"])
    run.folder.mkdir()
    files.write_json(run.folder / "run.json", {"signed_config": signed_config(config)})
    compare(run, with_new_field(config, 0))
    with pytest.raises(ValueError, match=r"training\.warmup_epochs"):
        compare(run, with_new_field(config, 5))
    files.write_json(run.folder / "run.json", {"signed_config": {**signed_config(config), "training.warmup_epochs": 0}})
    compare(run, config)


@pytest.mark.parametrize("source", ["run.json", "config.yaml"])
def test_another_configuration_under_one_signature_is_an_error_that_names_the_difference(tmp_path, source) -> None:
    there, here = compose_config(["training.lr=0.3"]), compose_config(["num_routing=2"])
    run = Run(tmp_path / columns(here)["run"])
    run.folder.mkdir()
    if source == "run.json":
        files.write_json(run.folder / "run.json", {"signed_config": signed_config(there)})
    else:
        (run.folder / "config.yaml").write_text(OmegaConf.to_yaml(there))
    with pytest.raises(ValueError) as caught:
        compare(run, here)
    for word in (str(run.folder), "training.lr", "0.3", "0.1", "model.num_routing"):
        assert word in str(caught.value)
    compare(run, there)
    compare(run, compose_config(["training.lr=0.3", "device=cpu", "tracking=none", "data_dir=x"]))


def test_group_is_shared_by_seeds_only() -> None:
    assert columns(compose_config(["seed=1"]))["group"] == columns(compose_config(["seed=2"]))["group"]
    assert (
        columns(compose_config(["seed=1", "training.lr=0.2"]))["group"] != columns(compose_config(["seed=1"]))["group"]
    )


# Claims


CLAIMING = """
import sys, time
from pathlib import Path
from capsule_sweeps.runs.run import Run
with Run(Path(sys.argv[1])).claim():
    print("claimed", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def claiming(tmp_path):
    """A process that holds a claim, and its run."""
    run = Run(tmp_path / "x-00000000")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", CLAIMING, str(run.folder)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout.readline() == "claimed\n"
    yield run, process
    process.kill()
    process.wait()
    process.stdout.close()


def test_two_claims_on_one_folder(tmp_path) -> None:
    run = Run(tmp_path / "x-00000000")
    with run.claim() as claim:
        assert run.state() == "running"
        with pytest.raises(Busy, match=str(os.getpid())), Run(run.folder).claim():
            pytest.fail("two owners")
        claim.check()
        assert run.state() == "running"
    assert run.state() == "interrupted"
    with run.claim() as again:
        assert again.attempt > claim.attempt


def test_claim_of_another_process_holds_while_it_lives_and_not_a_moment_longer(claiming) -> None:
    run, process = claiming
    assert run.state() == "running"
    with pytest.raises(Busy, match=str(process.pid)), run.claim():
        pytest.fail("two owners")
    os.utime(
        claims.attempt_path(run.folder, 1), (1, 1)
    )  # an old heartbeat is no sign of death where we can look at the process
    assert run.state() == "running"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run.state() == "interrupted"
    with run.claim():
        assert run.state() == "running"


def test_stopped_process_keeps_its_claim(claiming) -> None:
    run, process = claiming
    process.send_signal(signal.SIGSTOP)
    assert run.state() == "running"
    process.send_signal(signal.SIGCONT)


def test_process_killed_but_not_waited_for_is_gone(claiming) -> None:
    """A zombie still has its process number."""
    run, process = claiming
    process.send_signal(signal.SIGKILL)
    until = time.monotonic() + PATIENCE
    while run.state() == "running" and time.monotonic() < until:
        time.sleep(0.01)
    assert run.state() == "interrupted"


def edit_claim(run: Run, **changes) -> Path:
    (path,) = run.folder.glob("attempt-*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path


def test_process_number_that_was_given_again_is_no_owner(claiming) -> None:
    run, _ = claiming
    edit_claim(run, start="1")
    assert run.state() == "interrupted"


def test_claim_from_another_host_holds_until_its_heartbeat_is_old(claiming) -> None:
    run, process = claiming
    process.send_signal(signal.SIGSTOP)  # no heartbeat from here
    path = edit_claim(run, host="elsewhere", pid=1)
    assert run.state() == "running"
    with pytest.raises(Busy, match="elsewhere"), run.claim():
        pytest.fail("two owners")
    old = time.time() - owner.STALE_SECONDS - 5
    os.utime(path, (old, old))
    assert run.state() == "interrupted"
    with run.claim():
        assert run.state() == "running"


@pytest.mark.parametrize(("ahead", "state"), [(3600, "running"), (2 * 86400, "interrupted")])
def test_claim_dated_far_in_the_future_ends(tmp_path, ahead, state) -> None:
    """A host with a wrong clock made it and is gone: it would run forever."""
    run = Run(tmp_path / "x-00000000")
    run.folder.mkdir()
    path = claims.attempt_path(run.folder, 1)
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "start": "1", "time": time.time() + ahead}))
    os.utime(path, (time.time() + ahead,) * 2)
    assert run.state() == state
    if state == "interrupted":
        with run.claim():
            assert run.state() == "running"


def test_queue_is_asked_about_a_claim_in_the_future(tmp_path, monkeypatch) -> None:
    path = tmp_path / "attempt-1.json"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "start": "1"}))
    os.utime(path, (time.time() + 3600,) * 2)
    assert owner.alive(path)
    monkeypatch.setattr(owner, "_job_is_over", lambda claim, path: True)
    assert not owner.alive(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"host": 1}'])
def test_claim_that_cannot_be_read_holds_until_it_is_old(tmp_path, text) -> None:
    """It may be on its way to the disk at this moment."""
    run = Run(tmp_path / "x-00000000")
    run.folder.mkdir()
    path = run.folder / "attempt-1.json"
    path.write_text(text)
    with pytest.raises(Busy), run.claim():
        pytest.fail("two owners")
    os.utime(path, (1, 1))
    with run.claim():
        pass


def test_heartbeat(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.01)
    run = Run(tmp_path / "x-00000000")
    with run.claim():
        path = claims.attempt_path(run.folder, 1)
        os.utime(path, (1, 1))
        until = time.monotonic() + PATIENCE
        while path.stat().st_mtime == 1 and time.monotonic() < until:
            time.sleep(0.01)
        assert path.stat().st_mtime > 1


RACING = """
import sys, time
from contextlib import ExitStack
from pathlib import Path
from capsule_sweeps.runs.run import Busy, Run
folder, start, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
while not start.exists():
    pass
begin, won = float(start.read_text()), []
with ExitStack() as stack:
    for number in range(rounds):
        while time.time() < begin + 0.05 * number:
            pass
        try:
            stack.enter_context(Run(folder / f"x-{number:08x}").claim())
            won.append(number)
        except Busy:
            pass
    print(*won, flush=True)
    sys.stdin.read()
"""


def test_of_many_processes_that_claim_at_once_exactly_one_wins(tmp_path) -> None:
    rounds, start = 20, tmp_path / "start"
    dead = json.dumps({"host": owner._host(), "pid": os.getpid(), "start": "1", "time": 0})
    for number in range(0, rounds, 2):  # every other folder has a dead owner, whom all of them want to follow
        (tmp_path / f"x-{number:08x}").mkdir()
        (tmp_path / f"x-{number:08x}" / "attempt-3.json").write_text(dead)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACING, str(tmp_path), str(start), str(rounds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for _ in range(5)
    ]
    try:
        assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * len(racers)
        write_atomic(start, str(time.time() + 0.2).encode())
        won = [list(map(int, racer.stdout.readline().split())) for racer in racers]
        assert sorted(number for numbers in won for number in numbers) == list(range(rounds))
        assert all(len(list(folder.glob("attempt-*.json"))) == 1 for folder in find_run_folders(tmp_path))
    finally:
        for racer in racers:
            racer.stdin.close()
            racer.wait(PATIENCE)
            racer.stdout.close()


def find_run_folders(runs_dir: Path) -> list[Path]:
    return [run.folder for run in find_runs(runs_dir).values()]


def test_claim_notices_that_its_folder_is_gone(tmp_path) -> None:
    run = Run(tmp_path / "x-00000000")
    with run.claim() as claim:
        claims.attempt_path(run.folder, 1).unlink()
        run.folder.rmdir()
        with pytest.raises(ValueError, match="removed or taken over"):
            claim.update(state="running")
        assert not run.folder.exists()
    assert not run.folder.exists()


def test_claim_notices_that_it_was_taken_over(tmp_path) -> None:
    run = Run(tmp_path / "x-00000000")
    with run.claim() as claim:
        (run.folder / "attempt-2.json").write_text(json.dumps({"host": "elsewhere"}))
        with pytest.raises(ValueError, match="removed or taken over"):
            claim.check()
    assert json.loads((run.folder / "attempt-2.json").read_text()) == {"host": "elsewhere"}


def test_claim_does_not_touch_that_of_another_in_a_new_folder(tmp_path) -> None:
    run = Run(tmp_path / "x-00000000")
    theirs = json.dumps({"host": "elsewhere", "pid": 1, "start": "1", "time": time.time()})
    with run.claim() as claim:
        claims.attempt_path(run.folder, 1).unlink()
        claims.attempt_path(run.folder, 1).write_text(theirs)
        with pytest.raises(ValueError, match="removed or taken over"):
            claim.check()
    assert claims.attempt_path(run.folder, 1).read_text() == theirs


# Files


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, function) -> None:
    path = tmp_path / "run.json"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, function, lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"] and path.read_bytes() == b"old"


def test_readers_never_see_half_a_file(tmp_path) -> None:
    path, done = tmp_path / "checkpoint.pt", threading.Event()
    contents = [letter * 300_000 for letter in (b"a", b"b")]
    write_atomic(path, contents[0])

    def write() -> None:
        for number in range(100):
            write_atomic(path, contents[number % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert path.read_bytes() in contents
    writer.join()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


HOSTILE = [
    "../../outside",
    "/etc/passwd",
    "a/b",
    ".",
    "..",
    ".hidden",
    "-rf",
    "a b;$(c)`d`",
    "é\n\x00",
    "x" * 500,
    "",
    "CON",
]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_hostile_names_stay_inside(name) -> None:
    assert_inside(name)


@given(name=st.text())
@settings(deadline=None, max_examples=25)
def test_any_name_stays_inside(name) -> None:
    with suppress(UnicodeEncodeError):
        name.encode()
        assert_inside(name)


CONFIG = OmegaConf.to_container(compose_config(["dataset=digits"]))


def assert_inside(name: str) -> None:
    config = DictConfig(json.loads(json.dumps(CONFIG)))
    config.dataset.name = config.model.name = config.model.backbone.name = name
    folder = columns(config)["run"]
    assert re.fullmatch(r"[A-Za-z0-9_+][A-Za-z0-9_.+-]*-[0-9a-f]{8}", folder) and len(folder) < 200
    assert re.fullmatch(r"[^.].*-[0-9a-f]{8}", folder)  # or it would not be found again


def test_only_run_folders_are_found(tmp_path) -> None:
    for name in ("digits-r1-s0-0123abcd", ".digits-0123abce", "notes", "digits-0123ABCD", "sweep-123"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes-0123abcf").write_text("a file")
    assert list(find_runs(tmp_path)) == ["0123abcd"]
    assert find_runs(tmp_path / "nothing") == {}


# Garbled files


GARBLED = {
    "cut off": b'{"state": "run',
    "no text": b"\xff\xfe\x00",
    "list": b"[1]",
}


WRONG = b'{"execution": {"threads": "many"}, "epochs_done": "x", "attempts": [5], "state": [], "failure": {}}'


@pytest.mark.parametrize("content", [*GARBLED.values(), WRONG], ids=[*GARBLED, "wrong values"])
def test_garbled_record_of_an_interrupted_run(launch, trained, runs, content) -> None:
    assert trained(signal_at=(signal.SIGTERM, 7)).code == 143
    (runs.only() / "run.json").write_bytes(content)
    assert load_runs("runs").state.tolist() == ["interrupted"]
    ended = launch()
    assert "Traceback" not in ended.text
    assert ended.code == 0 or "run.json" in ended.text
    if ended.code == 0:
        assert trained("runs_dir=untouched").code == 0
        runs.assert_same(runs.only(), runs.only("untouched"))


@pytest.mark.parametrize("content", GARBLED.values(), ids=GARBLED)
def test_garbled_record_of_a_finished_run_loses_nothing(launch, trained, runs, content) -> None:
    def rows(out: str) -> list[str]:
        """Of the table; its caption names settings, which a garbled record has lost."""
        return [line for line in out.partition("Results")[2].splitlines() if line.startswith("│")]

    table = rows(trained().out)
    before = load_runs("runs")
    (runs.only() / "run.json").write_bytes(content)
    ended = launch()
    assert ended.code == 0 and "Traceback" not in ended.text and "skip" in ended.out
    after = load_runs("runs")
    assert after.state[0] == "finished"
    assert after.accuracy_last[0] == before.accuracy_last[0] and after.dataset[0] == "digits"
    assert rows(ended.out) == table


def test_run_killed_between_summary_and_record_keeps_its_numbers(launch, trained, runs) -> None:
    """summary.json is there, so the run is finished; run.json still says what it said while training."""
    assert trained().code == 0
    before = load_runs("runs")
    summary = json.loads((runs.only() / "summary.json").read_text())
    runs.change_record(runs.only(), state="running", ended=None, **dict.fromkeys(set(summary) - {"run"}))
    assert launch().code == 0
    after = load_runs("runs")
    assert after.accuracy_last[0] == before.accuracy_last[0] and after.seconds[0] == before.seconds[0]


@pytest.mark.parametrize("content", [b"", b"a: [", b"training: 3\n"])
def test_garbled_config_is_named(launch, trained, runs, content) -> None:
    assert trained(signal_at=(signal.SIGTERM, 7)).code == 143
    (runs.only() / "run.json").unlink()
    (runs.only() / "config.yaml").write_bytes(content)
    ended = launch()
    assert ended.code == 1 and "Traceback" not in ended.text
    assert "config.yaml" in ended.text
