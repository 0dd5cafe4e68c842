"""Labels by the names of classes: label 0 of one data set may be label 2 of another."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from capsule_sweeps.data.split import Data, Split
from capsule_sweeps.display import listed

log = logging.getLogger(__name__)


def match_classes(data: Data, trained: Sequence[str], in_order: bool = False) -> Data:
    """Test data whose labels are those of the model, which was trained on classes of these names, in this order.

    Another order, and names that differ in case alone, are mapped by name, and a warning says so. `in_order` takes the
    first class for the first, whatever the names. Raises ValueError for other names.
    """
    if in_order or list(data.classes) == list(trained):
        return replace(data, classes=tuple(trained))
    ours, theirs = (listed(names, 20) for names in (data.classes, trained))
    for spelled in (str, str.casefold):
        here, there = ([spelled(name.strip()) for name in names] for names in (data.classes, trained))
        if sorted(here) == sorted(there) and len(set(here)) == len(here):
            break
    else:
        raise ValueError(
            f"the classes of these images are {ours}, but the run was trained on {theirs}; rename the class folders, "
            "or, where the first of these is the first of those and so on, add --classes-in-order"
        )
    log.warning(
        "The classes of these images are %s, and those of the run %s; labels are matched by name.", ours, theirs
    )
    labels = data.test.labels
    places = torch.tensor([there.index(name) for name in here], device=labels.device)
    return replace(data, test=Split(data.test.images, places[labels]), classes=tuple(trained))
