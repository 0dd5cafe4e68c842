"""Labels of other images are matched with those of the model by the names of classes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from capsule_sweeps.data.split import Data, Normalization, Split
from capsule_sweeps.evaluation.class_names import match_classes


def data(classes, labels) -> Data:
    split = Split(torch.zeros(len(labels), 1, 4, 4, dtype=torch.uint8), torch.tensor(labels))
    return Data(split, None, split, "", tuple(classes), Normalization((0.0,), (1.0,)))


@pytest.mark.parametrize(
    ("here", "matched"),
    [
        (["cat", "dog", "fox"], [0, 1, 2, 2]),
        (["fox", "cat", "dog"], [2, 0, 1, 1]),
        (["Fox", "cat", "dog"], [2, 0, 1, 1]),
        (["CAT", "Dog", "fox "], [0, 1, 2, 2]),
    ],
)
def test_labels_follow_names(here, matched, caplog) -> None:
    found = match_classes(data(here, [0, 1, 2, 2]), ["cat", "dog", "fox"])
    assert found.test.labels.tolist() == matched and found.classes == ("cat", "dog", "fox")
    assert bool(caplog.records) == (here != ["cat", "dog", "fox"])


def test_two_labels_an_image_follow_names() -> None:
    assert match_classes(data(["b", "a"], [[0, 1], [1, 0]]), ["a", "b"]).test.labels.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("here", [["dog", "fox", "kat"], ["cat", "dog", "Dog"], ["Cat", "cat", "fox"]])
def test_other_names_ask(here) -> None:
    with pytest.raises(ValueError, match=r"but the run was trained on cat, dog, fox; .*--classes-in-order"):
        match_classes(data(here, [0, 1, 2]), ["cat", "dog", "fox"])
    assert match_classes(data(here, [0, 1, 2]), ["cat", "dog", "fox"], in_order=True).test.labels.tolist() == [0, 1, 2]


def test_case_that_tells_classes_apart_is_kept() -> None:
    assert match_classes(data(["A", "a"], [0, 1]), ["a", "A"]).test.labels.tolist() == [1, 0]


def test_evaluate_on_a_tree_of_other_names(tiny, launch, capsule_sweeps, runs, place) -> None:
    """Images of three grays, which a run tells apart; a tree with other names of the same images asks."""
    for name, gray in (("cat", 0), ("dog", 120), ("fox", 255)):
        for split in ("train", "test"):
            folder = place / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(8):
                Image.fromarray(np.full((16, 16), gray, np.uint8)).save(folder / f"{i}.png")
    words = ["dataset=folder", "dataset.root=photos", "model=cnn", "model.width=8", "training=quick"]
    words += ["training.epochs=2", "training.batch_size=4", "training.compile=off", "tracking=none"]
    assert launch(base=words).code == 0
    name = runs.only().name

    def accuracy(*more: str) -> float:
        ended = capsule_sweeps("evaluate", name, "--format", "json", *more)
        assert ended.code == 0, ended.err
        return json.loads(ended.out)[0]["accuracy"]

    assert (right := accuracy()) > 60
    for before, after in (("fox", "ape"), ("dog", "fox"), ("cat", "dog"), ("ape", "Cat")):
        for split in ("train", "test"):
            (place / "photos" / split / before).rename(place / "photos" / split / after)
    # white is Cat, black is dog, gray is fox: as the run's names have it, none is right
    assert accuracy() < 50
    for split in ("train", "test"):
        (place / "photos" / split / "Cat").rename(place / "photos" / split / "kat")
    asked = capsule_sweeps("evaluate", name)
    assert asked.code == 1 and "dog, fox, kat, but the run was trained on cat, dog, fox" in asked.err
    assert accuracy("--classes-in-order") == right
