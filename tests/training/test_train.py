"""Training: numbers that do not depend on what was interrupted, what ran before, or how it was executed."""

import gc
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from capsule_sweeps import build_model, compose_config, load_runs
from capsule_sweeps.data.augment import normalize
from capsule_sweeps.data.load import load_data
from capsule_sweeps.evaluation.weights import load_trained
from capsule_sweeps.runs.provenance import provenance
from capsule_sweeps.training import train as training
from capsule_sweeps.training.evaluation import evaluate, evaluation_batch, num_correct
from capsule_sweeps.training.losses import LOSSES, targets

ROOT = Path(__file__).resolve().parents[2]
BATCHES = 5  # of an epoch of the tiny run
KEYS = ["epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr", "seconds", "images_per_second"]


@pytest.fixture
def reference(trained, runs):
    """An untouched run with some overrides, in a runs_dir of its own."""

    def train(*overrides: str) -> Path:
        ended = trained(*overrides, "runs_dir=untouched")
        assert ended.code == 0, ended.text
        return runs.only("untouched")

    return train


# Kills of real processes


def test_run_killed_between_and_inside_epochs_ends_as_if_untouched(hold, launch, reference, runs) -> None:
    more = ["training.epochs=3"]
    hold("step", BATCHES + 1, *more).kill()  # the first epoch is saved, the second not begun
    assert [row["epoch"] for row in runs.metrics(runs.only())] == [1]
    assert load_runs("runs").state[0] == "interrupted"
    hold("step", 3, *more).kill()  # inside the second epoch
    assert [row["epoch"] for row in runs.metrics(runs.only())] == [1]
    ended = launch(*more)  # at once: no heartbeat has grown old
    assert ended.code == 0 and "resume" in ended.out
    runs.assert_same(runs.only(), reference(*more))
    assert len(runs.record(runs.only())["attempts"]) == 3


def test_run_killed_while_it_saves_ends_as_if_untouched(hold, launch, reference, runs) -> None:
    hold("save", 2).kill()  # the second epoch is trained
    assert [row["epoch"] for row in runs.metrics(runs.only())] == [1]
    hold("replace", 1).kill()  # the new checkpoint lies beside the old one
    assert launch().code == 0
    runs.assert_same(runs.only(), reference())


