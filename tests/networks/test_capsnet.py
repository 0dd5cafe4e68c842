import json
from pathlib import Path

import numpy as np
import pytest
import torch

from capsule_sweeps.networks.capsnet import CapsNet
from capsule_sweeps.networks.published_weights import load_published_weights
from capsule_sweeps.routing.compiled import CompiledForward
from capsule_sweeps.routing.votes import FastVotes

GOLDEN = Path(__file__).parents[1] / "golden"
ATTENTION = {"name": "inverted_attention", "_target_": "capsule_sweeps.routing.inverted_attention.InvertedAttention"}
PAPER = {
    "CIFAR10": {"pose_size": 16, "fc": [], "num_classes": 10, "parameters": 1_828_817},
    "CIFAR100": {"pose_size": 36, "fc": [20], "num_classes": 100, "parameters": 2_799_629},
}


def paper_network(dataset, num_routing=1):
    """The network of the paper, without weights (on the meta device)."""
    paper = PAPER[dataset]
    size = {"pose_size": paper["pose_size"]}
    layers = [{"type": "conv", "num_capsules": 32, "kernel_size": 3, "stride": s, **size} for s in (2, 1)]
    layers += [{"type": "fc", "num_capsules": n, **size} for n in paper["fc"]]
    primary = {"num_capsules": 32, "kernel_size": 1, "stride": 1, **size}
    with torch.device("meta"):
        return CapsNet(
            num_routing,
            {"name": "resnet", "_target_": "capsule_sweeps.networks.backbones.ResNet"},
            {"pose": "matrix", "dropout": 0.0, "primary": primary, "layers": layers, "classes": size},
            ATTENTION | {"schedule": "concurrent"},
            image_shape=(3, 32, 32),
            num_classes=paper["num_classes"],
        )


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "model_simple.npz"))


def small_network(golden, num_routing, schedule):
    """The golden network, as its JSON describes it to the published code."""
    params = json.loads(str(golden["params_json"]))
    layers = []
    for node in params["capsules"]:
        layer = {"type": node["type"].lower(), "num_capsules": node["num_caps"], "pose_size": node["caps_dim"]}
        layers.append(layer | {key: node[key] for key in ("kernel_size", "stride") if key in node})
    primary = params["primary_capsules"]
    capsules = {
        "pose": "matrix",
        "dropout": 0.0,
        "primary": {
            "num_capsules": primary["num_caps"],
            "pose_size": primary["caps_dim"],
            "kernel_size": primary["kernel_size"],
            "stride": primary["stride"],
        },
        "layers": layers,
        "classes": {"pose_size": params["class_capsules"]["caps_dim"]},
    }
    backbone = {
        "name": "simple",
        "_target_": "capsule_sweeps.networks.backbones.Simple",
        "channels": params["backbone"]["output_dim"],
    }
    routing = ATTENTION | {"schedule": schedule}
    num_classes = params["class_capsules"]["num_caps"]
    return CapsNet(num_routing, backbone, capsules, routing, tuple(golden["image"].shape[1:]), num_classes)


