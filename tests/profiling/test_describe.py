"""describe.py: layers, shapes, parameters and multiply-adds against counts by hand; the command."""

import json
import re
from pathlib import Path

import pytest
import torch

from capsule_sweeps import build_model, compose_config, load_runs
from capsule_sweeps.console import console
from capsule_sweeps.networks import multiply_adds
from capsule_sweeps.networks.multiply_adds import count_multiply_adds
from capsule_sweeps.profiling.describe import for_people, layer_table
from capsule_sweeps.results.render import render

ROOT = Path(__file__).resolve().parents[2]
STACK = [
    *("dataset=digits", "backbone.channels=6", "capsules.primary.num_capsules=3", "capsules.classes.pose_size=4"),
    *("capsules.primary.pose_size=4", "capsules.primary.kernel_size=2", "capsules.primary.stride=2"),
    "capsules.layers=[{type: conv, num_capsules: 5, pose_size: 4, kernel_size: 3, stride: 2},"
    "{type: fc, num_capsules: 7, pose_size: 4}]",
]


def table(*overrides: str):
    return layer_table(compose_config(list(overrides))).set_index("layer")


def test_resnet18_by_hand() -> None:
    found = table("model=resnet18")
    stem = 32 * 32 * 64 * 3 * 9
    same = [2 * (32 >> i) ** 2 * (64 << i) ** 2 * 9 for i in range(4)]  # a block that keeps channels and grid
    halved = [
        (32 >> i) ** 2 * (64 << i) * (64 << i - 1) * (9 + 1) + (32 >> i) ** 2 * (64 << i) ** 2 * 9 for i in (1, 2, 3)
    ]
    by_hand = {"stem.0": stem, "blocks.0": same[0], "blocks.1": same[0]}
    for i in (1, 2, 3):
        by_hand |= {f"blocks.{2 * i}": halved[i - 1], f"blocks.{2 * i + 1}": same[i]}
    by_hand |= {"head": 5120}
    for name, count in by_hand.items():
        assert found.multiply_adds[name] == count, name
    assert found.multiply_adds["total"] == sum(by_hand.values()) == 555_422_720
    assert found.parameters["total"] == 11_173_962
    assert found.grid["blocks.2"] == "16x16" and found.grid["blocks.7"] == "4x4" and found.channels["blocks.7"] == 512


@pytest.mark.parametrize(("schedule", "pose"), [("concurrent", "matrix"), ("sequential", "vector")])
@pytest.mark.parametrize("num_routing", [1, 2, 3])
def test_a_small_stack_by_hand(pose, num_routing, schedule) -> None:
    """Grids: 16x16 features, 8x8 primary capsules, 3x3, 1x1, 1x1."""
    found = table(*STACK, f"num_routing={num_routing}", f"routing.schedule={schedule}", f"capsules.pose={pose}")
    assert found.grid.to_list()[:-1] == ["16x16", "8x8", "3x3", "1x1", "1x1", "1x1"]
    assert found.capsules.to_list()[1:-1] == [3, 5, 7, 10, 10] and found.pose_size.to_list()[1:-1] == [4, 4, 4, 4, 1]
    a_vote = 2 * 2 * 2 if pose == "matrix" else 4 * 4  # rows of the pose · columns below · columns above
    num_votes = [3 * 3 * 3 * 3 * 3 * 5, 3 * 3 * 5 * 7, 7 * 10]  # places · children under the kernel · parents
    for layer, votes in enumerate(num_votes):
        iterations = num_routing if schedule == "sequential" else max(1, num_routing - (2 - layer))
        # concurrent: the first two iterations read the same children, each later one those that are new
        new = 1 if schedule == "sequential" or layer == 0 else max(1, iterations - 1)
        step = votes * 4  # part of the sum, or the agreement with the parent
        expected = new * votes * a_vote + step + (iterations - 1) * 2 * step
        assert found.multiply_adds[f"capsules.layers.{layer}"] == expected, layer
    assert found.multiply_adds["backbone.layers.0"] == 16 * 16 * 6 * 9
    assert found.multiply_adds["capsules.primary"] == 8 * 8 * 12 * 6 * 4
    assert found.multiply_adds["head"] == 10 * 4
    if num_routing == 1:
        own = table(*STACK, "model.head=own", f"routing.schedule={schedule}", f"capsules.pose={pose}")
        assert own.multiply_adds["head"] == 10 * 4
    weights = 4 if pose == "matrix" else 16
    assert found.parameters["capsules.layers.0"] == 9 * 3 * 5 * weights + 8
    assert found.multiply_adds["total"] == found.multiply_adds[:-1].sum()


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["dataset=CIFAR100", "num_routing=3"],
        ["model=cnn"],
        ["model.head=own"],
        *([f"routing={path.stem}", "num_routing=2"] for path in sorted((ROOT / "conf" / "routing").glob("*.yaml"))),
    ],
    ids=" ".join,
)
def test_all_parameters_are_in_the_table(overrides) -> None:
    found = table(*overrides)
    with torch.device("meta"):
        model = build_model(compose_config(overrides))
    assert found.parameters["total"] == sum(p.numel() for p in model.parameters()) == found.parameters[:-1].sum()
    assert found.multiply_adds["total"] == found.multiply_adds[:-1].sum() > 0
    assert count_multiply_adds(compose_config(overrides)) == found.multiply_adds["total"]  # what a run records