def test_sigterm_inside_an_epoch_saves_the_next_batch(hold, launch, reference, runs, monkeypatch) -> None:
    """With two threads in the first attempt, which the second keeps."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert hold("step", BATCHES + 2).send(signal.SIGTERM) == 128 + signal.SIGTERM
    checkpoint = torch.load(runs.only() / "checkpoint.pt", weights_only=True)
    assert (checkpoint["epoch"], checkpoint["batch"]) == (1, 2)
    assert runs.record(runs.only())["state"] == "interrupted"
    assert not (runs.only() / "error.txt").exists()
    assert launch().code == 0
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        runs.assert_same(runs.only(), reference())
    finally:
        torch.set_num_threads(before)


# Signals and settings, in this process


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2], ids=lambda signum: signum.name)
def test_each_signal_interrupts_and_says_how_to_go_on(launch, reference, runs, signum) -> None:
    ended = launch(signal_at=(signum, 3))
    assert ended.code == 128 + signum
    assert "interrupted" in load_runs("runs").state.tolist()
    assert "Traceback" not in ended.text and signum.name in ended.text
    assert launch().code == 0
    runs.assert_same(runs.only(), reference())


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, BATCHES, BATCHES + 1, 2 * BATCHES])
def test_interrupted_at_any_step(launch, reference, runs, step) -> None:
    launch(signal_at=(signal.SIGTERM, step))
    assert load_runs("runs").state[0] == ("finished" if step == 2 * BATCHES else "interrupted")
    assert launch().code == 0
    runs.assert_same(runs.only(), reference())


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["capsules.dropout=0.3"],
        ["capsules.dropout=0.3", "num_routing=3", "routing.schedule=sequential"],
        ["dataset.val_size=20"],
        ["training.checkpoint_epochs=2", "training.epochs=3"],
        ["training.checkpoint_epochs=0"],
        ["training.amp=bf16"],
        ["training.channels_last=false"],
        ["training=fast", "training.epochs=2", "training.batch_size=8", "training.ema=0.9"],
    ],
    ids=" ".join,
)
def test_interrupted_twice_with_other_settings(launch, reference, runs, overrides) -> None:
    assert launch(*overrides, signal_at=(signal.SIGTERM, 2)).code == 143
    assert launch(*overrides, signal_at=(signal.SIGTERM, BATCHES)).code == 143
    assert launch(*overrides).code == 0
    runs.assert_same(runs.only(), reference(*overrides))


@pytest.mark.slow
def test_interrupted_with_the_running_statistics_of_batchnorm(launch, tiny, runs) -> None:
    base = [text for text in tiny if not text.startswith("backbone")] + ["backbone=resnet"]
    small = ["training.epochs=1", "dataset.train_size=20", "training.ema=0.9"]
    assert launch(*small, base=base, signal_at=(signal.SIGTERM, 2)).code == 143
    assert launch(*small, base=base).code == 0
    assert launch(*small, "runs_dir=untouched", base=base).code == 0
    runs.assert_same(runs.only(), runs.only("untouched"))


@pytest.mark.parametrize("checkpoint_epochs", [0, 2])
def test_epochs_after_the_last_checkpoint_are_trained_again(launch, reference, runs, checkpoint_epochs) -> None:
    """What a SIGKILL leaves when not every epoch is saved: more metrics than the checkpoint knows."""
    more = [f"training.checkpoint_epochs={checkpoint_epochs}", "training.epochs=4"]
    untouched = reference(*more)
    assert launch(*more, signal_at=(signal.SIGTERM, 2 * BATCHES + 1)).code == 143
    folder = runs.only()
    rows = (untouched / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(rows[:3]) + rows[3][:20])  # the last one cut off
    assert launch(*more).code == 0
    runs.assert_same(folder, untouched)


# Nothing that ran earlier in a process influences a run


@pytest.mark.slow
def test_run_in_a_sweep_equals_the_run_alone(launch, reference, runs) -> None:
    alone = reference("seed=2", "capsules.dropout=0.2")
    torch.rand(7)
    ended = launch("-m", "num_routing=2,1", "seed=5,2", "capsules.dropout=0.2")
    assert ended.code == 0
    (same,) = [folder for folder in runs.folders() if folder.name == alone.name]
    runs.assert_same(same, alone)


@pytest.mark.slow
def test_threads_of_a_resumed_run_do_not_leak_into_the_next(launch, runs) -> None:
    """A run resumes with the threads of its first attempt; later runs use those of the process."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        assert launch("seed=0", signal_at=(signal.SIGTERM, 2)).code == 143
        torch.set_num_threads(before)
        assert launch("-m", "seed=0,1").code == 0
        threads = {
            runs.record(folder)["seed"]: runs.record(folder)["execution"]["threads"] for folder in runs.folders()
        }
        assert threads == {0: before + 1, 1: before}
    finally:
        torch.set_num_threads(before)


# How it is executed


