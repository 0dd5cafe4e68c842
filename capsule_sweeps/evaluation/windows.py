"""Which of the two published programs made a file: found out by its accuracy on test images.

The programs differ in the windows of convolutional capsule layers (capsules.interleaved, docs/published-code.md), which
leaves no trace in the file, and weights that were trained with one kind of windows work only with it.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

from capsule_sweeps.console import bar
from capsule_sweeps.data.load import Data, load_data
from capsule_sweeps.data.open import identify
from capsule_sweeps.evaluation.measure import share_correct
from capsule_sweeps.evaluation.routing_statistics import sample
from capsule_sweeps.training.execution import choose_device

ENOUGH = 2000  # images that tell the windows apart; all of them confirm
SPREAD = 4.0  # standard deviations that the accuracy on some of the images may be off
FLIPPED = 3  # images that rounding on another machine may change
ASK = "set capsules.interleaved=true (apple/ml-capsules-…, 53899ae) or false (yaohungt/Capsules-…, from 95bcbc2 on)"


def find_windows(
    path: Path, accuracy: float | None, precision: float, config: DictConfig, make: Callable[[bool], nn.Module]
) -> tuple[bool, dict[str, Any]]:
    """Whether the windows are interleaved, and what run.json records of it; {} when there are no such windows.

    `accuracy` is that of the file and `precision` how exactly it is given, both fractions; `make` makes the model with
    and without. Raises ValueError, which asks for capsules.interleaved, when the accuracy or the images are not known,
    or do not decide.
    """
    if not any(layer.kernel_size for layer in config.capsules.layers):
        return False, {}
    if accuracy is None:
        raise ValueError(f"{path} has no accuracy, which would show its windows: {ASK}")
    data = _images(path, config)
    models = {interleaved: make(interleaved) for interleaved in (False, True)}
    some = sample(data.test, ENOUGH)
    deviation = math.sqrt(max(accuracy * (1 - accuracy), 1 / len(some)) / len(some))
    with bar("windows", 2 * (len(some) + len(data.test))) as advance:
        some_of = {which: share_correct(model, config, some, advance=advance) for which, model in models.items()}
        likely = [which for which, share in some_of.items() if abs(share - accuracy) <= SPREAD * deviation + precision]
        all_of = {which: share_correct(models[which], config, data.test, advance=advance) for which in likely}
    margin = precision + FLIPPED / len(data.test)
    agreeing = [which for which, share in all_of.items() if abs(share - accuracy) <= margin + 1e-9]
    found = {**some_of, **all_of}
    if len(agreeing) != 1:
        measured = " and ".join(f"{found[which]:.2%} with capsules.interleaved={str(which).lower()}" for which in found)
        both = "Both agree" if agreeing else "Neither agrees (another num_routing, schedule, or other images?)"
        raise ValueError(
            f"{path} has an accuracy of {accuracy:.2%}; on test images of {config.dataset.name} it is {measured}. "
            f"{both}: to import it all the same, {ASK}"
        )
    chosen = agreeing[0]
    record: dict[str, Any] = {"interleaved": chosen, "accuracy": all_of[chosen], "images": len(data.test)}
    return chosen, {**record, "accuracy_with_the_other_windows": found[not chosen]}


def _images(path: Path, config: DictConfig) -> Data:
    """The data set, if it is here: nothing is downloaded for it."""
    name = config.dataset.name
    try:
        here = identify(config.dataset, Path(config.data_dir)) is not None
        data = load_data(config.dataset, config.data_dir, choose_device(config.device)) if here else None
    except ValueError as error:
        raise ValueError(f"{path}: its windows cannot be determined without test images ({error}); {ASK}") from error
    if data is None:
        raise ValueError(
            f"{path}: its windows can be found out with the test images of {name}, which are not under "
            f"{config.data_dir}: run `python -m capsule_sweeps prepare-data dataset={name}` first, or {ASK}"
        )
    return data
