"""What can be said of a checkpoint without torch: whether torch.save wrote it, and that it holds tensors alone."""

import io
import pickletools
import zipfile
from pathlib import Path
from typing import BinaryIO

from capsule_sweeps.runs.files import open_regular

MODULES = ("torch", "torch._utils", "collections")  # of what torch.save names in a file of tensors
MOST_NAMES = 2**24  # bytes of data.pkl, which has names and shapes
BESIDE = 2**25  # bytes of what a checkpoint has beside weights, momentum and their average


def check_archive(file: BinaryIO, needed: int | None = None) -> None:
    """Raises ValueError for a zip archive that torch.save did not write or that holds more than `needed` bytes.

    torch.save compresses nothing, so what is unpacked is no larger than the file.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    unpacked, size = sum(member.file_size for member in members), file.seek(0, io.SEEK_END)
    if unpacked > size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError(f"{size:,} bytes would be unpacked to {unpacked:,}; torch.save writes no such file")
    if needed is not None and unpacked > needed:
        raise ValueError(f"it holds {unpacked / 1e6:,.0f} MB, and the model needs {needed / 1e6:,.0f} MB at most")


def check_weights(path: Path, parameters: int | None) -> None:
    """Raises ValueError for a checkpoint that no run with so many parameters has written. Nothing in it is executed."""
    with open_regular(path) as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is a pickle or something else, not what torch.save writes")
        check_archive(file, None if parameters is None else 12 * parameters + BESIDE)
        with zipfile.ZipFile(file) as archive:
            names = next((one for one in archive.infolist() if one.filename.endswith("/data.pkl")), None)
            if names is None or names.file_size > MOST_NAMES:
                raise ValueError("it has no data.pkl of a size that torch.save writes")
            for operation, argument, _ in pickletools.genops(archive.read(names)):
                module = str(argument).partition(" ")[0]
                if operation.name in ("STACK_GLOBAL", "INST") or (operation.name == "GLOBAL" and module not in MODULES):
                    raise ValueError(f"it names {str(argument)[:80]!a}, which no checkpoint of a run does")
