"""Evaluates the weights of a run on test images: `python -m capsule_sweeps evaluate`. The run folder is only read.

Shapes: N images, K classes, L labels an image (1, or 2 of overlapping digits). Accuracies and errors are in percent.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from capsule_sweeps.config.check import check, check_effects_on_data
from capsule_sweeps.config.compose import compose_config
from capsule_sweeps.config.errors import sentence
from capsule_sweeps.config.schema import MAX_ITERATIONS
from capsule_sweeps.config.selection_rules import names
from capsule_sweeps.data.load import Data, load_data
from capsule_sweeps.display import counted, markdown
from capsule_sweeps.evaluation.class_names import match_classes
from capsule_sweeps.evaluation.measure import NUM_BINS, Evaluation, evaluations
from capsule_sweeps.evaluation.weights import SHOWN_AS, code_note, load_checkpoint, load_weights
from capsule_sweeps.networks.capsnet import CapsNet
from capsule_sweeps.results.columns import short_names
from capsule_sweeps.results.render import render
from capsule_sweeps.runs.learned import find_not_learned
from capsule_sweeps.runs.run import Run
from capsule_sweeps.training.execution import choose_device

DOUBT = 1.0  # points between the accuracy of an imported file and ours
WIDEST = 12  # classes; of more the table has no confusion matrix, but the most frequent confusion of each class
TAKEN = ("dataset", "data_dir", "device")


def evaluate(
    run: Run,
    overrides: Sequence[str],
    iterations: Sequence[int] = (),
    form: str = "table",
    figure: Path | None = None,
    classes_in_order: bool = False,
    confusion: bool = False,
    weights: str | None = None,
) -> str:
    """The output of the command; draws the figure. Raises ValueError for runs and conditions that cannot be evaluated.

    `iterations`: routing iterations to evaluate with; none stands for those of the run. Labels are matched by the names
    of the classes (`match_classes`). `weights`: one of `weights.WEIGHTS`; None stands for the last ones and, where the
    run has them, their average.
    """
    model, config, checkpoint = load_checkpoint(run.folder) if weights is None else load_weights(run.folder, weights)
    config, data = load_test_data(config, overrides)
    if trained := run.record().get("classes"):
        data = match_classes(data, trained, classes_in_order)
    iterates = isinstance(model, CapsNet) and model.capsules.class_routing.iterates
    said = []
    if iterations and not iterates:
        named = config.model.routing.name if "routing" in config.model else config.model.name
        said.append(f"--num-routing has no effect on {named}, which has no iterations.")
    asked = (list(iterations) or [int(config.model.num_routing)]) if iterates else [None]
    found = evaluations(model, config, data, asked, run.folder.name)
    if weights is not None:
        found = [one._replace(weights=SHOWN_AS.get(weights, weights)) for one in found]
    if "ema" in checkpoint:
        model.load_state_dict(checkpoint["ema"])
        name = f"{run.folder.name}, average"
        found += [one._replace(weights="average") for one in evaluations(model, config, data, asked, name)]
    if figure:
        from capsule_sweeps.evaluation.figures import confusion_figure
        from capsule_sweeps.results.figures import save_as

        matrices = {_panel(one): one.confusion for one in found if one.confusion is not None}
        if not matrices:
            raise ValueError("--figure draws confusion matrices, which images with two labels do not have")
        written = save_as(confusion_figure(matrices, data.classes), figure)
        said.append(f"Wrote {written[0]} and {written[1]}.")
    said = [*notes(run, config, data, checkpoint, found), *said]
    if not (confusion or form == "json"):
        found = [one._replace(confusion=None) for one in found]
    return show(run, config, data, found, form, said, overrides)


def parse_iterations(text: str | None) -> list[int]:
    words = [] if text is None else text.split(",")
    if not all(word.isdecimal() and 1 <= int(word[:9]) <= MAX_ITERATIONS for word in words):
        raise ValueError(
            f"--num-routing {text} is invalid: set whole numbers from 1 to {MAX_ITERATIONS}, such as 1,2,3"
        )
    return list(dict.fromkeys(map(int, words)))


def load_test_data(config: DictConfig, overrides: Sequence[str]) -> tuple[DictConfig, Data]:
    """The run's config with the data set that overrides ask for, on the device to use, and its data.

    Images are normalized as the run's were, unless overrides say dataset.mean and dataset.std. Raises ValueError for
    overrides of other things, and for images or classes that are not those of the model.
    """
    for word in overrides:
        if word.lstrip("+~").partition("=")[0].split(".")[0] not in TAKEN:
            raise ValueError(f"{word}: what can be changed is {', '.join(TAKEN)}; the rest belongs to the trained run")
    own = config.dataset
    if any(word.startswith("dataset=") for word in overrides):
        asked = compose_config(list(overrides))
        asked.data_dir = asked.data_dir if any(word.startswith("data_dir=") for word in overrides) else config.data_dir
    else:
        asked = compose_config([])
        asked.dataset, asked.data_dir = OmegaConf.merge(asked.dataset, own), config.data_dir
        asked = apply(overrides, asked)
        if values_of(overrides).keys() & {"dataset.views", "dataset.base"}:  # not for those of the run itself
            check_effects_on_data(asked.dataset)
    for key in ("mean", "std"):
        if not any(word.startswith(f"dataset.{key}=") for word in overrides):
            asked.dataset[key] = own[key]
    for key in ("num_classes", "channels", "image_size", "labels_per_image"):
        there, here = own.get(key, 1), asked.dataset[key]  # configurations of older versions have no labels_per_image
        if there != here:
            raise ValueError(f"dataset.{key}={here} of {asked.dataset.name} does not fit the model, which has {there}")
    device = choose_device(asked.device)
    config = DictConfig({**config, "dataset": check(asked).dataset, "data_dir": asked.data_dir, "device": str(device)})
    data = load_data(config.dataset, Path(config.data_dir), device)
    config.dataset.mean, config.dataset.std = map(list, data.normalization)  # measured, where overrides say null
    return config, data


def apply(overrides: Sequence[str], config: DictConfig) -> DictConfig:
    """A checked copy of a config with these values changed, which are no choices of a group."""
    changed = config.copy()
    try:
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            if override.is_delete() or override.is_sweep_override():
                raise ValueError(f"{override.input_line} is invalid here: set one value, KEY=VALUE")
            OmegaConf.update(changed, override.key_or_group, override.value())
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(f"{' '.join(overrides)}: {sentence(error)}") from error
    return check(changed)


def values_of(overrides: Sequence[str]) -> dict[str, Any]:
    """Key → value of overrides that give one value each; numbers are numbers."""
    words = dict(word.lstrip("+~").split("=", 1) for word in overrides)
    return {key: _number(value) for key, value in words.items()}


def _number(text: str) -> Any:
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        return text


# What is printed


def notes(
    run: Run, config: DictConfig, data: Data, checkpoint: Mapping[str, Any], found: Sequence[Evaluation]
) -> list[str]:
    """Sentences: which weights and images these are, what the run itself recorded, and what the numbers mean."""
    record, dataset = run.record(), config.dataset
    epochs = f"epoch {checkpoint['epoch'] + bool(checkpoint.get('batch'))}"
    accuracies = {rule: record.get(f"accuracy_{rule}") for rule in names()}
    recorded = ", ".join(f"{100 * value:.2f} % ({rule})" for rule, value in accuracies.items() if value is not None)
    trained = config.model.get("num_routing")
    said = [
        f"{counted(len(data.test), 'test image')} of {dataset.name}, weights of {epochs} ({run.state(record)}"
        + (f", num_routing={trained})" if trained is not None else ")")
        + (f"; recorded of the run: {recorded}." if recorded else ".")
    ]
    if why := find_not_learned(run, record) if run.state(record) == "finished" else None:
        said.append(f"The run did not learn: {why}.")
    if note := code_note(record):
        said.append(note)
    moves = {"test_rotation": "turned left by {} degrees", "test_shift": "moved right by {} pixels"}
    moved = [words.format(dataset[key]) for key, words in moves.items() if dataset[key]]
    if dataset.affine_test:
        moved.insert(0, "turned, sheared, scaled and shifted at random (affine_test)")
    if moved:
        said.append(f"Images were {' and '.join(moved)}; pixels from outside are black.")
    hashed_so = bool(record.get("signed_config", {}).get("dataset.affine_test"))  # affine_test is hashed as well
    if hashed_so == dataset.affine_test and record.get("data_sha256") not in (None, data.sha256):
        said.append("These data differ from those that it was trained on (by their hash).")
    theirs = accuracies["best_test"]
    alike = [one for one in found if one.num_routing == trained and not moved]
    if "imported" in record and theirs and alike and abs(alike[0].accuracy - 100 * theirs) > DOUBT:
        said.append(
            "The file reports another accuracy: other images, another num_routing or schedule, or written by the other "
            "one of the two published programs (import it again with capsules.interleaved="
            f"{str(not config.capsules.interleaved).lower()})?"
        )
    if "ema" in checkpoint:
        said.append(f"average: the average of the weights over steps, training.ema={config.training.ema}.")
    said.append("Accuracies are in %; loss: " + str(config.training.get("loss") or "cross_entropy") + ".")
    if found[0].calibration_error is None:
        said.append(
            "An image counts as correct when all its labels are classified; calibration and confusion need one label."
        )
    else:
        said.append(
            f"calibration_error: expected calibration error (ECE) in points, {NUM_BINS} bins of equal width, "
            "confidence = largest softmax probability."
        )
    return said


def show(
    run: Run,
    config: DictConfig,
    data: Data,
    found: Sequence[Evaluation],
    form: str,
    said: Sequence[str],
    overrides: Sequence[str] = (),
) -> str:
    """`table` and `md`: a table over iterations and one of classes for each; `csv`: one long table of every number with
    its run and its conditions; `json`: a list of objects."""
    if form == "json":
        return json.dumps([_whole(run, config, data, one) for one in found], indent=1)
    if form == "csv":
        asked = values_of(overrides)
        about = {"run": run.folder.name, "dataset": config.dataset.name}
        about |= {name: asked[key] for key, name in short_names([*asked], [*about]).items() if key != "dataset"}
        rows = [{**about, **row} for one in found for row in _long(data.classes, one)]
        return render(pd.DataFrame(rows), "csv")
    columns = ["num_routing", "weights", "images", "accuracy", "loss", "calibration_error"]
    overview = pd.DataFrame(found).assign(images=len(data.test))[columns].astype({"num_routing": "Int64"})
    parts = [render(overview, form, title=run.folder.name, note=" ".join(said))]
    for one in found:
        heading = f"**{markdown(_title(one))}**\n\n" if form == "md" else ""
        parts.append(heading + render(class_table(data.classes, one), form, _title(one)))
    return "\n\n".join(parts)


def class_table(classes: Sequence[str], one: Evaluation) -> pd.DataFrame:
    """A row for each class: images, accuracy, and how often each class was predicted."""
    table = pd.DataFrame({"class": list(classes), "images": one.class_images, "accuracy": one.class_accuracy})
    if one.confusion is None:
        return table
    if len(classes) <= WIDEST:
        return table.join(pd.DataFrame(one.confusion, columns=[f"→ {name}" for name in classes]))
    wrong = one.confusion - np.diag(np.diag(one.confusion))
    most = wrong.argmax(1)
    names = [classes[place] if count else None for place, count in zip(most, wrong.max(1), strict=True)]
    return table.assign(**{"most often predicted": names, "times": wrong.max(1)})


def _label(one: Evaluation) -> str:
    iterations = None if one.num_routing is None else f"num_routing={one.num_routing}"
    return ", ".join(filter(None, (iterations, "average" if one.weights == "average" else None)))


def _panel(one: Evaluation) -> str:
    """The title of a confusion matrix in a figure, which is shown without the table."""
    return ", ".join(filter(None, (_label(one._replace(weights="last")), f"weights={one.weights}")))


def _title(one: Evaluation) -> str:
    what = "Classes" if one.confusion is None else "Classes, and how often each class was predicted"
    return ", ".join(filter(None, (what, _label(one))))


def _whole(run: Run, config: DictConfig, data: Data, one: Evaluation) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray | list):
            return [plain(item) for item in value]
        value = value.item() if isinstance(value, np.generic) else value
        return None if isinstance(value, float) and not np.isfinite(value) else value  # JSON has no other

    about = {"run": run.folder.name, "dataset": OmegaConf.to_container(config.dataset), "images": len(data.test)}
    about |= {"classes": list(data.classes), "calibration_bins": NUM_BINS}
    return {**about, **{key: plain(value) for key, value in one._asdict().items()}}


def _long(classes: Sequence[str], one: Evaluation) -> list[dict[str, Any]]:
    """Every number in a row of its own: num_routing, weights, measure, class, taken_for, value."""

    def row(measure: str, value: Any, of: str | None = None, taken_for: str | None = None) -> dict[str, Any]:
        found = {"measure": measure, "class": of, "taken_for": taken_for, "value": value}
        return {"num_routing": one.num_routing, "weights": one.weights, **found}

    rows = [row("accuracy", one.accuracy), row("loss", one.loss), row("calibration_error", one.calibration_error)]
    for number, name in enumerate(classes):
        rows += [row(what, getattr(one, what)[number], name) for what in ("class_images", "class_accuracy")]
        if one.confusion is not None:
            counts = zip(one.confusion[number], classes, strict=True)
            rows += [row("confusion", count, name, other) for count, other in counts]
    return rows
