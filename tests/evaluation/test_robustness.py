"""Attacks by hand and as bounds, files of CIFAR-10-C, and several runs under several conditions in one table."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from synthetic import finished_run
from torch import Tensor, nn

from capsule_sweeps import load_runs
from capsule_sweeps.console import console
from capsule_sweeps.data.split import Data, Normalization, Split
from capsule_sweeps.evaluation import many
from capsule_sweeps.evaluation.figures import accuracy_curves
from capsule_sweeps.evaluation.many import conditions
from capsule_sweeps.evaluation.robustness import ATTACKS, CORRUPTIONS, corrupted, fgsm

PLAIN = Normalization((0.0,), (1.0,))


class Linear(nn.Module):
    """Two classes of one pixel: logits ± 3 (x − 0.5)."""

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1) - 0.5
        return torch.cat([3 * x, -3 * x], 1)


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_move_each_pixel_against_its_class_by_epsilon_at_most(name) -> None:
    images = torch.tensor([0.60, 0.60, 0.03]).view(3, 1, 1, 1)
    labels = torch.tensor([0, 1, 0])
    attacked = ATTACKS[name](Linear(), images, labels, 0.05, PLAIN)
    assert attacked.flatten().tolist() == pytest.approx([0.55, 0.65, 0.0], abs=1e-6)  # and never beyond black
    assert not attacked.requires_grad


def test_the_gradient_is_that_of_the_normalized_image() -> None:
    """With a mean and a deviation the sign stays the same; a pixel without influence stays where it is."""
    images = torch.full((1, 1, 1, 2), 0.5)

    class First(Linear):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images[..., :1])

    attacked = fgsm(First(), images, torch.tensor([0]), 0.1, Normalization((0.3,), (0.2,)))
    assert attacked.flatten().tolist() == pytest.approx([0.4, 0.5])


def cifar10c(folder: Path) -> np.ndarray:
    images = np.random.default_rng(1).integers(0, 256, (15, 32, 32, 3), dtype=np.uint8)
    (folder / "CIFAR-10-C").mkdir()
    np.save(folder / "CIFAR-10-C" / "fog.npy", images)
    np.save(folder / "CIFAR-10-C" / "labels.npy", np.tile([3, 1, 2], 5))
    return images


def data(size: int = 32) -> Data:
    split = Split(torch.zeros(3, 3, size, size, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
    return Data(split, None, split, "", ("a", "b", "c", "d"), Normalization((0.0,) * 3, (1.0,) * 3))


def test_corrupted_images_of_a_severity(tmp_path) -> None:
    images = cifar10c(tmp_path)
    found = corrupted(data(), tmp_path, "fog", 4).test
    assert np.array_equal(found.images.permute(0, 2, 3, 1).numpy(), images[9:12]) and found.labels.tolist() == [3, 1, 2]
    with pytest.raises(ValueError, match=r"snow needs .*copy the official files there"):
        corrupted(data(), tmp_path, "snow", 1)
    with pytest.raises(ValueError, match="does not fit the test images"):
        corrupted(data(40), tmp_path, "fog", 1)


def test_each_condition_is_there_once() -> None:
    assert conditions(["dataset.test_shift=0,2"]) == [
        ((one,), None, 0.0, None, 0) for one in ("dataset.test_shift=0", "dataset.test_shift=2")
    ]
    found = conditions([], ["fgsm", "pgd"], [0.1, 0.3])
    assert [(one.attack, one.epsilon) for one in found] == [
        (None, 0.0),
        *(("fgsm", 0.1), ("fgsm", 0.3), ("pgd", 0.1), ("pgd", 0.3)),
    ]
    assert len(conditions([], corruptions=["all"])) == 1 + 15 * 5 and len(set(CORRUPTIONS)) == 15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], ["cw"]), "--attack cw is unknown"),
        (([], ["fgsm"], [8.0]), "--epsilon 8 is out of range: black is 0 and white is 1"),
        (([], [], [0.1]), "no effect without --attack"),
        (([], [], [], ["rain"]), "--corruption rain is unknown"),
        (([], [], [], ["fog"], [6]), "--severity 6 is out of range"),
        (([], [], [], [], [1]), "no effect without --corruption"),
    ],
)
def test_conditions_out_of_range_are_one_sentence(arguments, message) -> None:
    with pytest.raises(ValueError, match=message) as failed:
        conditions(*arguments)
    assert len(str(failed.value).splitlines()) == 1


def test_what_a_model_was_trained_with_is_kept_apart_from_what_it_is_evaluated_with(place, monkeypatch) -> None:
    """Trained with 1 and with 2, on two data sets; the accuracy is 10 · trained + evaluated, + 50 on the second set."""

    class Model:
        def __init__(self, trained: int) -> None:
            self.trained, self.capsules = trained, SimpleNamespace(class_routing=SimpleNamespace(iterates=True))

    def load(folder, weights):
        config = OmegaConf.create(json.loads((folder / "run.json").read_text()))
        return Model(config.num_routing), OmegaConf.create({"model": {"num_routing": config.num_routing}}), {}

    def correct(model, config, *_):
        return (10 * model.trained + model.capsules.num_routing + 50 * (config.where == "FashionMNIST")) / 100

    split = SimpleNamespace(test=range(7))
    monkeypatch.setattr(many, "CapsNet", Model)
    monkeypatch.setattr(many, "load_weights", load)
    monkeypatch.setattr(many, "share_correct", correct)
    at = lambda words: words[0].partition("=")[2] if words else ""  # noqa: E731
    monkeypatch.setattr(many, "load_test_data", lambda _, words: (SimpleNamespace(where=at(words)), split))
    for trained in (1, 2):
        finished_run(["dataset=MNIST", f"num_routing={trained}"], 0.5)
    runs, place = load_runs("runs"), Path("runs")
    frame = many.evaluate_many(runs, place, conditions(["dataset.test_shift=0,2"]), [1, 2])
    once = frame[frame.test_shift == 0]
    found = set(zip(once.trained_with, once.num_routing, once.accuracy.round(), strict=True))
    assert found == {(1, 1, 11), (1, 2, 12), (2, 1, 21), (2, 2, 22)}
    table = many.summary(frame)
    assert set(zip(table.trained_with, table.num_routing, table.accuracy.round(), strict=True)) == found
    assert many.abscissa(frame) == "test_shift"
    labels = many.curve_labels(frame, "test_shift")
    assert labels == ["trained_with", "num_routing"]
    (axes,) = accuracy_curves(frame, "test_shift", labels).axes
    curves = {bars.get_label(): [*map(round, bars.lines[0].get_ydata())] for bars in axes.containers}
    assert len(curves) == 4 and curves["trained_with=2, num_routing=1"] == [21, 21]
    assert axes.get_ylabel() == "test accuracy (%), weights=last"
    assert many.curve_labels(frame.drop(columns="trained_with"), "test_shift") == ["num_routing", "group"]
    frame = many.evaluate_many(runs, place, conditions([]), [1, 2])
    assert many.abscissa(frame) == "num_routing" and many.curve_labels(frame, "num_routing") == ["trained_with"]
    assert "trained_with" not in many.evaluate_many(runs, place, conditions([]))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(console(), "_width", 80)
    words = {f"a_setting_{number}": "some_words" * 3 for number in range(5)}
    wide = many.evaluate_many(runs, place, conditions(["dataset.test_shift=0,2"])).assign(**words, num_routing=pd.NA)
    wide = wide.assign(a_setting_0=[f"{'some_words' * 3}{number}" for number in range(len(wide))])
    figure = accuracy_curves(wide.assign(setting=range(len(wide))), "test_shift", [*wide.columns[4:8], "setting"])
    figure.draw_without_rendering()
    (axes,) = figure.axes
    legend, whole = axes.get_legend().get_window_extent(), figure.bbox
    assert legend.x1 <= whole.x1 and legend.y1 <= whole.y1, "the legend is in the figure"
    assert axes.get_window_extent().height / figure.dpi > 1.4, "and leaves room for the curves"
    text = many.show_many(wide, "table", many.notes_on(runs, runs[:1].assign(state="running", not_learned="no")))
    assert max(map(len, text.splitlines())) <= 80 and "some_" in text
    said = " ".join(text.split())
    for words in (
        "num_routing –: models without",
        "Left out: 1 of 2 runs, which has no epoch",
        "Not finished: MNIST",
        "(no)",
    ):
        assert words in said, words
    frame = many.evaluate_many(runs[:1], place, conditions([]), [1, 2])
    assert "trained_with" not in frame and list(frame.num_routing) == [1, 2]
    said = many.show_many(frame, "md", [], many.trained_alike(runs[:1], frame))
    assert "trained_with=1" in said and "training=paper" in said and said.count("dataset=") == 1
    finished_run(["dataset=FashionMNIST", "num_routing=1"], 0.5)
    runs = load_runs("runs", settings=False)
    frame = many.evaluate_many(runs[runs.num_routing == 1], place, conditions(["dataset=MNIST,FashionMNIST"]))
    found = zip(frame.trained_on, frame.dataset, frame.accuracy.round(), strict=True)
    assert sorted(found) == [
        *(("FashionMNIST", "FashionMNIST", 61), ("FashionMNIST", "MNIST", 11)),
        *(("MNIST", "FashionMNIST", 61), ("MNIST", "MNIST", 11)),
    ]


@pytest.mark.slow
def test_runs_and_conditions_in_one_table(launch, capsule_sweeps, runs, place) -> None:
    """Accuracies are those of `evaluate` of one run under one condition; attacks lower them; no run changes."""
    assert launch("-m", "seed=0,1", "training.ema=0.99").code == 0
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    words = ["all", "dataset.test_shift=0,3", "--attack", "fgsm", "--epsilon", "0.2"]
    ended = capsule_sweeps("evaluate", *words, "--format", "csv")
    assert ended.code == 0, ended.err
    rows = pd.read_csv(io.StringIO(ended.out))
    assert len(rows) == 2 * 2 * 2 and set(rows.test_shift) == {0, 3} and set(rows.epsilon) == {0, 0.2}
    name = rows.run[0]
    alone = json.loads(capsule_sweeps("evaluate", name, "dataset.test_shift=3", "--format", "json").out)[0]
    clean = rows[(rows.run == name) & (rows.test_shift == 3) & rows.attack.isna()]
    assert clean.accuracy.item() == pytest.approx(alone["accuracy"])
    means = rows.groupby(rows.attack.isna()).accuracy.mean()
    assert means[False] < means[True]
    table = capsule_sweeps("evaluate", *words, "--figure", "figures/attacked")
    assert table.code == 1 and "needs one numeric condition" in table.err
    table = capsule_sweeps("evaluate", "num_routing=1", "dataset.test_shift=0,3", "--figure", "figures/shifted")
    assert table.code == 0 and Path("figures/shifted.png").is_file(), table.err
    lines = [line for line in table.out.splitlines() if line.startswith("│")]
    expected = rows[(rows.num_routing == 1) & rows.attack.isna()].groupby("test_shift").accuracy.mean()
    assert len(lines) == 2 and all(f"{value:.2f}" in line for value, line in zip(expected, lines, strict=True))
    for weights, key in (("last", "test_accuracy"), ("ema", "ema_test_accuracy")):
        own = pd.read_csv(io.StringIO(capsule_sweeps("evaluate", "all", "--weights", weights, "--format", "csv").out))
        expected = {folder.name: 100 * runs.metrics(folder)[-1][key] for folder in runs.folders()}
        assert own.set_index("run").accuracy.to_dict() == pytest.approx(expected), weights
    ended = capsule_sweeps("evaluate", "all", "--weights", "best")
    assert ended.code == 1 and "no weights of its best epoch" in ended.err and ended.err.count("\n") == 1
    assert {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()} == before