class Reads(TorchDispatchMode):
    """While open, notes after which step the program looks at numbers of tensors, or copies its own into one.

    On a GPU it waits there for all that was asked of it before. Nothing of it may come from inside a step, either.
    """

    READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "lift_fresh")

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.after = 0, set[int]()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in self.READS:
            self.after.add(self.steps)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "overrides", [[], ["training=fast", "training.ema=0.9", "capsules.dropout=0.1", "dataset.crop_padding=2"]]
)
def test_numbers_are_read_only_now_and_then(launch, monkeypatch, overrides) -> None:
    reads, step = Reads(), torch.optim.SGD.step

    def counted(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        reads.steps += 1
        return result

    monkeypatch.setattr(torch.optim.SGD, "step", counted)
    monkeypatch.setitem(training.READ_EVERY, "cpu", 2)
    with reads:
        ended = launch(*overrides)
    assert ended.code == 0, ended.text
    assert reads.steps == 2 * BATCHES == 10
    assert reads.after - {0} == {2, 4, 5, 7, 9, 10}, "every second batch, and at the end of an epoch"


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", ["off", "on"])
def test_nothing_in_an_epoch_waits_for_the_gpu(launch, monkeypatch, compiled) -> None:
    step, check_finite, steps = torch.optim.SGD.step, training.check_finite, []

    def then_forbid(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        steps.append(result)
        torch.cuda.set_sync_debug_mode("error")
        return result

    def allow(*args: Any) -> None:  # at the end of an epoch, which is shorter than 50 batches
        torch.cuda.set_sync_debug_mode("default")
        check_finite(*args)

    monkeypatch.setattr(torch.optim.SGD, "step", then_forbid)
    monkeypatch.setattr(training, "check_finite", allow)
    try:
        ended = launch("device=cuda", f"training.compile={compiled}")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert ended.code == 0, ended.text
    assert len(steps) == 2 * BATCHES


@pytest.mark.slow
def test_compiled_run_that_was_interrupted_ends_as_if_untouched(launch, reference, runs, compiler) -> None:
    """With dropout, averaged weights, and a last batch that is smaller."""
    compiled = ["training.compile=on", "capsules.dropout=0.1", "training.batch_size=9", "num_routing=2"]
    compiled += ["training.ema=0.9"]
    untouched = reference(*compiled)
    assert launch(*compiled, signal_at=(signal.SIGTERM, 3)).code == 143
    ended = launch(*compiled)
    assert ended.code == 0, ended.text
    runs.assert_same(runs.only(), untouched)
    assert runs.record(untouched)["execution"]["compile"] is True
    assert "could not be compiled" not in (untouched / "log.txt").read_text()
    assert launch("training.compile=off", *compiled[1:], "runs_dir=eager").code == 0
    assert runs.weights(runs.only("eager")) != runs.weights(untouched), "nothing was compiled"


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("compiled", "amp", "routing"),
    [
        ("off", "none", "inverted_attention"),
        ("on", "none", "inverted_attention"),
        *(("on", "bf16", routing) for routing in ("inverted_attention", "attention", "dynamic", "em", "self_routing")),
    ],
)
def test_interrupted_on_a_gpu(launch, reference, runs, tiny, python, tmp_path, compiled, amp, routing) -> None:
    """The second attempt compiles again, and records CUDA graphs again, as on another node."""
    more = ["device=cuda", f"training.compile={compiled}", f"training.amp={amp}", "training.ema=0.9"]
    more += [f"capsules.dropout={0 if routing == 'em' else 0.1}", "num_routing=2", "training.batch_size=9"]
    more += [f"routing={routing}"]
    untouched = reference(*more)
    assert launch(*more, signal_at=(signal.SIGTERM, 3)).code == 143
    cache = str(tmp_path / "another")
    ended = python(ROOT / "launch.py", *tiny, *more, PYTHONPATH=str(ROOT), TORCHINDUCTOR_CACHE_DIR=cache)
    assert ended.code == 0, ended.text
    runs.assert_same(runs.only(), untouched)
    assert runs.record(untouched)["execution"]["device"] == "cuda"
    assert "could not be compiled" not in (untouched / "log.txt").read_text()


@pytest.mark.gpu
def test_what_a_run_takes_of_a_gpu_is_free_when_it_ends(launch) -> None:
    taken = []
    for seed in range(3):
        assert launch("device=cuda", "training.compile=on", f"seed={seed}").code == 0
        gc.collect()
        torch.cuda.empty_cache()
        taken.append(torch.cuda.memory_reserved())
    assert taken[2] <= taken[1], "graphs of earlier runs are kept"


@pytest.mark.parametrize("first", [True, False])
def test_compiling_is_decided_at_the_first_attempt(launch, runs, monkeypatch, first) -> None:
    built, build_model = [], training.build_model
    monkeypatch.setattr(training, "build_model", lambda c: built.append(c.training.compile) or build_model(c))
    for decision in (first, not first):
        monkeypatch.setattr(training, "decide", lambda *_, decision=decision: decision)
        ended = launch("training.compile=auto", signal_at=(signal.SIGTERM, 2) if decision is first else None)
        assert ended.code == (143 if decision is first else 0), ended.text
    assert built == 2 * ["on" if first else "off"]
    record = runs.record(runs.only())
    assert [attempt["execution"]["compile"] for attempt in record["attempts"]] == [first, first]
    assert "compile" not in str(record["signed_config"])


def test_seed_decides(launch, runs) -> None:
    assert launch("-m", "seed=0,1").code == 0
    one, other = runs.folders()
    assert runs.timeless(one) != runs.timeless(other)
    assert runs.weights(one) != runs.weights(other)


# What is written


@pytest.fixture
def finished(trained, runs):
    """The folder of a finished run."""

    def train(*overrides: str) -> Path:
        ended = trained(*overrides)
        assert ended.code == 0, ended.text
        return runs.only()

    return train


def test_run_folder_has_the_files_of_the_design_and_no_others(finished) -> None:
    names = {path.name for path in finished().iterdir() if not path.name.startswith("attempt-")}
    assert names == {"config.yaml", "run.json", "metrics.jsonl", "checkpoint.pt", "summary.json", "log.txt"}


def test_metrics_have_exactly_these_keys(finished, runs) -> None:
    rows = runs.metrics(finished())
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        assert list(row) == KEYS
        assert 0 <= row["train_accuracy"] <= 1 and 0 <= row["test_accuracy"] <= 1
        assert row["seconds"] > 0 and row["images_per_second"] > 0


def test_val_size_adds_columns_and_a_selection(finished, runs) -> None:
    folder = finished("dataset.val_size=30", "training.epochs=5", "selection_rule=best_val")
    rows, summary = runs.metrics(folder), json.loads((folder / "summary.json").read_text())
    assert all(set(row) == {*KEYS, "val_loss", "val_accuracy"} for row in rows)
    best = max(rows, key=lambda row: row["val_accuracy"])
    assert summary["accuracy_best_val"] == best["test_accuracy"]
    assert summary["accuracy_best_test"] == max(row["test_accuracy"] for row in rows)
    assert summary["accuracy_last"] == rows[-1]["test_accuracy"]
    assert all(abs(row["val_accuracy"] * 30 - round(row["val_accuracy"] * 30)) < 1e-9 for row in rows)


def test_last_metrics_are_those_of_the_saved_weights(finished, tiny_config, runs, data_dir) -> None:
    folder, config = finished(), tiny_config()
    model = build_model(config).eval()
    model.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True)["model"])
    test = load_data(config.dataset, data_dir, torch.device("cpu")).test
    images = (test.images.float() / 255 - config.dataset.mean[0]) / config.dataset.std[0]
    with torch.no_grad():
        logits = model(images)
    last = runs.metrics(folder)[-1]
    assert last["test_accuracy"] == pytest.approx((logits.argmax(1) == test.labels).double().mean().item())
    assert last["test_loss"] == pytest.approx(cross_entropy(logits, test.labels).item(), rel=1e-5)