def published_state(golden):
    return {key[6:]: torch.from_numpy(value) for key, value in golden.items() if key.startswith("state/")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("num_routing", [1, 2, 3, 4])
@pytest.mark.parametrize("schedule", ["concurrent", "sequential"])
def test_golden_logits(golden, schedule, num_routing, dtype):
    model = small_network(golden, num_routing, schedule)
    load_published_weights(model, published_state(golden))
    logits = model.to(dtype)(torch.from_numpy(golden["image"]).to(dtype))
    wanted = torch.from_numpy(golden[f"logits/{schedule}/{num_routing}"]).to(dtype)
    assert logits.shape == wanted.shape
    assert (logits - wanted).norm() <= 1e-5 * wanted.norm()


def test_schedules_and_iterations_differ(golden):
    logits = [value for key, value in golden.items() if key.startswith("logits/") and not key.endswith("sequential/1")]
    for i, one in enumerate(logits):
        assert all(np.linalg.norm(one - other) > 1e-4 * np.linalg.norm(one) for other in logits[:i])


@pytest.mark.parametrize("dataset", PAPER)
def test_the_papers_networks_have_the_published_number_of_parameters(dataset):
    model = paper_network(dataset)
    assert sum(parameter.numel() for parameter in model.parameters()) == PAPER[dataset]["parameters"]


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("dataset", PAPER)
def test_published_checkpoints_of_the_full_networks_load(dataset, prefix):
    shapes = json.loads((GOLDEN / "resnet_keys.json").read_text())[dataset]
    state = {prefix + key: torch.randn(shape) for key, shape in shapes.items()}
    model = paper_network(dataset).to_empty(device="cpu")
    load_published_weights(model, state)
    ours = sum(value.double().square().sum() for value in model.state_dict().values() if value.is_floating_point())
    theirs = sum(v.double().square().sum() for k, v in state.items() if "num_batches_tracked" not in k)
    assert len(model.state_dict()) == len(state)
    torch.testing.assert_close(ours, theirs)
    layer, published = model.capsules.layers[0].weight, state[prefix + "capsule_layers.0.w"]
    assert layer[2, 1, 5, 3, 30, 1] == published[2, 1, 5, 3, 1, 30]
    layer, published = model.capsules.layers[2].weight, state[prefix + "capsule_layers.2.w"]
    assert layer[4, 1, 7, 3, 9, 2] == published[7 * 25 + 4 * 5 + 1, 3, 2, 9]


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (r"final_fc\.bias is missing", lambda state: state.pop("final_fc.bias")),
        (r"extra\.w .* unknown", lambda state: state.update({"extra.w": torch.zeros(1)})),
        (r"capsule_layers\.1\.w .* \(45, 4, 4, 6\).*\(45, 4, 4, 7\)", lambda state: state.update(
            {"capsule_layers.1.w": torch.zeros(45, 4, 4, 6)})),
        (r"pc_layer\.weight .* \(9,\)", lambda state: state.update({"pc_layer.weight": torch.zeros(9)})),
    ],
)  # fmt: skip
def test_weights_of_another_model_are_refused_and_change_nothing(golden, message, change):
    model = small_network(golden, 1, "concurrent")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = published_state(golden)
    change(state)
    with pytest.raises(ValueError, match=message):
        load_published_weights(model, state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# Intermediates


ROUTINGS = ("InvertedAttention", "Attention", "Uniform")


def routed_model(routing, schedule, num_routing, pose="matrix"):
    """Two conv layers and the classes, weights large enough that coefficients are far from even."""
    torch.manual_seed(0)
    layers = [{"type": "conv", "num_capsules": n, "pose_size": 4, "kernel_size": 2, "stride": 1} for n in (3, 4)]
    capsules = {
        "pose": pose,
        "dropout": 0.5,  # nothing in evaluation mode
        "primary": {"num_capsules": 2, "pose_size": 4, "kernel_size": 1, "stride": 2},
        "layers": layers,
        "classes": {"pose_size": 4},
    }
    model = CapsNet(
        num_routing,
        {"name": "simple", "_target_": "capsule_sweeps.networks.backbones.Simple", "channels": 4},
        capsules,
        {"name": "x", "_target_": f"capsule_sweeps.routing.{routing}", "schedule": schedule},
        image_shape=(1, 16, 16),
        num_classes=5,
    )
    for layer in model.capsules.layers:
        layer.weight.data.mul_(3)
    return model.eval()


@pytest.mark.parametrize("num_routing", [1, 2, 4])
@pytest.mark.parametrize("schedule", ["concurrent", "sequential"])
@pytest.mark.parametrize("routing", ROUTINGS)
def test_intermediates_belong_to_the_same_logits(routing, schedule, num_routing):
    model, images = routed_model(routing, schedule, num_routing), torch.randn(3, 1, 16, 16)
    with torch.no_grad():
        fast, (slow, seen) = model(images), model(images, intermediates=True)
    assert (slow - fast).abs().max() <= 1e-5 * fast.abs().max().clamp(min=1)
    num_routing = 1 if routing == "Uniform" else num_routing
    iterations = [max(1, num_routing - depth) if schedule == "concurrent" else num_routing for depth in (2, 1, 0)]
    assert [len(steps) for steps in seen.layers] == iterations
    torch.testing.assert_close(model.head(seen.layers[-1][-1].poses).flatten(1), slow)
    assert torch.equal(seen.primary, model.capsules.primary(seen.features).poses)


def test_intermediates_are_as_documented():
    model, images = routed_model("InvertedAttention", "sequential", 3), torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        _, seen = model(images, intermediates=True)
    children = seen.primary
    for layer, steps in zip(model.capsules.layers, seen.layers, strict=True):
        k, l, num_children, _, num_parents, _ = layer.weight.shape  # noqa: E741
        votes = FastVotes(layer.weight, layer.stride).explicit(children)
        for number, step in enumerate(steps):
            batch, _, h, w, size = step.poses.shape
            assert step.coefficients.shape == step.agreement.shape == (batch, h, w, k, l, num_children, num_parents)
            wanted = torch.einsum("bhwklnme,bmhwe->bhwklnm", votes, step.poses) / size**0.5
            torch.testing.assert_close(step.agreement, wanted)
            before = steps[number - 1].agreement.softmax(-1) if number else torch.full_like(wanted, 1 / num_parents)
            torch.testing.assert_close(step.coefficients, before)
            sums = torch.einsum("bhwklnm,bhwklnme->bmhwe", step.coefficients, votes)
            torch.testing.assert_close(step.poses, layer.routing.norm(sums))
        children = steps[-1].poses


def test_intermediates_of_a_model_that_runs_compiled():
    model, images = routed_model("InvertedAttention", "concurrent", 2), torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        wanted, _ = model(images, intermediates=True)
        model.forward = CompiledForward(model, 2)
        logits, seen = model(images, intermediates=True)
    assert torch.equal(logits, wanted) and len(seen.layers) == 3
