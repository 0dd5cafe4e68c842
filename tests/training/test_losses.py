"""The losses by hand, and as an option of training."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from capsule_sweeps.training.losses import LOSSES, binary_cross_entropy, cross_entropy, margin, spread

LOGITS = torch.tensor([[0.3, -2.0, 1.5], [4.0, 0.0, -1.0], [-3.0, -3.5, -4.0]], dtype=torch.float64)
LABELS = torch.tensor([2, 0, 1])


def naive_margin(a: list[float], label: int) -> float:
    return sum(max(0, 0.9 - x) ** 2 if k == label else 0.5 * max(0, x - 0.1) ** 2 for k, x in enumerate(a))


def naive_spread(a: list[float], label: int, m: float) -> float:
    return sum(max(0, m - (a[label] - x)) ** 2 for k, x in enumerate(a) if k != label)


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_by_hand(progress) -> None:
    rows = list(zip(LOGITS.sigmoid().tolist(), LABELS.tolist(), strict=True))
    wanted = {
        margin: [naive_margin(a, label) for a, label in rows],
        spread: [naive_spread(a, label, {0.0: 0.2, 0.5: 0.55, 1.0: 0.9}[progress]) for a, label in rows],
    }
    for loss, values in wanted.items():
        assert loss(LOGITS, LABELS, progress, "sum").item() == pytest.approx(sum(values))
        assert loss(LOGITS, LABELS, progress, "mean").item() == pytest.approx(sum(values) / 3)


def test_of_images_with_two_labels() -> None:
    """Margin: both classes are right; cross entropy and spread: the mean over the labels, neither of them wrong."""
    labels, rows = torch.tensor([[2, 0], [0, 1], [1, 2]]), LOGITS.sigmoid().tolist()
    margins = [
        sum(max(0, 0.9 - x) ** 2 if k in both else 0.5 * max(0, x - 0.1) ** 2 for k, x in enumerate(a))
        for a, both in zip(rows, labels.tolist(), strict=True)
    ]
    spreads = [
        sum(max(0, 0.9 - (a[own] - x)) ** 2 for own in both for k, x in enumerate(a) if k not in both) / 2
        for a, both in zip(rows, labels.tolist(), strict=True)
    ]
    entropies = [
        -sum(row.log_softmax(0)[own].item() for own in both) / 2
        for row, both in zip(LOGITS, labels.tolist(), strict=True)
    ]
    for loss, values in ((margin, margins), (spread, spreads), (cross_entropy, entropies)):
        assert loss(LOGITS, labels, 1.0, "sum").item() == pytest.approx(sum(values))
        assert loss(LOGITS, labels, 1.0, "mean").item() == pytest.approx(sum(values) / 3)


def test_binary_cross_entropy_by_hand() -> None:
    """Both classes of a pair are right; a class that is named twice counts once."""
    for labels in (LABELS, torch.tensor([[2, 0], [1, 1], [1, 2]])):
        both = labels.view(3, -1).tolist()
        wanted = [
            -sum((row[k] if k in own else -row[k]).sigmoid().log().item() for k in range(3))
            for row, own in zip(LOGITS, both, strict=True)
        ]
        assert binary_cross_entropy(LOGITS, labels, 0.5, "sum").item() == pytest.approx(sum(wanted))
        assert binary_cross_entropy(LOGITS, labels, 0.5, "mean").item() == pytest.approx(sum(wanted) / 3)


def test_cross_entropy_is_torchs_bit_for_bit() -> None:
    for reduction in ("mean", "sum"):
        ours = cross_entropy(LOGITS.float(), LABELS, 0.5, reduction)
        assert torch.equal(ours, F.cross_entropy(LOGITS.float(), LABELS, reduction=reduction))


@pytest.mark.parametrize("labels", [LABELS, torch.tensor([[2, 0], [0, 1], [1, 2]])], ids=["one", "two"])
def test_smoothing_spreads_a_share_over_all_classes(labels) -> None:
    shares = torch.zeros(3, 3, dtype=torch.float64)
    for row, own in zip(shares, labels.view(3, -1), strict=True):
        row[own] = 1 / len(own)
    wanted = -((0.8 * shares + 0.2 / 3) * LOGITS.log_softmax(1)).sum(1)
    assert cross_entropy(LOGITS, labels, 0.5, "sum", 0.2).item() == pytest.approx(wanted.sum().item())
    assert cross_entropy(LOGITS, labels, 0.5, "mean", label_smoothing=0.2).item() == pytest.approx(wanted.mean().item())
    if labels.ndim == 1:
        torchs = F.cross_entropy(LOGITS, labels, label_smoothing=0.2)
        assert torch.equal(cross_entropy(LOGITS, labels, 0.5, "mean", 0.2), torchs)


def test_smoothing_is_of_the_training_loss_only(launch, runs) -> None:
    """With a vanishing rate both runs keep their first weights, the same ones."""
    rows = []
    for name in ("0", "0.3"):
        assert launch(f"training.label_smoothing={name}", "training.lr=1e-30", f"runs_dir=smoothing{name}").code == 0
        rows.append(runs.metrics(runs.only(f"smoothing{name}"))[-1])
    assert rows[0]["test_loss"] == rows[1]["test_loss"] and rows[0]["train_loss"] != rows[1]["train_loss"]


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_and_least_values(name) -> None:
    assert gradcheck(lambda logits: LOSSES[name](logits, LABELS, 0.3, "mean"), [LOGITS.clone().requires_grad_()])
    right = 100 * (2 * F.one_hot(LABELS, 3).double() - 1)
    assert LOSSES[name](right, LABELS, 1.0, "mean") == pytest.approx(0, abs=1e-12)
    assert LOSSES[name](-right, LABELS, 1.0, "mean") > 0.8


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("routing", ["em", "dynamic", "inverted_attention"])
def test_training_takes_it_and_an_interruption_changes_nothing(launch, runs, routing) -> None:
    import signal

    choice = (f"routing={routing}", "training.loss=spread", "num_routing=2")
    assert launch(*choice, "runs_dir=whole").code == 0
    assert launch(*choice, signal_at=(signal.SIGTERM, 7)).code == 143
    assert launch(*choice).code == 0
    runs.assert_same(runs.only(), runs.only("whole"))
    rows = runs.metrics(runs.only())
    assert launch(f"routing={routing}", "num_routing=2", "runs_dir=other").code == 0
    assert runs.metrics(runs.only("other"))[0]["train_loss"] != rows[0]["train_loss"]


def test_an_unknown_loss_is_one_sentence(launch) -> None:
    ended = launch("training.loss=hinge")
    assert ended.code != 0 and "training.loss=hinge" in ended.err and "cross_entropy, margin, spread" in ended.err
