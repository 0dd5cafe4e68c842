"""Runs that exist are compared with the images that are here now, whatever the plan does with them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from capsule_sweeps.data import open as opened


def photos(parent: Path, seed: int, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """A tree `photos` of classes that differ in brightness."""
    random = np.random.default_rng(seed)
    for split, count in (("train", 4), ("test", 2)):
        for place, name in enumerate(classes):
            folder = parent / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 100, (16, 16), dtype=np.uint8) + np.uint8(100 * place)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return parent / "photos"


@pytest.fixture
def folder(tiny, place):
    """The overrides of a run on a tree, and a tree that is trained on already."""

    def overrides(root: Path | str) -> list[str]:
        drop = ("dataset=", "dataset.train_size=", "training.batch_size=", "data_dir=")
        kept = [word for word in tiny if not word.startswith(drop)]
        return [
            "dataset=folder",
            f"dataset.root={root}",
            *kept,
            "training.batch_size=4",
            "training.epochs=1",
            "backbone=simple",
        ]

    return overrides


OTHER = "not those that runs/photos-"


@pytest.mark.slow
def test_other_images_under_the_name_of_finished_runs(folder, launch, capsule_sweeps, runs, place, monkeypatch) -> None:
    old, new = photos(place / "a", 1), photos(place / "b", 2)
    assert launch(base=folder(old)).code == 0
    again = launch(base=folder(old))
    assert again.code == 0 and "1 to skip" in again.out

    for words in ([], ["-m", "seed=0"], ["hydra.launcher.dry_run=true"]):
        ended = launch(*words, base=folder(new))
        assert ended.code == 1 and OTHER in ended.err and "to skip" not in ended.out, words
    assert launch("hydra.launcher.force=true", "hydra.launcher.dry_run=true", base=folder(new)).code == 0
    both = launch("-m", f"dataset.root={old},{new}", "seed=0,1", base=folder(old)[:1] + folder(old)[2:])
    assert both.code == 1 and OTHER in both.err

    # A tree that only moved is the same, read once more; one that did not is not read again.
    moved = (place / "a" / "photos").rename(place / "photos")
    shutil.copystat(place, moved)
    assert launch(base=folder(moved)).code == 0
    with monkeypatch.context() as patch:
        patch.setattr(opened, "open_decoded", lambda *_: pytest.fail("reads images"))
        assert launch(base=folder(moved)).code == 0

    (moved / "train" / "dog").rename(moved / "train" / "fox")
    (moved / "test" / "dog").rename(moved / "test" / "fox")
    renamed = launch(base=folder(moved))
    assert renamed.code == 1 and "classes are cat, fox instead of cat, dog" in renamed.err

    # A run of before class names were recorded is valid where the images are the same.
    runs.change_record(runs.only(), classes=None)
    assert launch(base=folder(moved)).code == 0
    runs.change_record(runs.only(), data_sha256="0" * 64, state="interrupted")
    (runs.only() / "summary.json").unlink()
    stored = runs.only() / "config.yaml"
    stored.write_text(stored.read_text().replace(str(old), str(moved)))
    retried = capsule_sweeps("retry", "--yes", runs.only().name)
    assert retried.code == 1 and "hash differs" in retried.err + retried.out


def test_one_signature_with_two_sets_of_images(folder, launch, place) -> None:
    old, new = photos(place / "a", 1), photos(place / "b", 2)
    words = [word for word in folder(old) if not word.startswith("dataset.root")]
    ended = launch("-m", f"dataset.root={old},{new}", base=words)
    assert ended.code == 1 and "asked for twice, with different images" in ended.err
    shutil.rmtree(place / "b")
    shutil.copytree(old, place / "b" / "photos")
    assert launch("-m", f"dataset.root={old},{new}", "hydra.launcher.dry_run=true", base=words).code == 0


def test_finished_runs_whose_images_are_gone_are_shown(folder, launch, place) -> None:
    old = photos(place / "a", 1)
    known = ["dataset.name=photos", "dataset.num_classes=2", "dataset.channels=1", "dataset.image_size=16"]
    assert launch(base=[*folder(old), *known]).code == 0
    shutil.rmtree(old)
    ended = launch(base=[*folder(old), *known])
    assert ended.code == 0 and "1 to skip" in ended.out
    assert "Runs that exist are not compared with the images of photos" in ended.text


def test_seeds_with_different_images_are_named(launch, capsule_sweeps, runs) -> None:
    assert launch("-m", "seed=0,1", "training.epochs=1").code == 0
    assert "different images" not in capsule_sweeps("results").out
    runs.change_record(runs.folders()[0], data_sha256="0" * 64)
    said = " ".join(capsule_sweeps("results").out.split())
    assert "differ only in their seed but were trained on different images" in said


def test_comparing_imports_no_torch(python) -> None:
    code = (
        "import sys; from pathlib import Path; from capsule_sweeps import compose_config\n"
        "from capsule_sweeps.data import sources; from capsule_sweeps.data.open import identify\n"
        "import capsule_sweeps.launchers.launch\n"
        "for path in Path(sources.__file__).parent.glob('[!_]*.py'): sources.find_source(path.stem)\n"
        "assert identify(compose_config(['dataset=MNIST']).dataset, Path('nowhere')) is None\n"
        "print('torch' in sys.modules, 'torchvision' in sys.modules)"
    )
    assert python("-c", code, PYTHONPATH=str(ROOT)).out == "False False\n"
