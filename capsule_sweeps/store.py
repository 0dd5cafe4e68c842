"""The ledger: one folder a run, `<runs_dir>/<readable name>-<signature>/`, which is all that is known of the run.

Every file in it but the append-only metrics is replaced atomically, so a reader never sees half of one and a process
may be killed at any moment. The folder is claimed by creating `attempt-<n>.json`, n one above the last: creation is
exclusive on local disks and on NFS alike, numbers never fall, and the highest number owns the folder. A claim is void
at once when its process on this host is gone, and after `STALE_SECONDS` without a heartbeat when it came from another.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from omegaconf import DictConfig, OmegaConf

from capsule_sweeps.config import Dataset, Training, unsigned

log = logging.getLogger(__name__)

STATES = ("new", "running", "interrupted", "failed", "finished")
HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0

RECORD_TYPES: dict[str, Any] = {  # of what planning and resuming read in run.json
    "attempts": list,
    "science": dict,
    "execution": dict,
    "epochs_done": int,
    "seconds": int | float,
    "data_sha256": str,
}

# Fields that were added after runs existed, with the value that means "as before": at that value they are not signed.
NEUTRAL: dict[str, Any] = {"model.routing.norm": "layer", "model.head": "shared"}


class Busy(Exception):
    """Somebody else works in this run folder now."""


def science(config: DictConfig) -> dict[str, Any]:
    """Everything in a checked config that can change a run's numbers, flat with dotted keys, and nothing else.

    Names are for people (`build` never sees them), except the dataset's, which says what is read.
    """
    signed = {
        "model": OmegaConf.to_container(config.model),
        "dataset": {key: value for key, value in config.dataset.items() if key not in unsigned(Dataset)},
        "training": {key: value for key, value in config.training.items() if key not in unsigned(Training)},
        "seed": config.seed,
    }
    flat = dict(_flatten(signed))
    return {
        key: value
        for key, value in flat.items()
        if not (key.endswith(".name") and key != "dataset.name") and not (key in NEUTRAL and value == NEUTRAL[key])
    }


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and leaves; lists are leaves unless they hold dicts. Whole floats become ints: 1 and 1.0 are one."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    if isinstance(value, dict) and value:
        entries = list(value.items())
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        entries = list(enumerate(value))
    else:
        yield prefix, [_plain(item) for item in value] if isinstance(value, list) else _plain(value)
        return
    for key, item in entries:
        yield from _flatten(item, f"{prefix}.{key}" if prefix else str(key))


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def signature(flat: dict[str, Any]) -> str:
    """8 hex digits for a science dict."""
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:8]


def columns(config: DictConfig) -> dict[str, Any]:
    """What tables show of a run and its config can tell. `group` is shared by runs that differ only in their seed."""
    flat = science(config)
    model = config.model
    return {
        "run": run_name(config, signature(flat)),
        "signature": signature(flat),
        "group": signature({key: value for key, value in flat.items() if key != "seed"}),
        "dataset": config.dataset.name,
        "model": model.get("name"),
        "backbone": (model.get("backbone") or {}).get("name"),
        "routing": (model.get("routing") or {}).get("name"),
        "schedule": (model.get("routing") or {}).get("schedule"),
        "num_routing": model.get("num_routing"),
        "seed": config.seed,
        "epochs": config.training.epochs,
    }


def run_name(config: DictConfig, identity: str) -> str:
    """The folder's name: a readable part and the signature `identity`, safe on every file system."""
    model = config.model
    parts = [config.dataset.name, model.get("name")]
    parts += [model[key].get("name") for key in ("backbone", "routing") if key in model]
    parts += [f"r{model.num_routing}"] if "num_routing" in model else []
    readable = re.sub(r"[^A-Za-z0-9_.+-]", "_", "-".join([*map(str, parts), f"s{config.seed}"])).lstrip(".-")[:120]
    return f"{readable}-{identity}"


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file whole: write beside it, flush to the disk, rename."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        with suppress(OSError):
            beside.unlink()
        if isinstance(error, OSError):  # a full disk does not say which file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def append_line(path: Path, line: str) -> None:
    try:
        with open(path, "a") as file:
            file.write(line + "\n")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, (json.dumps(value, indent=1, default=str) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; {} when there is none, and with a warning when it is damaged."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read and counts as absent: %s", path, error)
        return {}
    if isinstance(value, dict):
        return value
    log.warning("%s cannot be read and counts as absent: it holds no object", path)
    return {}