def test_learning_rate_is_the_optimizers(finished, runs) -> None:
    """With a vanishing rate from the second epoch on, nothing moves any more."""
    first, second, third = runs.metrics(
        finished("training.epochs=3", "training.milestones=[1]", "training.lr_decay=1e-30")
    )
    assert first["test_loss"] == pytest.approx(second["test_loss"], rel=1e-6)
    assert second["test_loss"] == third["test_loss"]


def test_optimizer_gets_the_recipe(finished) -> None:
    folder = finished("training.momentum=0.7", "training.weight_decay=0.003")
    (group,) = torch.load(folder / "checkpoint.pt", weights_only=True)["optimizer"]["param_groups"]
    assert (group["momentum"], group["weight_decay"]) == (0.7, 0.003)


def test_gradients_are_clipped_to_a_norm_over_all_weights(finished) -> None:
    """The momentum after the only step is its gradient; without clip_norm it is longer."""
    folder = finished(
        *("training.clip_norm=0.01", "training.epochs=1", "training.batch_size=40", "training.weight_decay=0")
    )
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["optimizer"]["state"]
    gradient = torch.cat([entry["momentum_buffer"].flatten() for entry in state.values()])
    assert gradient.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_it_learns(launch, runs, data_dir) -> None:
    base = ["dataset=digits", "training=quick", "tracking=none", f"data_dir={data_dir}"]
    small = ["training.epochs=4", "dataset.train_size=500", "capsules.layers=[]", "backbone.channels=16"]
    ended = launch(*small, base=base)
    assert ended.code == 0
    rows = runs.metrics(runs.only())
    assert rows[-1]["test_accuracy"] > 0.5 and rows[-1]["train_loss"] < rows[0]["train_loss"]


