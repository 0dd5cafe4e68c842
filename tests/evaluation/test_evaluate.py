"""What a run's weights do on test images: measures by hand, the run's own numbers, other iterations, moved images."""

import csv
import io
import json
import signal
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from capsule_sweeps.data.load import load_data
from capsule_sweeps.evaluation import evaluate
from capsule_sweeps.evaluation.figures import confusion_figure
from capsule_sweeps.evaluation.measure import calibration_error, measure
from capsule_sweeps.evaluation.routing_statistics import watch
from capsule_sweeps.evaluation.weights import load_trained
from capsule_sweeps.results.figures import COLUMN_WIDTH


@pytest.fixture
def finished(trained, runs) -> Path:
    assert trained("num_routing=2").code == 0
    return runs.only()


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def table_of(capsule_sweeps, *words: str) -> list[dict]:
    ended = capsule_sweeps("evaluate", *words, "--format", "json")
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def test_measures_by_hand() -> None:
    logits = torch.tensor([[9.0, 0, 0], [0, 9, 0], [9, 0, 0], [0, 0, 9]])
    found = measure(logits, torch.tensor([0, 1, 1, 2]), None, 2)
    assert found.num_routing == 2 and found.accuracy == 75
    assert found.class_images.tolist() == [1, 2, 1] and found.class_accuracy.tolist() == [100, 50, 100]
    assert found.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert found.loss == pytest.approx(float(F.cross_entropy(logits, torch.tensor([0, 1, 1, 2]))))
    empty = measure(logits[:1], torch.tensor([0]), None)
    assert np.isnan(empty.class_accuracy[1:]).all() and empty.class_images.tolist() == [1, 0, 0]


def test_classes_with_equal_logits_are_named_alike_everywhere() -> None:
    """Of a model that says the same of every image, and of one that says nothing."""
    labels = torch.arange(10).repeat(3)
    for logits in (torch.zeros(30, 10), torch.full((30, 10), torch.nan)):
        found = measure(logits, labels, None)
        assert found.accuracy == pytest.approx(100 * found.confusion.trace() / 30) == 10
        assert found.class_accuracy.tolist() == (100 * found.confusion.diagonal() / 3).tolist()


def test_of_images_with_two_labels_both_must_be_named() -> None:
    logits = torch.tensor([[3.0, 2, 1, 0], [3, 2, 1, 0]])
    found = measure(logits, torch.tensor([[0, 1], [3, 1]]), "margin")
    assert found.accuracy == 50 and found.confusion is None and found.calibration_error is None
    assert found.class_images.tolist() == [1, 2, 0, 1] and found.class_accuracy[[0, 1, 3]].tolist() == [100, 100, 0]


def test_calibration_error_by_hand() -> None:
    """Confidences 0.9, 0.9, 0.62 and 1/15 exactly at the edge of a bin; two bins are enough for the first three."""
    shares = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.62, 0.38]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1])
    # bin of 0.9: accuracy 1/2, two images; bin of 0.62: accuracy 0, one image
    assert calibration_error(shares.log(), labels) == pytest.approx((2 * 0.4 + 0.62) / 3)
    assert calibration_error(shares.log(), labels, 2) == pytest.approx(abs(1 / 3 - (0.9 + 0.9 + 0.62) / 3))
    even = torch.zeros(3, 15, dtype=torch.float64)  # confidence 1/15, accuracy 1/3
    assert calibration_error(even, torch.tensor([0, 1, 2])) == pytest.approx(1 / 3 - 1 / 15)
    sure = torch.tensor([[1e4, 0.0]])
    assert calibration_error(sure, torch.tensor([0])) == 0 and calibration_error(sure, torch.tensor([1])) == 1