def check_runs_dir(runs_dir: Path) -> None:
    """Raises ValueError when nothing can be written under runs_dir. Leaves nothing behind."""
    try:
        existing = next(path for path in [runs_dir.absolute(), *runs_dir.absolute().parents] if path.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(
            f"runs_dir={runs_dir} cannot be written ({error.strerror}); set runs_dir=… to a folder that can"
        ) from error


def find_runs(runs_dir: Path) -> dict[str, Run]:
    """Signature → run, for every run folder under runs_dir."""
    try:
        with os.scandir(runs_dir) as entries:
            named = [entry for entry in entries if re.fullmatch(r"[^.].*-[0-9a-f]{8}", entry.name)]
            names = [entry.name for entry in named if os.path.isdir(entry.path)]  # False for a link to itself, too
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ValueError(
            f"runs_dir={runs_dir} cannot be read ({error.strerror}); set runs_dir to another one"
        ) from error
    return {name[-8:]: Run(runs_dir / name) for name in sorted(names)}


class Run:
    """One run folder, whether it exists yet or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put_aside(self) -> Path:
        """Move the folder to `.superseded/` beside it, so that the run can be made anew. Raises Busy when in use."""
        if self.state() == "running":
            raise Busy(f"{self.folder} is in use by {_describe(self._attempt_path(self._last_attempt()))}")
        shelf = self.folder.parent / ".superseded"
        shelf.mkdir(exist_ok=True)
        number = 1
        while (target := shelf / f"{self.folder.name}.{number}").exists():
            number += 1
        self.folder.rename(target)
        return target

    def request_cancel(self) -> bool:
        """Ask the process that works here, on whatever host, to save and stop. False when there is none."""
        if self.state() != "running":
            return False
        (self.folder / "cancel").touch()
        return True

    def record(self) -> dict[str, Any]:
        """What run.json holds: the columns of `load_runs`, science, provenance, execution, attempts."""
        path = self.folder / "run.json"
        record = read_json(path)
        for key, kind in RECORD_TYPES.items():
            value = record.get(key)
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                log.warning("%s is damaged: %s is left out", path, key)
                del record[key]
        if any(not isinstance(attempt, dict) for attempt in record.get("attempts") or []):
            log.warning("%s is damaged: attempts are left out", path)
            del record["attempts"]
        return {key: value for key, value in record.items() if value is not None or key not in RECORD_TYPES}

    def state(self, record: dict[str, Any] | None = None) -> str:
        """One of STATES. The folder decides: a summary means finished, a living claim means running."""
        if (self.folder / "summary.json").exists():
            return "finished"
        number = self._last_attempt()
        if number and alive(self._attempt_path(number)):
            return "running"
        record = self.record() if record is None else record
        if record.get("state") == "failed":
            return "failed"
        return "interrupted" if number else "new"

    def compare(self, asked: dict[str, Any], record: dict[str, Any]) -> None:
        """Raises ValueError when the folder's signed config is not the one asked for: never reuse other science."""
        stored = record.get("science")
        if stored is None and (self.folder / "config.yaml").exists():
            try:
                stored = science(DictConfig(OmegaConf.load(self.folder / "config.yaml")))
            except Exception as error:
                reason = " ".join(str(error).split())
                raise ValueError(
                    f"{self.folder / 'config.yaml'} is damaged ({reason}); move the folder away"
                ) from error
        if stored is None or stored == asked:
            return
        stored = {key: value for key, value in stored.items() if not (key in NEUTRAL and value == NEUTRAL[key])}
        keys = sorted(key for key in stored.keys() | asked.keys() if stored.get(key) != asked.get(key))
        if keys:
            differences = ", ".join(f"{key}={stored.get(key)} there and {asked.get(key)} here" for key in keys)
            raise ValueError(f"{self.folder} holds another run under the same signature: {differences}; move it away")

    def compare_data(self, sha256: str) -> None:
        """Raises ValueError when the run was trained on other data than those with this hash."""
        if self.record().get("data_sha256", sha256) != sha256:
            raise ValueError(
                f"the images under data_dir are not those that {self.folder} was trained on (their hash differs); "
                "bring the old data back, or move the folder away to train anew"
            )

    @contextmanager
    def claim(self) -> Iterator[Claim]:
        """Own the folder for the time of a `with`. Raises Busy when somebody else does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        last = self._last_attempt()
        if last and alive(self._attempt_path(last)):
            raise Busy(f"{self.folder} is in use by {_describe(self._attempt_path(last))}")
        path, nonce = self._attempt_path(last + 1), uuid4().hex
        try:
            with open(path, "x") as file:
                json.dump({**owner(), "nonce": nonce}, file)
        except FileExistsError:
            raise Busy(f"{self.folder} was claimed a moment ago by {_describe(path)}") from None
        claim = Claim(self, last + 1, nonce)
        if self._last_attempt() != last + 1:  # others came and went since `last` was read: they know more
            path.unlink()
            raise Busy(f"{self.folder} is in use")
        for number in self._attempts():
            if number <= last:
                self._attempt_path(number).unlink(missing_ok=True)
        claim.start()
        try:
            yield claim
        finally:
            claim.stop()

    def _attempts(self) -> list[int]:
        try:
            names = os.listdir(self.folder)
        except OSError:
            return []
        return [int(found[1]) for name in names if (found := re.fullmatch(r"attempt-(\d+)\.(?:json|released)", name))]

    def _last_attempt(self) -> int:
        return max(self._attempts(), default=0)

    def _attempt_path(self, number: int) -> Path:
        return self.folder / f"attempt-{number}.json"


class Claim:
    """The right to write in a run folder; its file's time is the heartbeat."""

    def __init__(self, run: Run, attempt: int, nonce: str) -> None:
        self.run, self.attempt, self.nonce = run, attempt, nonce
        self._path = run._attempt_path(attempt)
        self.cancelled = False  # somebody asked for the run's end: `request_cancel`
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")

    def start(self) -> None:
        self._cancel_file.unlink(missing_ok=True)
        self._thread.start()

    @property
    def _cancel_file(self) -> Path:
        return self.run.folder / "cancel"

    def stop(self) -> None:
        self._done.set()
        self._thread.join()
        with suppress(OSError, ValueError):  # the folder may be gone or another's; then there is nothing to release
            self.check()
            self._cancel_file.unlink(missing_ok=True)
            try:
                write_json(self._path, {**owner(), "released": time.time()})
            except OSError:  # a full disk: a new name needs no room
                self._path.rename(self._path.with_suffix(".released"))

    def check(self) -> None:
        """Raises ValueError when the folder was removed or taken over; called before anything is written."""
        if self.run._last_attempt() != self.attempt or read_json(self._path).get("nonce") != self.nonce:
            raise ValueError(
                f"{self.run.folder} was removed or taken over while the run was in it; nothing more is written"
            )

    def update(self, **changes: Any) -> None:
        """Change fields of run.json."""
        self.check()
        write_json(self.run.folder / "run.json", {**self.run.record(), **changes})

    def _beat(self) -> None:
        beat = time.monotonic()
        while not self._done.wait(1.0):
            self.cancelled = self.cancelled or self._cancel_file.exists()
            if time.monotonic() - beat >= HEARTBEAT_SECONDS:
                beat = time.monotonic()
                with suppress(OSError):
                    os.utime(self._path)


def _host() -> str:
    """This machine as far as process numbers mean the same: name, boot, and process namespace where there are such."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _process_start(pid: int) -> str | None:
    """When a process of this host started, in a unit that no clock change moves; None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    import psutil  # where there is no /proc

    try:
        return str(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def owner() -> dict[str, Any]:
    """This process, as claims and sweeps name it."""
    return {"host": _host(), "pid": os.getpid(), "start": _process_start(os.getpid()), "time": time.time()}


def alive(path: Path) -> bool:
    """Whether the process that a claim or sweep file names still works: see the head of this file."""
    try:
        owner = json.loads(path.read_text())
        if "released" in owner:
            return False
        if owner["host"] == _host():
            return _process_start(owner["pid"]) == owner["start"]
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError):
        pass  # being written at this moment, or damaged: its age decides
    try:
        return time.time() - path.stat().st_mtime < STALE_SECONDS  # a clock set back makes it young: alive
    except OSError:
        return False


def process_here(path: Path) -> int | None:
    """The living process on this host that a claim or sweep file names; None for any other."""
    owner = read_json(path)
    here = owner.get("host") == _host() and isinstance(owner.get("pid"), int)
    return owner["pid"] if here and _process_start(owner["pid"]) == owner.get("start") else None


def living_elsewhere(path: Path) -> str | None:
    """The other host whose process a sweep file names; None when it names one of this host, or none."""
    host = read_json(path).get("host")
    return host.split()[0] if isinstance(host, str) and host and host != _host() else None


def _describe(path: Path) -> str:
    owner = read_json(path)
    return f"process {owner.get('pid', '?')} on {str(owner.get('host', '?')).split()[0]}"
