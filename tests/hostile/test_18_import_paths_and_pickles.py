"""Children import nothing from the current folder; what a job unpickles only its owner can write."""

import json
import os
import pickle
import stat
import subprocess
from hashlib import md5
from pathlib import Path

import pytest

from capsule_sweeps.launchers.children import child_environment, command
from capsule_sweeps.launchers.slurm import queue as slurm
from capsule_sweeps.launchers.slurm.launcher import Launcher

STRAY = "import pathlib\npathlib.Path('PWNED').touch()\n"


def test_children_ignore_stray_modules_of_the_current_folder(place, monkeypatch) -> None:
    for name in ("queue", "torch", "omegaconf", "json"):
        Path(f"{name}.py").write_text(STRAY)
    for path in ("", f"{os.pathsep}{place}/elsewhere", f"{place}/elsewhere{os.pathsep}"):
        monkeypatch.setenv("PYTHONPATH", path)
        worker = subprocess.run(
            command("capsule_sweeps.launchers.worker"),
            env=child_environment(),
            input="",
            capture_output=True,
            text=True,
        )
        assert "JSONDecodeError" in worker.stderr and not Path("PWNED").exists(), worker.stderr
        assert "" not in slurm.clean_environment()["PYTHONPATH"].split(os.pathsep) or not path.strip(os.pathsep)


def test_a_job_refuses_what_others_can_write(place, monkeypatch) -> None:
    """The check is in the script, of which SLURM keeps a copy; here bash runs it, with srun replaced."""
    folder, code = place / "jobs", place / "code"
    for path in (folder, code):
        path.mkdir(mode=0o755)
    monkeypatch.setattr(slurm, "max_array_size", lambda: 1)
    monkeypatch.setattr(slurm, "sbatch", lambda *_: "7")
    job = {"submission": "digits-01234567-abcdef", "snapshot": str(code), "job_ids": [], "runs": []}
    (folder / "job.json").write_text(json.dumps(job))
    (folder / "job.json").chmod(0o644)
    Launcher().send(job, folder, 1)
    assert stat.S_IMODE((folder / "job.pkl").stat().st_mode) == 0o644
    (place / "srun").write_text("#!/bin/bash\necho executed\n")
    (place / "srun").chmod(0o755)

    def run() -> str:
        environment = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
        done = subprocess.run(["bash", folder / "0_submission.sh"], env=environment, capture_output=True, text=True)
        return done.stdout + done.stderr

    assert run() == "executed\n"
    for path in (folder, folder / "job.pkl", folder / "job.json", code):
        before = stat.S_IMODE(path.stat().st_mode)
        path.chmod(before | 0o020)
        assert "can be written by others: not executed" in run()
        path.chmod(before)
    assert run() == "executed\n"
    (folder / "job.pkl").unlink()
    assert "not executed" in run()


class Executes:
    def __reduce__(self):
        return Path.touch, (Path("PWNED"),)


@pytest.mark.parametrize(("genuine", "said"), [(False, "changed while it was read"), (True, "it names pathlib")])
def test_bytes_of_cifar_are_verified_and_parsed_in_one_read(place, monkeypatch, genuine, said) -> None:
    """A file that was replaced after torchvision had verified it, and one whose md5 sum is that of a pickle."""
    from torchvision.datasets import CIFAR10

    from capsule_sweeps.data.sources.torchvision import _read_cifar

    content = pickle.dumps({"data": Executes(), "labels": [0]})
    path = place / "cifar-10-batches-py" / "data_batch_1"
    path.parent.mkdir()
    path.write_bytes(content)
    sums = [["data_batch_1", md5(content).hexdigest() if genuine else "0" * 32]]
    for name in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, name, sums)
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda _: True)
    with pytest.raises((ValueError, pickle.UnpicklingError), match=said):
        _read_cifar("CIFAR10", place, path.parent.name)
    assert not Path("PWNED").exists()