# What goes wrong


def test_loss_that_is_not_finite_fails_and_names_the_step(launch, runs) -> None:
    ended = launch("training.lr=1e30")
    folder = runs.only()
    assert ended.code == 1
    assert "step 2" in ended.text and "epoch 1, batch 2" in ended.text and "Traceback" not in ended.text
    assert load_runs("runs").state[0] == "failed"
    assert "step 2" in (folder / "error.txt").read_text()
    assert not (folder / "summary.json").exists()


def test_loss_that_is_not_finite_in_evaluation_also_fails(launch, runs) -> None:
    """One step only: its own loss is finite, the model that it leaves is not."""
    ended = launch("training.lr=1e30", "training.epochs=1", "training.batch_size=40")
    assert ended.code == 1
    assert load_runs("runs").state[0] == "failed"
    assert runs.metrics(runs.only()) == []  # with a NaN no other JSON reader would take it


def test_failed_run_leaves_no_error_behind_once_it_finished(launch, runs, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("torch.nn.functional.cross_entropy", lambda *a, **k: 1 / 0)
        assert launch().code == 1
    assert load_runs("runs").state[0] == "failed" and (runs.only() / "error.txt").exists()
    assert launch().code == 0
    assert not (runs.only() / "error.txt").exists()
    assert runs.record(runs.only())["error"] is None


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({**torch.load(path, weights_only=True), "model": {}}, path),
    ],
    ids=["truncated", "a list", "no weights"],
)
def test_corrupt_checkpoint_is_named(launch, trained, runs, damage) -> None:
    assert trained(signal_at=(signal.SIGTERM, BATCHES + 2)).code == 143
    damage(runs.only() / "checkpoint.pt")
    ended = launch()
    assert ended.code == 1 and "Traceback" not in ended.text
    assert str(runs.only() / "checkpoint.pt") in ended.text and "remove it" in ended.text


def test_corrupt_checkpoint_costs_no_other_run_and_can_be_removed(launch, trained, reference, runs) -> None:
    assert trained(signal_at=(signal.SIGTERM, BATCHES + 2)).code == 143
    broken = runs.only()
    truncate(broken / "checkpoint.pt")
    assert launch("-m", "seed=0,1").code == 1
    assert dict(zip(load_runs("runs").seed, load_runs("runs").state, strict=True))[1] == "finished"
    (broken / "checkpoint.pt").unlink()  # as the message says
    assert launch().code == 0
    runs.assert_same(broken, reference())


@pytest.mark.parametrize("text", ["{not json\n", '{"epoch": 7}\n'])
def test_damaged_metrics_are_named(launch, trained, runs, text) -> None:
    assert trained(signal_at=(signal.SIGTERM, BATCHES + 2)).code == 143
    (runs.only() / "metrics.jsonl").write_text(text)
    ended = launch()
    assert ended.code == 1 and "Traceback" not in ended.text
    assert str(runs.only() / "metrics.jsonl") in ended.text


@pytest.mark.parametrize("finished", [False, True])
def test_reuse_with_other_data_is_an_error(launch, runs, finished) -> None:
    launch() if finished else launch(signal_at=(signal.SIGTERM, 2))
    runs.change_record(runs.only(), data_sha256="0" * 64)
    ended = launch("-m", "seed=0,1")
    assert len(runs.folders()) == 1
    assert ended.code == 1 and "Traceback" not in ended.text
    assert "data_dir" in ended.text and "hash" in ended.text


