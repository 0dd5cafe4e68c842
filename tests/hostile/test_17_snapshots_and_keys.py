"""A snapshot holds what a job can import or compose, and no key."""

import stat
import subprocess
from pathlib import Path

import pytest

from capsule_sweeps.launchers import snapshot
from capsule_sweeps.runs import provenance

STAY = [
    "secrets.yaml",
    "credentials.json",
    ".git-credentials",
    ".npmrc",
    "token.txt",
    "kaggle.json",
    "prod.env",
    "my_key",
]
STAY += ["photos/a.png", "capsule_sweeps/credentials.json", "conf/token.txt", "stray.py"]
TRACKED = [
    "launch.py",
    "capsule_sweeps/a.py",
    "capsule_sweeps/table.csv",
    "conf/config.yaml",
    "README.md",
    "tests/t.py",
]


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A small checkout with files that git tracks, and others that it does not."""
    root = tmp_path / "checkout"
    for name in (*TRACKED, *STAY, "capsule_sweeps/new.py", "conf/new.yaml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x: 1\n")
    for command in (
        ["init", "-q"],
        ["add", *TRACKED],
        ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "a"],
    ):
        subprocess.run(["git", *command], cwd=root, check=True)
    for module in (snapshot, provenance):
        monkeypatch.setattr(module, "ROOT", root)
        monkeypatch.setattr(module, "CHECKOUT", True)
    return root


def held(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {"MANIFEST.json"}


def test_what_jobs_can_use_goes_along_and_nothing_else(checkout, place) -> None:
    taken = snapshot.take_snapshot(place)
    code = {"launch.py", "capsule_sweeps/a.py", "capsule_sweeps/table.csv", "conf/config.yaml"}
    assert held(taken) == code | {"capsule_sweeps/new.py", "conf/new.yaml"}
    more = snapshot.take_snapshot(place, ["photos", "*.md"])
    assert held(more) - held(taken) == {"photos/a.png", "README.md"}
    with pytest.raises(ValueError, match=r"no file of the checkout matches photo$"):
        snapshot.take_snapshot(place, ["photo"])


@pytest.mark.parametrize(
    "line",
    [
        "api_key: " + 40 * "a1",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "aws = AKIAIOSFODNN7EXAMPLE",
        "ghp_" + 36 * "a",
        "key: KEY_OF_THE_ENVIRONMENT",
    ],
)
@pytest.mark.parametrize("name", ["conf/config.yaml", "conf/new.yaml"])
def test_a_key_stops_with_a_sentence_that_does_not_quote_it(checkout, place, monkeypatch, line, name) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "KEY_OF_THE_ENVIRONMENT")
    (checkout / name).write_text(f"x: 1\n{line}\n")
    with pytest.raises(ValueError, match=f"line 2 of {name} looks like a key") as caught:
        snapshot.take_snapshot(place)
    assert line not in str(caught.value) and not list(place.rglob("config.yaml"))


def test_the_patch_is_of_the_same_files(checkout, place) -> None:
    (checkout / "README.md").write_text("password=hunter2hunter2hunter2\n")
    (checkout / "capsule_sweeps" / "a.py").write_text("x = 2\n")
    manifest = (snapshot.take_snapshot(place) / "MANIFEST.json").read_text()
    assert "+x = 2" in manifest and "hunter2" not in manifest


def test_size_is_limited(checkout, place, monkeypatch) -> None:
    monkeypatch.setattr(snapshot, "MAX_BYTES", 100)
    (checkout / "capsule_sweeps" / "new.py").write_text("x" * 200)
    with pytest.raises(ValueError, match=r"capsule_sweeps/new\.py alone has"):
        snapshot.take_snapshot(place)


@pytest.mark.parametrize(("mode", "expected"), [(0o755, 0o700), (0o2775, 0o2775)])
def test_snapshots_are_private_unless_the_folder_is_shared(checkout, place, mode, expected) -> None:
    place.chmod(mode)
    taken = snapshot.take_snapshot(place)
    assert stat.S_IMODE((place / ".code").stat().st_mode) == expected
    assert all(snapshot.is_private(path) for path in [taken, *taken.rglob("*")]), "no colleague changes what jobs run"


def test_another_users_snapshot_is_not_run(checkout, place) -> None:
    """With the same content, but made by another user, who could change it later."""
    first = snapshot.take_snapshot(place)
    first.chmod(0o777)
    second = snapshot.take_snapshot(place)
    assert second.name.startswith(f"{first.name}-") and snapshot.take_snapshot(place) == second
    (second / "launch.py").chmod(0o644)
    (second / "launch.py").write_text("changed")
    manifest = (second / "MANIFEST.json").read_text()
    (second / "MANIFEST.json").write_text(manifest.replace("{", '{"a": 1,', 1))
    with pytest.raises(ValueError, match="is damaged"):
        snapshot.check_snapshot(second)


def test_this_checkout_holds_no_key() -> None:
    for name in snapshot._names([]):
        snapshot.refuse_keys(name, (snapshot.ROOT / name).read_text(errors="replace"))