def test_numbers_are_those_of_the_run(finished, runs, capsule_sweeps) -> None:
    """Every number from the probabilities of the model itself, and the run's own last epoch; nothing in it changes."""
    before, last = everything(finished), runs.metrics(finished)[-1]
    (found,) = table_of(capsule_sweeps, finished.name)
    assert found["accuracy"] / 100 == pytest.approx(last["test_accuracy"]) and found["num_routing"] == 2
    assert found["loss"] == pytest.approx(last["test_loss"], rel=1e-6) and found["images"] == 397
    assert found["classes"] == list("0123456789") == runs.record(finished)["classes"]
    model, config = load_trained(finished)
    data = load_data(config.dataset, config.data_dir, "cpu")
    for number, other in zip((1, 2, 3), table_of(capsule_sweeps, finished.name, "--num-routing", "1,2,3"), strict=True):
        model.capsules.num_routing = number
        probabilities = torch.cat([watch(model, config, images)[0] for images in data.test.images.split(100)])
        named = probabilities.argmax(1)
        assert other["num_routing"] == number
        assert other["accuracy"] == pytest.approx(100 * (named == data.test.labels).double().mean().item(), abs=0.3)
        counts = np.array(other["confusion"])
        assert counts.sum(1).tolist() == other["class_images"] == data.test.labels.bincount().tolist()
        assert other["accuracy"] == pytest.approx(100 * counts.trace() / 397)
        assert other["class_accuracy"] == pytest.approx((100 * counts.diagonal() / counts.sum(1)).tolist())
        assert 0 <= other["calibration_error"] <= 100 and other["calibration_bins"] == 15
        if number == 2:
            assert {key: other[key] for key in found} == found
    assert everything(finished) == before


@pytest.mark.parametrize("form", ["table", "md", "csv"])
def test_every_format_says_all(finished, capsule_sweeps, form) -> None:
    (whole,) = table_of(capsule_sweeps, finished.name)
    ended = capsule_sweeps("evaluate", finished.name, "--format", form, "--confusion", "--figure", "figures/confusion")
    assert ended.code == 0 and sorted(path.name for path in Path("figures").iterdir()) == [
        "confusion.pdf",
        "confusion.png",
    ]
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(ended.out)))
        values = {(row["measure"], row["class"], row["taken_for"]): float(row["value"]) for row in rows}
        assert values["accuracy", "", ""] == pytest.approx(whole["accuracy"])
        assert values["calibration_error", "", ""] == pytest.approx(whole["calibration_error"])
        assert values["confusion", "3", "5"] == whole["confusion"][3][5] and len(rows) == 3 + 10 * (2 + 10)
        return
    text = " ".join(ended.out.split())
    for words in (f"{whole['accuracy']:.2f}", "15 bins", "ECE", "→ 7", "epoch 2", "(last)", "confusion.png"):
        assert words in text
    assert f"{whole['class_accuracy'][4]:.2f}" in text


def test_moved_images(finished, capsule_sweeps) -> None:
    """Overrides behind the option; a shift of whole pixels is one by hand, and 0 changes nothing."""
    plain, moved = (
        table_of(capsule_sweeps, finished.name, "--num-routing", "2", f"dataset.test_shift={shift}") for shift in (0, 5)
    )
    assert plain == table_of(capsule_sweeps, finished.name)
    model, config = load_trained(finished)
    data = load_data(config.dataset, config.data_dir, "cpu")
    images = F.pad(data.test.images, (5, 0))[..., :-5]
    named = torch.cat([watch(model, config, part)[0] for part in images.split(100)]).argmax(1)
    assert moved[0]["confusion"] != plain[0]["confusion"]
    wanted = torch.bincount(10 * data.test.labels + named, minlength=100).view(10, 10)
    assert np.abs(np.array(moved[0]["confusion"]) - wanted.numpy()).sum() <= 2  # last bits of ties
    ended = capsule_sweeps("evaluate", finished.name, "dataset.test_rotation=15", "dataset.test_shift=-2")
    assert "turned left by 15.0 degrees and moved right by -2 pixels" in " ".join(ended.out.split())
    assert table_of(capsule_sweeps, finished.name, "dataset.affine_test=true")[0]["confusion"] != plain[0]["confusion"]
    text = " ".join(capsule_sweeps("evaluate", finished.name, "dataset.affine_test=true").out.split())
    assert "scaled and shifted at random" in text and "hash differs" not in text  # it was finished on the same images


