"""The memory of a step, estimated before it is taken, and batches that a model cannot take."""

import pytest

from capsule_sweeps.config.compose import compose_config
from capsule_sweeps.training import memory
from capsule_sweeps.training.memory import check_last_batch, check_memory, step_memory

RESNET = ["backbone=resnet", "capsules=digits"]


def test_estimate_grows_with_the_batch_and_counts_weights(tiny_config) -> None:
    config = tiny_config("backbone.channels=32")
    one, eight, sixteen = (step_memory(config, size) for size in (1, 8, 16))
    assert sixteen - eight == pytest.approx(8 / 7 * (eight - one), rel=0.05)
    features = 4 * 16 * 32 * 16 * 16  # float32, of the backbone, whose halves are 16x16
    assert 2 * features < sixteen < 30 * features


def test_step_that_needs_too_much_is_refused_with_a_batch_that_fits(
    launch, capsule_sweeps, tiny, runs, monkeypatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: memory.PROGRAM + 4 * 2**20)
    large = ["dataset.train_size=1000", "training.batch_size=1000", "backbone.channels=16"]
    ended = launch(*large)
    assert ended.code == 1 and "Traceback" not in ended.text and not runs.folders()
    assert "training.batch_size=1000" in ended.err and " MB" in ended.err
    fits = int(ended.err.split("set training.batch_size=")[1].split()[0])
    assert 8 <= fits < 1000
    assert "training.batch_size=" in capsule_sweeps("doctor", *tiny, *large).out
    assert launch(*large, f"training.batch_size={fits}", "training.epochs=1").code == 0


def test_memory_is_shared_by_the_runs_at_work_at_once(tiny_config, monkeypatch) -> None:
    config = tiny_config("backbone.channels=16", "training.batch_size=40")
    need = step_memory(config, 40) + memory.PROGRAM
    monkeypatch.setattr(memory, "free_memory", lambda: need + 10)
    assert check_memory(config) == need
    with pytest.raises(ValueError, match=r"2 runs at once"):
        check_memory(config, at_once=2)


def test_small_steps_cost_no_estimate(tiny_config, monkeypatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 2**33)
    monkeypatch.setattr(memory, "step_memory", lambda *_: 1 / 0)
    assert check_memory(tiny_config()) is None


@pytest.mark.slow
def test_last_batch_of_one_image_is_refused_where_the_model_compares_images(launch, tiny, capsule_sweeps, runs) -> None:
    base = [text for text in tiny if not text.startswith(("backbone", "capsules"))]
    base += ["model=resnet18", "dataset.image_size=8"]  # whose last grid is one place
    ended = launch("training.batch_size=13", base=base)  # 40 images: 13, 13, 13, 1
    assert ended.code == 1 and "Traceback" not in ended.text
    assert "training.batch_size=12" in ended.err and not runs.folders()
    assert "training.batch_size=12" in capsule_sweeps("doctor", *base, "training.batch_size=13").out
    assert launch("training.batch_size=12", "training.epochs=1", base=base).code == 0


def test_last_batch_of_one_image_is_taken_where_it_can_be(tiny_config) -> None:
    check_last_batch(tiny_config("training.batch_size=13"), 40)
    check_last_batch(tiny_config("training.batch_size=1"), 40)


@pytest.mark.parametrize(
    ("overrides", "measured"),
    [(["routing=em", "num_routing=3"], 159.3e6), (["routing=dynamic", "num_routing=3"], 122.8e6)],
)
def test_estimate_counts_what_our_operators_take(overrides, measured) -> None:
    """`measured`: growth of the resident memory of a process by training steps with 64 images of digits."""
    config = compose_config(["dataset=digits", "training=quick", *overrides])
    assert config.training.batch_size == 64
    assert 0.9 * measured < step_memory(config, 64) < 1.2 * measured


def test_wide_network_without_capsules_is_followed_at_its_batch_size() -> None:
    """Where weights outweigh a small batch, a line through two small batches promised too little (1,352 MB)."""
    config = compose_config(["model=cnn", "dataset=digits", "model.width=1024"])
    assert step_memory(config, 1024) / 1e6 == pytest.approx(1851, rel=0.01)