@pytest.mark.slow
def test_debug_leaves_nothing(launch, place, tmp_path) -> None:
    for arguments in (["debug=true"], ["debug=true", "tracking=wandb"], ["-m", "debug=true", "seed=0,1"]):
        ended = launch(*arguments)
        assert ended.code == 0, ended.text
        assert "epoch 2/2" in ended.out and "Results" in ended.out
    assert list(place.iterdir()) == [] and list((tmp_path / "tmp").iterdir()) == []
    assert not any((tmp_path / "home").rglob("*wandb*"))


def test_debug_trains_as_asked(launch, reference, runs) -> None:
    last = runs.metrics(reference())[-1]
    assert f"{last['test_accuracy']:.1%}" in launch("debug=true").out.split("epoch 2/2")[1]


def test_debug_ignores_a_finished_run(launch, trained, runs) -> None:
    assert trained().code == 0
    before = sorted((path.name, path.stat().st_mtime_ns) for path in runs.only().iterdir())
    assert "epoch 2/2" in launch("debug=true").out
    assert sorted((path.name, path.stat().st_mtime_ns) for path in runs.only().iterdir()) == before


# Images with two labels, own images


def test_loss_and_hits_of_two_labels() -> None:
    logits = torch.tensor([[4.0, 3.0, 0.0], [4.0, 3.0, 5.0], [1.0, 2.0, 3.0]])
    labels = torch.tensor([[1, 0], [0, 1], [2, 1]])
    loss = cross_entropy(logits, targets(labels, 3))
    torch.testing.assert_close(loss, (cross_entropy(logits, labels[:, 0]) + cross_entropy(logits, labels[:, 1])) / 2)
    assert int(num_correct(logits, labels)) == 2
    assert torch.equal(targets(labels[:, 0], 3), labels[:, 0])
    assert int(num_correct(logits, labels[:, 0])) == 1


def test_exact_match_with_binary_cross_entropy() -> None:
    """One digit twice is one class; one class too many or too few is wrong, whatever is largest."""
    logits = torch.tensor([[4.0, 3.0, -1.0], [4.0, -3.0, -5.0], [1.0, 2.0, 3.0], [1.0, -2.0, -0.1]])
    labels = torch.tensor([[1, 0], [0, 0], [2, 1], [0, 2]])
    right = [
        int(num_correct(one[None], both[None], "binary_cross_entropy"))
        for one, both in zip(logits, labels, strict=True)
    ]
    assert right == [1, 1, 0, 0]
    assert int(num_correct(logits, labels, "binary_cross_entropy")) == 2


PAIRS = ["dataset=multi_digits", "dataset.base=digits", "dataset.train_size=40", "dataset.val_size=10"]


@pytest.mark.slow
def test_pairs_of_digits_are_trained_and_an_interruption_changes_nothing(launch, tiny, runs) -> None:
    base = [text for text in tiny if not text.startswith("dataset")] + PAIRS
    assert launch(base=base, signal_at=(signal.SIGTERM, BATCHES + 2)).code == 143
    ended = launch(base=base)
    assert ended.code == 0 and "resume" in ended.out, ended.text
    assert launch("runs_dir=untouched", base=base).code == 0
    runs.assert_same(runs.only(), runs.only("untouched"))
    record = runs.record(runs.only())
    assert record["dataset"] == "multi_digits" and len(record["normalization"]["mean"]) == 1
    model = build_model(compose_config([*base, "device=cpu"])).eval()
    model.load_state_dict(torch.load(runs.only() / "checkpoint.pt", weights_only=True)["model"])
    config = compose_config(base)
    data = load_data(config.dataset, config.data_dir, "cpu")
    with torch.no_grad():
        logits = model(normalize(data.test.images, *data.normalization))
    named = [set(row) for row in logits.topk(2).indices.tolist()]
    both = [named == set(pair) for named, pair in zip(named, data.test.labels.tolist(), strict=True)]
    assert record["accuracy_last"] == sum(both) / len(both)