def test_another_data_set_of_the_same_shape(finished, capsule_sweeps, data_dir) -> None:
    """affine_digits on a canvas as large as the digits; images are normalized as in training."""
    words = ["dataset=affine_digits", "dataset.base=digits", "dataset.image_size=32"]
    (found,) = table_of(capsule_sweeps, finished.name, *words)
    assert found["dataset"]["name"] == "affine_digits" and found["dataset"]["mean"] == [0.3051]
    (found,) = table_of(capsule_sweeps, finished.name, *words, "dataset.mean=[0.1]", "dataset.std=[0.2]")
    assert found["dataset"]["mean"] == [0.1]
    (found,) = table_of(capsule_sweeps, finished.name, "dataset.mean=null", "dataset.std=null")
    assert found["dataset"]["mean"] == pytest.approx([0.3051], abs=1e-4)  # measured


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--num-routing", "0"], "--num-routing 0"),
        (["--num-routing", "1,x"], "--num-routing 1,x"),
        (["training.lr=1"], "training.lr"),
        (["dataset.nothing=1"], "nothing"),
        (["dataset.test_shift=32"], "test_shift"),
        (["dataset.test_rotation=200"], "test_rotation"),
        (["dataset=affine_digits", "dataset.base=digits"], "image_size=40"),
        (["device=cuda:7"], "device=cuda:7"),
        (["~dataset.root"], "dataset.root"),
        (["dataset.views=azimuth"], "dataset.views=azimuth has no effect"),
    ],
)
def test_what_cannot_be_evaluated(finished, capsule_sweeps, words, found) -> None:
    ended = capsule_sweeps("evaluate", finished.name, *words)
    assert ended.code == 1 and found in ended.err and ended.err.count("\n") == 1, ended.err


def test_unknown_option_is_no_override(capsule_sweeps) -> None:
    for words in (["evaluate", "x", "--nothing"], ["status", "--nothing", "x"], ["show", "x", "y"]):
        ended = capsule_sweeps(*words)
        assert ended.code == 2 and "unrecognized" in ended.err


def test_interrupted_run_and_broken_checkpoint(trained, runs, capsule_sweeps) -> None:
    trained(signal_at=(signal.SIGTERM, 3))
    name = runs.only().name
    ended = capsule_sweeps("evaluate", name)
    assert ended.code == 0 and "interrupted" in ended.out and "weights of epoch 1" in ended.out
    path = runs.only() / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-100])
    for command in (["evaluate", name], ["export", name, "--out", "model.pt2"]):
        ended = capsule_sweeps(*command)
        assert ended.code == 1 and "checkpoint.pt is damaged" in ended.err and ended.err.count("\n") == 1
    path.unlink()
    ended = capsule_sweeps("evaluate", name)
    assert ended.code == 1 and "has no checkpoint.pt" in ended.err


def test_averaged_weights_are_evaluated_as_well(launch, runs, capsule_sweeps) -> None:
    assert launch("training.ema=0.9", "num_routing=2").code == 0
    name, last = runs.only().name, runs.metrics(runs.only())[-1]
    plain, average = table_of(capsule_sweeps, name)
    assert (plain["weights"], average["weights"]) == ("last", "average")
    for found, prefix in ((plain, ""), (average, "ema_")):
        assert found["accuracy"] / 100 == pytest.approx(last[f"{prefix}test_accuracy"])
        assert found["loss"] == pytest.approx(last[f"{prefix}test_loss"], rel=1e-6)
    assert plain["loss"] != average["loss"]
    rows = list(csv.DictReader(io.StringIO(capsule_sweeps("evaluate", name, "--format", "csv").out)))
    assert {row["value"] for row in rows if row["measure"] == "loss"} == {
        f"{one['loss']:.10g}" for one in (plain, average)
    }
    ended = capsule_sweeps("evaluate", name, "--num-routing", "1,2", "--format", "md")
    assert "training.ema=0.9" in ended.out and "num_routing=1, average**" in ended.out
    assert [line.split(" | ")[:2] for line in ended.out.splitlines()[2:6]] == [
        ["| 1", "last"], ["| 2", "last"], ["| 1", "average"], ["| 2", "average"]
    ]  # fmt: skip
    (chosen,) = table_of(capsule_sweeps, name, "--weights", "ema")
    assert chosen["weights"] == "average" and chosen["accuracy"] == average["accuracy"]
    words = ("evaluate", name, "dataset.test_shift=0,1", "--weights", "ema")
    rows = list(csv.DictReader(io.StringIO(capsule_sweeps(*words, "--format", "csv").out)))
    assert [row["weights"] for row in rows] == ["average", "average"]
    assert [row["test_shift"] for row in rows] == ["0", "1"] and "attack" not in rows[0]
    words = ("evaluate", "all", "dataset.test_shift=1", "dataset.test_rotation=15,16", "--weights", "ema")
    shifted = list(csv.DictReader(io.StringIO(capsule_sweeps(*words, "--format", "csv").out)))
    assert [(row["test_shift"], row["test_rotation"]) for row in shifted] == [("1", "15"), ("1", "16")]
    assert "test_shift=1" in capsule_sweeps(*words).out.partition("┏")[0], "in the caption of the table"
    (whole, *_) = csv.DictReader(
        io.StringIO(capsule_sweeps("evaluate", name, "dataset.test_shift=1", "--format", "csv").out)
    )
    assert (whole["run"], whole["dataset"], whole["test_shift"]) == (name, "digits", "1")
    assert float(rows[0]["accuracy"]) == pytest.approx(average["accuracy"])
    assert "weights=average" in capsule_sweeps(*words).out