def test_runs_record_their_multiply_adds_and_peak_memory(launch, runs, tiny_config) -> None:
    assert launch("num_routing=2").code == 0
    record = runs.record(runs.only())
    assert record["multiply_adds"] == layer_table(tiny_config("num_routing=2")).multiply_adds.iloc[-1] > 0
    assert 50 < record["peak_memory_mb"] < 10_000  # a process with torch in it
    row = load_runs("runs").iloc[0]
    assert (row.multiply_adds, row.peak_memory_mb) == (record["multiply_adds"], record["peak_memory_mb"])


class Own(torch.nn.Module):
    """A model of a user: two products, one of them between activations and without a layer."""

    def __init__(self, num_classes: int, fail: bool = False) -> None:
        super().__init__()
        self.weight, self.fail = torch.nn.Parameter(torch.ones(num_classes, 16)), fail

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.fail and len(images) == 1:
            raise RuntimeError("two images, please")
        rows = images[:, 0, :16, :16]
        return (rows @ rows.mT).mean(1) @ self.weight.mT


@pytest.mark.parametrize("fail", [False, True])
def test_multiply_adds_of_own_models_count_functions_and_never_end_a_run(monkeypatch, caplog, fail) -> None:
    monkeypatch.setattr(multiply_adds, "build_model", lambda config: Own(10, fail))
    wanted = None if fail else 16 * 16 * 16 + 16 * 10
    assert count_multiply_adds(compose_config(["model=cnn", "dataset=digits"])) == wanted
    assert ("Multiply-adds are unknown (RuntimeError: two images, please" in caplog.text) == fail


@pytest.mark.parametrize("pose", ["matrix", "vector"])
def test_routings_with_explicit_votes_by_hand(pose) -> None:
    """Self-routing: votes, coefficients from the children's poses, sums; EM: votes, distances, means and variances."""
    a_vote, places = 2 * 2 * 2 if pose == "matrix" else 4 * 4, [(9, 27, 5), (1, 45, 7), (1, 7, 10)]
    self_routing = table(*STACK, "routing=self_routing", f"capsules.pose={pose}")
    em = table(*STACK, "routing=em", "num_routing=3", f"capsules.pose={pose}")
    for layer, (num_places, children, parents) in enumerate(places):
        votes = num_places * children * parents
        assert self_routing.multiply_adds[f"capsules.layers.{layer}"] == votes * (a_vote + 4 + 4), layer
        assert em.multiply_adds[f"capsules.layers.{layer}"] == votes * (a_vote + 3 * (4 + 4) + 2 * 4), layer
    assert em.multiply_adds["capsules.primary"] == 8 * 8 * (12 + 3) * 6 * 4  # poses and activations


SELF_ROUTING_TABLE = {  # parameters; multiply-adds of backbone, convolutions and linear layers; of capsule layers
    "model=average_pool": (269_722, 40_550_400 + 640, 0),
    "model=convolution": (893_210, 59_424_768 + 327_680, 0),
    "capsules=sr_capsnet_1 routing=sr_dynamic": (5_807_888, 59_424_768, 6_881_280),
    "capsules=sr_capsnet_2 routing=sr_dynamic": (4_236_048 - 1_024, 59_424_768, 51_265_536),  # less an unused BatchNorm
    "capsules=sr_capsnet_1 routing=sr_em": (911_204, 60_604_416, 3_932_160),
    "capsules=sr_capsnet_2 routing=sr_em": (813_988, 60_604_416, 29_294_592),
    "capsules=sr_capsnet_1 routing=sr_self_routing": (931_664, 60_604_416, 327_680),
    "capsules=sr_capsnet_2 routing=sr_self_routing": (3_187_536, 60_604_416, 42_549_248),
}


