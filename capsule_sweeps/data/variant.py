"""Optional transformations of a dataset between its source and the training loop."""

import copy
from typing import Any

from capsule_sweeps.data.cache import Decoded
from capsule_sweeps.data.split import Data


class Variant:
    """This one changes nothing. Subclasses are listed in open.py, in the order in which they apply."""

    key: Any = None  # part of the key of the cache, since it changes what is stored there; None: it does not

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    @staticmethod
    def asked(dataset: Any) -> bool:
        """Whether the configuration asks for it."""
        return False

    def origin(self, dataset: Any) -> Any:
        """The data set that the source reads instead."""
        return dataset

    def change(self, decoded: Decoded) -> Decoded:
        """The data to store in the cache instead."""
        return decoded

    def apply(self, data: Data) -> Data:
        """The data for training and evaluation instead."""
        return data


def replaced(dataset: Any, **changes: Any) -> Any:
    copied = copy.deepcopy(dataset)
    for key, value in changes.items():
        setattr(copied, key, value)
    return copied
