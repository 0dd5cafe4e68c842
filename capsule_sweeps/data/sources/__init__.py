"""Where images come from: one file per `dataset.source`, found by its name.

To add a source, add a file here and a file in conf/dataset. Nothing in this file, folder.py and npz.py imports torch,
because the plan of a sweep measures image folders.
"""

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from capsule_sweeps.data.cache import Decoded


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
    return cast(Source, import_module(f"{__name__}.{name}"))
