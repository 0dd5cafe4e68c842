"""Where images come from: one file per `dataset.source`, found by its name.

To add a source, add a file here and a file in conf/dataset. Nothing in this file, folder.py and npz.py imports torch,
because the plan of a sweep measures image folders.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from capsule_sweeps.data.cache import Decoded
from capsule_sweeps.display import raised_by


class Source(Protocol):
    """The functions that a file in this folder defines.

    A source that reads `dataset.root` also defines `measure(root)`, a dict with what conf/dataset asks for as
    `${measured:<source>,${dataset.root},<key>}`: name, num_classes, channels and image_size.
    """

    def list_source(self, dataset: Any, data_dir: Path) -> Any:
        """JSON values that change when the data do: names, sizes and times of files, not their content.

        Raises ValueError if this already shows that the data are invalid.
        """

    def read_source(self, dataset: Any, data_dir: Path) -> Decoded:
        """The decoded data set. Raises ValueError (one sentence) for data that cannot be read."""


def find_source(name: str) -> Source:
    """The module that reads `dataset.source=name`. Raises ValueError for an unknown one."""
    known = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
    if name not in known:
        raise ValueError(f"dataset.source={name} is unknown; set it to one of {', '.join(known)}.")
    with source_errors(name):
        found = import_module(f"{__name__}.{name}")
    for function in ("list_source", "read_source"):
        if not hasattr(found, function):
            raise ValueError(f"dataset.source={name} has no function {function}; define it in {found.__file__}.")
    return cast(Source, found)


@contextmanager
def source_errors(name: str) -> Iterator[None]:
    """While open, an error that the code of a source raises becomes a ValueError of one sentence that names its line.

    Others pass: a ValueError or OSError of a `raise` statement of this package, which has a sentence of its own,
    missing packages and too little memory.
    """
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, ValueError | OSError) and raised_by(error).startswith("capsule_sweeps."):
            raise
        lines = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).stem == name]
        place = f", in {name}.py, line {lines[-1].lineno}" if lines else ""
        said = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
        remedy = "check the files and the network" if isinstance(error, OSError | HTTPException) else "fix its code"
        raise ValueError(f"dataset.source={name} failed ({said}{place}); {remedy}.") from error
