"""Run folders as one file: a tar archive, compressed with gzip. Nothing in an archive is trusted.

<run>/<file>             the files FILES of each run
.sweeps/<sweep>.json     which runs were asked for together, and which seeds a procedure chose
"""

import gzip
import os
import re
import shutil
import tarfile
import threading
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from capsule_sweeps.runs.files import MAX_BYTES, make_folder, open_regular, share
from capsule_sweeps.runs.labels import FILE as LABELS_FILE
from capsule_sweeps.runs.metrics import MAX_METRICS
from capsule_sweeps.runs.run import Run

CHECKPOINT = "checkpoint.pt"
FILES = {  # files of a run folder that are bundled → their largest size in bytes
    "config.yaml": 2**17,
    "run.json": MAX_BYTES,
    "metrics.jsonl": MAX_METRICS,
    "summary.json": MAX_BYTES,
    LABELS_FILE: 2**20,
    "log.txt": 2**26,
    "error.txt": 2**24,
    CHECKPOINT: 2**33,
}
RUN_NAME = r"[A-Za-z0-9_+][A-Za-z0-9_.+-]{0,200}-[0-9a-f]{8}"
SWEEPS = ".sweeps"
SWEEP_NAME = r"(?:sweep|seeds)-[0-9a-f]{8}\.json"
MAX_MEMBERS = 200_000
MAX_READ = 2**20  # bytes per read, and of a header
HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, b"x", b"g", b"X")  # the last three are of PAX
WRONG = (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, OverflowError, IndexError, RecursionError)


def write_bundle(runs: Iterable[Run], sweeps: Iterable[Path], out: Path, checkpoints: bool) -> int:
    """Write the folders of some runs, and sweep files, to a new archive. Returns the number of files in it.

    Equal folders give equal bytes. Raises ValueError if `out` exists, and OSError if it cannot be written.
    """
    if out.exists():
        raise ValueError(f"{out} exists: set --out to the name of a new file")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"{out} cannot be written: {out.parent} is not a folder")
    beside, count = out.with_name(f".{out.name}.{os.getpid()}.{threading.get_ident()}.tmp"), 0
    try:
        with (
            open(beside, "wb") as raw,
            gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for run in runs:
                for name, most in FILES.items():
                    if name != CHECKPOINT or checkpoints:
                        count += _add(archive, run.folder / name, f"{run.folder.name}/{name}", most)
            for path in sweeps:
                count += _add(archive, path, f"{SWEEPS}/{path.name}", MAX_BYTES)
        beside.rename(out)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return count


def _add(archive: tarfile.TarFile, path: Path, name: str, most: int) -> int:
    try:
        with open_regular(path) as file:
            member = tarfile.TarInfo(name)
            member.size = os.fstat(file.fileno()).st_size
            if member.size > most:
                raise ValueError(f"{path} is larger than {most:,} bytes: exclude its run")
            archive.addfile(member, file)
    except FileNotFoundError:
        return 0
    return 1


def unpack(path: Path, into: Path) -> None:
    """Unpack an archive below an empty folder. Raises ValueError (one sentence) for one that is not a bundle.

    Only regular files with the names of a bundle are written, each once and within its size.
    """
    try:
        with (
            open_regular(path) as raw,
            gzip.GzipFile(fileobj=raw) as packed,
            tarfile.open(fileobj=packed, mode="r|", tarinfo=_Member) as archive,
        ):
            _unpack(archive, into)
            if sum(len(packed.read(MAX_READ)) for _ in range(2)) > MAX_READ:  # reads its checksum as well
                raise ValueError("it has data after its end")
    except WRONG as error:
        if isinstance(error, FileNotFoundError):
            raise ValueError(f"{path} does not exist: give a bundle or a folder of runs") from error
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path} is refused: {reason}") from error


def _unpack(archive: tarfile.TarFile, into: Path) -> None:
    seen: set[str] = set()
    free = shutil.disk_usage(into).free
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # a list of all of them would grow with the archive
        run, _, name = member.name.partition("/")
        most = FILES.get(name, 0) if re.fullmatch(RUN_NAME, run) else 0
        if run == SWEEPS and re.fullmatch(SWEEP_NAME, name):
            most = MAX_BYTES
        if not most:
            raise ValueError(f"it has {member.name[:100]!a}, which is not a file of a run folder")
        if not member.isreg() or member.issparse():
            raise ValueError(f"it has {member.name[:100]!a}, which is a link, a device or a folder, not a file")
        if member.name in seen or len(seen) >= MAX_MEMBERS:
            raise ValueError(f"it has {member.name[:100]!a} twice" if member.name in seen else "it has too many files")
        free -= member.size
        if member.size > most or free < 0:
            raise ValueError(f"{member.name} has {member.size:,} bytes, more than {min(most, free + member.size):,}")
        seen.add(member.name)
        source = archive.extractfile(member)
        assert source is not None
        make_folder(into / run)
        with open(into / run / name, "xb") as file:
            share(into / run / name, file.fileno())
            shutil.copyfileobj(source, file, MAX_READ)
            if file.tell() != member.size:
                raise ValueError(f"{member.name} ends too early")
    if not seen:
        raise ValueError("it is empty")


class _Member(tarfile.TarInfo):
    """What tarfile reads of a member before we see it, such as long names, has a bounded size."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.type in HEADERS and member.size > MAX_READ:
            raise ValueError("it has a header that is too large")
        return member


def copy_files(folder: Path, into: Path, names: Iterable[str]) -> None:
    """Copy those of some files of a run folder that exist. Raises ValueError for links and files that are too large."""
    for name in names:
        try:
            with open_regular(folder / name) as source, open(into / name, "xb") as file:
                share(into / name, file.fileno())
                if os.fstat(source.fileno()).st_size > FILES[name]:
                    raise ValueError(f"larger than {FILES[name]:,} bytes")
                shutil.copyfileobj(source, file, MAX_READ)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            (into / name).unlink(missing_ok=True)
            raise ValueError(f"{name} cannot be read ({getattr(error, 'strerror', None) or error})") from error