def test_it_tells_the_epoch_of_the_weights_that_it_read(finished, capsule_sweeps, monkeypatch) -> None:
    """A running process may replace the checkpoint meanwhile."""
    path, load = finished / "checkpoint.pt", evaluate.load_test_data

    def replaced(*arguments):
        torch.save({**torch.load(path, weights_only=True), "epoch": 99}, path)
        return load(*arguments)

    monkeypatch.setattr(evaluate, "load_test_data", replaced)
    assert "weights of epoch 2 " in " ".join(capsule_sweeps("evaluate", finished.name).out.split())


def test_changed_code_is_named(finished, runs, capsule_sweeps) -> None:
    folder = runs.only()
    words = "The code has changed since this run was trained (routing.passes)"
    for code, known in (("00000000", True), (runs.record(folder)["attempts"][0]["code"]["routing.passes"], False)):
        (attempt,) = runs.record(folder)["attempts"]
        runs.change_record(folder, attempts=[{**attempt, "code": {**attempt["code"], "routing.passes": code}}])
        shown = " ".join(capsule_sweeps("evaluate", folder.name).out.split())
        assert (words in shown) == known, shown


def test_weights_that_are_not_finite_make_valid_json(finished, capsule_sweeps) -> None:
    checkpoint = torch.load(finished / "checkpoint.pt", weights_only=True)
    checkpoint["model"]["head.weight"].fill_(torch.nan)
    torch.save(checkpoint, finished / "checkpoint.pt")
    ended = capsule_sweeps("evaluate", finished.name, "--format", "json")
    (found,) = json.loads(ended.out, parse_constant=pytest.fail)
    assert found["loss"] is None and found["calibration_error"] is None


def test_models_without_iterations_say_so(launch, runs, capsule_sweeps) -> None:
    assert launch("model=cnn", "model.width=4").code == 0
    ended = capsule_sweeps("evaluate", runs.only().name, "--num-routing", "1,2")
    text = " ".join(ended.out.split())
    assert ended.code == 0 and "--num-routing has no effect on cnn" in text
    assert len(table_of(capsule_sweeps, runs.only().name)) == 1


def test_confusion_figure_is_for_every_reader() -> None:
    """Shares of rows, numbers where few classes leave room, a color map of rising lightness."""
    few = confusion_figure({"r=1": np.array([[3, 1], [0, 0]]), "r=2": np.eye(2, dtype=int)}, ["cat", "dog"])
    few.draw_without_rendering()
    assert few.get_figwidth() == COLUMN_WIDTH
    panels = [axes for axes in few.axes if axes.get_xlabel() == "predicted class"]
    assert [axes.get_title() for axes in panels] == ["r=1", "r=2"]
    assert [text.get_text() for text in panels[0].texts] == ["75", "25"]
    assert np.ma.getmaskarray(panels[0].images[0].get_array())[1].all()  # no images of dogs
    assert [text.get_text() for text in panels[0].get_xticklabels()] == ["cat", "dog"]
    colors = matplotlib.colormaps[panels[0].images[0].get_cmap().name](np.linspace(0, 1, 20))[:, :3]
    assert (np.diff(colors @ [0.299, 0.587, 0.114]) > 0).all()
    many = confusion_figure({"": np.ones((100, 100), int)}, [str(number) for number in range(100)])
    many.draw_without_rendering()
    assert not many.axes[0].texts
