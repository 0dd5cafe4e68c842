"""What a run folder or a config holds cannot run code; secrets stay out; files are the user's; no port is open."""

import ast
import os
import pickle
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import PATIENCE

from capsule_sweeps.runs.signature import signed_config

ROOT = Path(__file__).resolve().parents[2]
SECRETS = {
    "WANDB_API_KEY": "5ecre7wandb" + "0" * 29,
    "MY_TOKEN": "5ecre7token",
    "HF_TOKEN": "5ecre7hf",
    "AWS_SECRET_ACCESS_KEY": "5ecre7aws",
    "DB_PASSWORD": "5ecre7password",
}


class Runs:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("how", ["pickle", "torch", "torch in a state"])
def test_checkpoint_cannot_run_code(launch, trained, runs, tmp_path, how) -> None:
    trained(signal_at=(signal.SIGTERM, 3))
    path, mark = runs.only() / "checkpoint.pt", tmp_path / "ran"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Runs(mark)))
    elif how == "torch":
        torch.save(Runs(mark), path)
    else:
        torch.save({**torch.load(path, weights_only=True), "losses": Runs(mark)}, path)
    ended = launch()
    assert ended.code == 1 and "Traceback" not in ended.text and "checkpoint.pt" in ended.text
    assert not mark.exists()


def test_code_never_asks_for_what_can_run_code() -> None:
    """eval, exec, pickle, unsafe YAML, torch.load without weights_only, a shell.

    Composed configurations are copied by pickle in memory, and CIFAR's files are unpickled by a class that knows only
    arrays (tests/hostile/test_18).
    """
    pickles = {"composer.py", "torchvision.py"}
    for path in [*(ROOT / "capsule_sweeps").rglob("*.py"), ROOT / "launch.py", *(ROOT / "hydra_plugins").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"dill", "cloudpickle", "marshal", "shelve"}, path
                assert "pickle" not in names or path.name in pickles, path
            if not isinstance(node, ast.Call):
                continue
            called, keywords = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert called not in ("eval", "exec", "compile", "os.system", "os.popen", "yaml.load"), (path, called)
            assert not called.startswith(("yaml.unsafe_load", "yaml.full_load")), (path, called)
            assert keywords.get("shell") in (None, "False"), (path, called)
            assert keywords.get("allow_pickle") in (None, "False"), (path, called)
            if called in ("torch.load", "load_state_dict_from_url"):
                assert keywords.get("weights_only") == "True", path


def all_bytes(*folders: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("tracking", ["none", "wandb"])
def test_secrets_of_the_environment_reach_no_file_and_no_output(python, tiny, place, tmp_path, tracking) -> None:
    """One run finishes, one fails with its traceback in error.txt; then what the commands say about them."""
    settings = [f"tracking={tracking}", "training.compile=off", "training.lr=0.1,1e30"]
    ended = python(ROOT / "launch.py", "-m", *tiny, *settings, WANDB_ERROR_REPORTING="false", **SECRETS)
    assert ended.code == 1 and len(list(Path("runs").glob("*/error.txt"))) == 1, ended.text
    said = [ended.text]
    for name in sorted(path.name for path in Path("runs").iterdir() if not path.name.startswith(".")):
        said.append(python("-m", "capsule_sweeps", "show", name, **SECRETS).text)
    said.append(python("-m", "capsule_sweeps", "doctor", *tiny, **SECRETS).text)
    for secret in SECRETS.values():
        assert not any(secret in text for text in said)
        found = [path for path, content in all_bytes(place).items() if secret.encode() in content]
        assert not found, found


def test_files_are_made_with_the_users_umask(launch) -> None:
    mask = 0o027
    before = os.umask(mask)
    try:
        launch("-m", "training.lr=0.1,1e30", "training.compile=off")
        launch("hydra.launcher.force=true", "training.compile=off")
    finally:
        os.umask(before)
    paths = [Path("runs"), *Path("runs").rglob("*")]
    assert {path.name for path in paths} >= {
        "checkpoint.pt",
        "run.json",
        ".sweeps",
        ".superseded",
        "error.txt",
        "log.txt",
    }
    for path in paths:
        full = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == full & ~mask, path


@pytest.mark.parametrize("tracking", ["none", "wandb"])
def test_nothing_listens_on_a_port(tiny, place, tracking) -> None:
    command = [sys.executable, ROOT / "launch.py", "-m", *tiny, f"tracking={tracking}", "training.compile=off"]
    command += ["seed=0,1", "training.epochs=1000000", "hydra.launcher.parallel=2"]
    seen = 0
    with open("output", "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        end = time.monotonic() + PATIENCE
        while seen < 5:
            assert process.poll() is None and time.monotonic() < end, Path("output").read_text()
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            for member in family:
                try:
                    found = member.net_connections(kind="inet")
                    listening = [connection for connection in found if connection.status == psutil.CONN_LISTEN]
                    assert not listening, (member.cmdline(), listening)
                except psutil.NoSuchProcess:
                    continue
            seen += len(list(Path("runs").glob("*/metrics.jsonl"))) == 2
            time.sleep(0.1)
        assert len(family) >= 3
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)


def test_signed_config_of_a_record_is_data(tiny_config) -> None:
    """An interpolation in a value is signed as what it resolves to, never as a recipe to read the environment."""
    os.environ["MY_TOKEN"] = SECRETS["MY_TOKEN"]
    try:
        assert "${" not in repr(signed_config(tiny_config("training.epochs=${num_routing}")))
    finally:
        del os.environ["MY_TOKEN"]