@pytest.mark.parametrize("words", SELF_ROUTING_TABLE)
def test_networks_of_the_self_routing_paper_have_its_parameters_and_operations(words) -> None:
    """Counted on the published code (coder3000/SR-CapsNet, commit 7622d38), 10 classes, 3 iterations."""
    found = table("backbone=resnet20", "num_routing=3", *words.split())
    in_capsules = found.multiply_adds[found.kind == "CapsuleLayer"].sum()
    counted = found.parameters["total"], found.multiply_adds["total"] - in_capsules, in_capsules
    assert counted == SELF_ROUTING_TABLE[words]


def test_the_command(capsule_sweeps, place, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(console(), "_width", 80)
    small = ["dataset=digits", "model=cnn", "model.width=4", "training.batch_size=4"]
    shown = capsule_sweeps("describe", *small)
    assert shown.code == 0 and "cnn for digits: 1 x 32 x 32 pixels" in shown.out, shown.text
    memory = re.search(r"batch size 4, not compiled:\s+([\d.]+) MB,\s+([\d.]+) of\s+them", shown.out)
    assert memory and float(memory[1]) > float(memory[2]) >= 0, shown.out
    layers = ["capsules.layers.0", "PrimaryCapsules", "16x16x32x16", "585,450,656"]
    shown = render(for_people(layer_table(compose_config(["num_routing=1"]))), "table")
    assert max(map(len, shown.splitlines())) <= 80 and all(f"│ {word}" in shown for word in layers), shown
    rows = json.loads(capsule_sweeps("describe", *small, "--format", "json").out)
    assert rows[-1]["layer"] == "total" and rows[0]["grid"] == "16x16"
    assert list(place.iterdir()) == []


def test_a_step_that_memory_is_too_small_for_is_one_sentence(capsule_sweeps) -> None:
    ended = capsule_sweeps("describe", "dataset=digits", "model=cnn", "training.batch_size=10000000")
    words = " ".join(ended.text.split())
    assert ended.code == 0 and re.search("MB are free here; set a smaller training.batch_size", words)


def test_what_does_not_fit_is_one_sentence(capsule_sweeps) -> None:
    ended = capsule_sweeps("describe", "dataset=digits", "capsules.primary.kernel_size=99")
    assert ended.code == 1 and len(ended.err.splitlines()) == 1 and "capsules.primary.kernel_size=99" in ended.err


# What fits what


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (1, 40), (3, 64)])
def test_every_stack_takes_every_size_or_says_in_a_sentence_that_it_does_not_fit(channels, size) -> None:
    fits = 0
    stacks = sorted(path.stem for path in (ROOT / "conf" / "capsules").glob("*.yaml"))
    values = f"[{','.join(['0.5'] * channels)}]"
    own = [f"dataset.{key}={value}" for key, value in (("name", "x"), ("num_classes", 3), ("root", "x"))]
    own += [
        f"dataset.channels={channels}",
        f"dataset.image_size={size}",
        f"dataset.mean={values}",
        f"dataset.std={values}",
    ]
    choices = [[f"backbone={backbone}", f"capsules={stack}"] for backbone in ("simple", "resnet") for stack in stacks]
    for choice in [*choices, ["model=resnet18"], ["model=cnn"]]:
        config = compose_config(["dataset=folder", *own, *choice, "num_routing=2"])
        config.training.compile = "off"
        with torch.device("meta"):
            try:
                model = build_model(config).eval()
            except ValueError as error:
                assert "does not fit the" in str(error) and "capsules." in str(error) and "\n" not in str(error)
                continue
            assert model(torch.empty(2, channels, size, size)).shape == (2, 3)
            fits += 1
    assert fits == len(choices) + 2  # of these sizes all fit all


def test_a_stack_that_does_not_fit_says_which_layer() -> None:
    layers = "{type: conv, num_capsules: 2, pose_size: 4, kernel_size: 3, stride: 2}"
    shrinking = ["capsules.primary.pose_size=4", f"capsules.layers=[{layers},{layers},{layers},{layers}]"]
    with pytest.raises(ValueError, match=r"capsules\.layers\[3\]\.kernel_size=3 does not fit the 1x1 grid below it"):
        build_model(compose_config(["dataset=digits", *shrinking]))