@pytest.mark.slow
def test_own_images_are_trained_with_what_was_measured_on_them(launch, capsule_sweeps, runs, place, tiny) -> None:
    colors = {"red": (200, 40, 40), "blue": (40, 40, 200)}
    for split, count in (("train", 20), ("test", 5)):
        for name, color in colors.items():
            (place / "shapes" / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40, 40), tuple(value + i for value in color)).save(
                    place / "shapes" / split / name / f"{i}.png"
                )
    base = [text for text in tiny if not text.startswith(("dataset", "capsules.layers"))]
    base += ["dataset=folder", "dataset.root=shapes", "backbone=simple", "training.epochs=8", "backbone.channels=16"]
    ended = launch(base=base)
    assert ended.code == 0, ended.text
    assert runs.only().name.startswith("shapes-capsnet-simple-")
    record = runs.record(runs.only())
    assert record["normalization"]["mean"] == [
        round((120 + 9.5) / 255, 4),
        round((40 + 9.5) / 255, 4),
        round((120 + 9.5) / 255, 4),
    ]
    assert record["signed_config"]["dataset.mean"] is None and "dataset.root" not in record["signed_config"]
    assert record["accuracy_last"] == 1
    assert "skip" in launch(base=[*base, f"dataset.root={place}/shapes"]).out
    config = load_trained(runs.only())[1]
    assert list(config.dataset.mean) == record["normalization"]["mean"]
    assert re.search("ok +data +shapes: 40 training images and 10 test images", capsule_sweeps("doctor", *base).out)


# Evaluation


def test_evaluation_takes_no_more_images_than_a_step(tiny_config) -> None:
    assert [evaluation_batch(tiny_config(f"training.batch_size={size}")) for size in (4, 128, 1000)] == [4, 128, 256]


def test_epoch_is_safe_before_its_evaluation(launch, reference, runs, monkeypatch) -> None:
    """An evaluation that fails costs no training: the next attempt evaluates, and trains only what is left."""
    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", lambda *_: 1 / 0)
        assert launch().code == 1
    checkpoint = torch.load(runs.only() / "checkpoint.pt", weights_only=True)
    assert (checkpoint["epoch"], checkpoint["batch"]) == (1, 0) and runs.metrics(runs.only()) == []
    ended = launch(signal_at=(signal.SIGTERM, BATCHES))  # the last step of the second epoch: no step of the first
    assert ended.code == 0, ended.text
    assert all(row["images_per_second"] > 0 for row in runs.metrics(runs.only()))
    runs.assert_same(runs.only(), reference())


class NoDoubles(TorchFunctionMode):
    """While open, torch refuses double precision on a device, as Apple's GPUs do."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if kwargs.get("device") is not None and kwargs.get("dtype") is torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return function(*args, **kwargs)


def test_no_double_precision_is_needed_on_the_device(launch) -> None:
    with NoDoubles():
        ended = launch("training.ema=0.9", "dataset.val_size=10", "capsules.dropout=0.1", "dataset.crop_padding=2")
    assert ended.code == 0, ended.text


def test_losses_of_evaluation_are_added_in_double_precision(tiny_config, data_dir, monkeypatch) -> None:
    config = tiny_config("training.batch_size=1")
    data = load_data(config.dataset, data_dir, torch.device("cpu"))
    values = iter([2.0**24] + [1.0] * (len(data.test) - 1))
    monkeypatch.setitem(LOSSES, "cross_entropy", lambda *_: torch.tensor(next(values)))
    loss, _ = evaluate(build_model(config), data, data.test, config)
    assert loss * len(data.test) == 2**24 + len(data.test) - 1  # in float32 each 1 would be lost


def test_gpu_of_the_record_is_that_of_the_run(launch, runs, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device=None: f"GPU {torch.device(device).index}")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert provenance(device=torch.device("cuda:1"))["gpu"] == "GPU 1"
    assert launch("device=cpu").code == 0
    assert runs.record(runs.only())["attempts"][0]["gpu"] is None
