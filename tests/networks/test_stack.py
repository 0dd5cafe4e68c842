import re
from itertools import product
from math import sqrt

import pytest
import torch
from torch import nn

from capsule_sweeps import build_model, compose_config
from capsule_sweeps.networks.layers import CapsuleLayer, PrimaryCapsules, interleave
from capsule_sweeps.networks.stack import CapsuleStack, concurrent, sequential
from capsule_sweeps.routing.base import Capsules, LayerShape, Routing
from capsule_sweeps.routing.inverted_attention import InvertedAttention

FEATURES = (6, 8, 8)


def conv(**own):
    return {"type": "conv", "num_capsules": 3, "pose_size": 4, "kernel_size": 3, "stride": 1, **own}


def fc(**own):
    return {"type": "fc", "num_capsules": 5, "pose_size": 4, **own}


def stack(
    layers=(),
    pose="matrix",
    dropout=0.0,
    primary=None,
    class_size=4,
    num_routing=1,
    schedule="concurrent",
    num_classes=7,
    interleaved=False,
):
    capsules = {
        "name": "test",
        "pose": pose,
        "dropout": dropout,
        "primary": {"num_capsules": 2, "pose_size": 4, "kernel_size": 1, "stride": 1} | (primary or {}),
        "layers": list(layers),
        "classes": {"pose_size": class_size},
        "interleaved": interleaved,
    }
    target = "capsule_sweeps.routing.inverted_attention.InvertedAttention"
    routing = {"name": "inverted_attention", "_target_": target, "schedule": schedule}
    return CapsuleStack(capsules, routing, num_routing, FEATURES, num_classes)


def test_primary_capsules_are_cut_from_the_channels_and_normalized():
    primary = PrimaryCapsules(FEATURES, num_capsules=3, pose_size=4, kernel_size=3, stride=2)
    features = torch.randn(2, *FEATURES)
    channels = primary.conv(features)
    poses = primary(features).poses
    assert poses.shape == (2, *primary.out_shape) == (2, 3, 3, 3, 4)
    torch.testing.assert_close(poses[1, 2, 0, 1], nn.functional.layer_norm(channels[1, 8:12, 0, 1], (4,)))
    assert primary.conv.bias is None


@pytest.mark.parametrize("matrix", [True, False])
@pytest.mark.parametrize("kernel_size", [3, None])
def test_initial_weights_have_the_published_deviation(matrix, kernel_size):
    torch.manual_seed(0)
    routing = InvertedAttention(LayerShape((3, 3), 30, 16, 20, 16), dropout=0.0)
    layer = CapsuleLayer((30, 5, 5, 16), 20, 16, kernel_size, 1, matrix, routing)
    cells = 9 if kernel_size else 25
    wanted = sqrt(20 / ((4 if matrix else 16) * 30 * cells))
    assert layer.weight.std().item() == pytest.approx(wanted, rel=0.02)
    assert abs(layer.weight.mean().item()) < 0.02 * wanted


@pytest.mark.parametrize("pose", ["matrix", "vector"])
def test_shapes_flow_from_layer_to_layer(pose):
    size = 4 if pose == "matrix" else 6
    layers = [conv(stride=2, pose_size=size), conv(kernel_size=2, pose_size=size), fc(pose_size=size), fc(pose_size=4)]
    capsules = stack(layers, pose=pose)(torch.randn(2, *FEATURES))
    grids = [(2, 8, 8, 4), (3, 3, 3, size), (3, 2, 2, size), (5, 1, 1, size), (5, 1, 1, 4), (7, 1, 1, 4)]
    assert [tuple(c.poses.shape[1:]) for c in capsules] == grids


def test_a_kernel_as_large_as_the_grid_is_a_fully_connected_layer():
    torch.manual_seed(0)
    covering = stack([conv(kernel_size=8)], num_routing=3, schedule="sequential")
    torch.manual_seed(0)
    full = stack([fc(num_capsules=3)], num_routing=3, schedule="sequential")
    features = torch.randn(2, *FEATURES)
    for ours, theirs in zip(covering(features), full(features), strict=True):
        assert torch.equal(ours.poses, theirs.poses)


class Recorder(nn.Module):
    """A layer that adds its child's and its own last value, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, children, previous=None):
        self.calls += 1
        return Capsules(2 * children.poses + (0 if previous is None else 3 * previous.poses) + 1)


def plain_concurrent(layers, primary, num_routing):
    """Every layer in every iteration, from the values of the iteration before."""
    values = [primary]
    for layer in layers:
        values.append(layer(values[-1]))
    for _ in range(num_routing - 1):
        values = [primary] + [layer(c, p) for layer, c, p in zip(layers, values[:-1], values[1:], strict=True)]
    return values


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
@pytest.mark.parametrize("num_routing", [1, 2, 3, 4, 6])
def test_concurrent_leaves_out_only_unread_updates(num_layers, num_routing):
    ours, plain = ([Recorder() for _ in range(num_layers)] for _ in range(2))
    primary = Capsules(torch.ones(1, dtype=torch.int64))
    value = concurrent(ours, primary, num_routing)[-1].poses
    assert torch.equal(value, plain_concurrent(plain, primary, num_routing)[-1].poses)
    below_top = range(num_layers - 1, -1, -1)
    assert [layer.calls for layer in ours] == [max(1, num_routing - depth) for depth in below_top]


def test_sequential_finishes_each_layer_first():
    layers = [Recorder(), Recorder()]
    values = sequential(layers, Capsules(torch.ones(1)), 3)
    first = 3 * (3 * 3 + 3) + 3  # 2·1+1 = 3, then 2·1 + 3·value + 1
    start = 2 * first + 1
    second = 3 * (3 * start + start) + start
    assert [c.poses.item() for c in values] == [1, first, second]
    assert [layer.calls for layer in layers] == [3, 3]


def test_one_layer_has_one_schedule():
    features, results = torch.randn(2, *FEATURES), []
    for schedule in ("concurrent", "sequential"):
        torch.manual_seed(0)
        results.append(stack(num_routing=4, schedule=schedule)(features)[-1].poses)
    assert torch.equal(*results)


def test_dropout_reaches_every_layer_but_not_the_primary_capsules():
    network = stack([conv()], dropout=0.25)
    assert [layer.routing.dropout.p for layer in network.layers] == [0.25, 0.25]
    features = torch.randn(2, *FEATURES)
    (first, *above), (second, *above_too) = network(features), network(features)
    assert torch.equal(first.poses, second.poses)
    assert not any(torch.equal(a.poses, b.poses) for a, b in zip(above, above_too, strict=True))


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        (r"capsules\.layers\[1\]\.kernel_size=9 does not fit the 6x6 grid", {"layers": [conv(), conv(kernel_size=9)]}),
        (r"capsules\.primary\.kernel_size=9 does not fit the 8x8 grid", {"primary": {"kernel_size": 9}}),
        (r"capsules\.primary\.pose_size=5 is not a square number.* 4 or 9", {"primary": {"pose_size": 5}}),
        (r"capsules\.layers\[0\]\.pose_size=12 is not a square number.* 9 or 16", {"layers": [fc(pose_size=12)]}),
        (r"capsules\.layers\[0\]\.pose_size=9 differs from the 4", {"layers": [fc(pose_size=9)]}),
        (r"capsules\.classes\.pose_size=16 differs from the 4", {"class_size": 16}),
        (r"capsules\.classes\.pose_size=1 .* at least 2", {"class_size": 1, "pose": "vector"}),
        (r"capsules\.layers\[0\]\.kernel_size=3 has no effect", {"layers": [fc(kernel_size=3)]}),
        (r"capsules\.layers\[0\]\.kernel_size is missing", {"layers": [fc(type="conv")]}),
        (r"routing\.schedule=random is unknown.*concurrent, sequential", {"schedule": "random"}),
    ],
)
def test_an_impossible_stack_says_which_key(message, settings):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        stack(**settings)


# Every routing in every kind of layer


def network(*overrides):
    torch.manual_seed(0)
    layer = "num_capsules: 3, pose_size: 4"
    layers = "[{type: conv, kernel_size: 3, stride: 4, {layer}}, {type: fc, {layer}}]".replace("{layer}", layer)
    small = ["backbone.channels=4", "capsules.primary={num_capsules: 2, pose_size: 4, kernel_size: 2, stride: 2}"]
    small += [f"capsules.layers={layers}", "capsules.classes.pose_size=4", "training.compile=off"]
    return build_model(compose_config(["dataset=digits", "training=quick", *small, *overrides]))


@pytest.mark.parametrize(("pose", "num_routing"), [("matrix", 1), ("vector", 2), ("matrix", 5)])
@pytest.mark.parametrize(
    ("routing", "schedule"),
    [*product(["dynamic", "em"], ["concurrent", "sequential"]), ("self_routing", None)],
)
def test_routings_work_in_every_layer(routing, schedule, pose, num_routing):
    own = [f"routing.schedule={schedule}"] if schedule else []
    model = network(f"routing={routing}", *own, f"capsules.pose={pose}", f"num_routing={num_routing}")
    images = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    logits, seen = model(images, intermediates=True)
    torch.testing.assert_close(model(images), logits, atol=1e-3, rtol=1e-3)
    assert logits.shape == (3, 10) and (logits[0] - logits[1]).abs().max() > 1e-5
    for steps in seen.layers:
        assert all(torch.allclose(step.coefficients.sum(-1), torch.ones(())) for step in steps)
    depths = {"concurrent": (2, 1, 0), "sequential": (0, 0, 0), None: (0, 0, 0)}[schedule]
    iterations = 1 if routing == "self_routing" else num_routing
    assert [len(steps) for steps in seen.layers] == [max(1, iterations - depth) for depth in depths]
    logits.logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images).isfinite().all()


@pytest.mark.parametrize("routing", ["dynamic", "em"])
def test_iterations_and_schedules_make_a_difference(routing):
    images = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    settings = [(1, "sequential"), (2, "sequential"), (3, "sequential"), (3, "concurrent")]
    results = [network(f"routing={routing}", f"num_routing={n}", f"routing.schedule={s}")(images) for n, s in settings]
    for i, one in enumerate(results):
        assert all((one - other).norm() > 1e-4 * one.norm() for other in results[:i])


def test_only_routings_that_ask_for_them_get_activations_and_only_theirs_replace_the_head():
    names = {
        r: set(network(f"routing={r}").state_dict()) for r in ("inverted_attention", "dynamic", "em", "self_routing")
    }
    for routing, keys in names.items():
        assert ("capsules.primary.activation.weight" in keys) == (routing in ("em", "self_routing"))
        assert ("head.weight" in keys) == (routing in ("inverted_attention", "self_routing"))
        assert network(f"routing={routing}").capsules.primary(torch.randn(1, 4, 16, 16)).poses.shape == (1, 2, 8, 8, 4)


@pytest.mark.parametrize("routing", ["dynamic", "em"])
def test_a_head_beside_class_logits_is_one_sentence(routing):
    with pytest.raises(ValueError, match=rf"model\.head=own has no effect with routing={routing}"):
        network(f"routing={routing}", "model.head=own")


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 2), (2, 1), (1, 3), (7, 1)])
def test_interleaved_windows_by_a_naive_loop(kernel_size, stride):
    """Number j at place (y, x) of these windows is number f // (h·w) at place f % (h·w), f = (y·w + x)·D + j."""
    poses = torch.randn(2, 3, 8, 7, 5)
    h, w = (8 - kernel_size) // stride + 1, (7 - kernel_size) // stride + 1
    found = interleave(poses, kernel_size, stride)
    assert found.shape == (2, 3, h * kernel_size, w * kernel_size, 5)
    for y, x, k, l, j in product(range(h), range(w), range(kernel_size), range(kernel_size), range(5)):  # noqa: E741
        number, place = divmod((y * w + x) * 5 + j, h * w)
        row, column = divmod(place, w)
        wanted = poses[:, :, stride * row + k, stride * column + l, number]
        assert torch.equal(found[:, :, kernel_size * y + k, kernel_size * x + l, j], wanted)


@pytest.mark.parametrize("num_routing", [1, 3])
def test_an_interleaved_stack_reads_these_windows(num_routing):
    """And shows so when it is watched; fully connected layers are as ever."""
    features = torch.randn(2, *FEATURES, generator=torch.Generator().manual_seed(0))
    made = stack([conv(stride=2)], num_routing=num_routing, interleaved=True)
    plain = stack([conv(stride=2)], num_routing=num_routing)
    plain.load_state_dict(made.state_dict())
    plain = plain(features)
    found, (seen, steps) = made(features), made.watch(features)
    assert not torch.allclose(found[1].poses, plain[1].poses) and found[1].poses.shape == plain[1].poses.shape
    for one, other in zip(found, seen, strict=True):
        torch.testing.assert_close(one.poses, other.poses)
    assert steps[0][0].coefficients.shape[1:6] == (3, 3, 3, 3, 2)
    config = compose_config(["dataset=digits", "capsules.interleaved=true"])
    assert [layer.interleaved for layer in build_model(config).capsules.layers] == [True, True, False]
    with pytest.raises(ValueError, match=r"capsules\.interleaved=true has no effect with routing=em"):
        build_model(compose_config(["dataset=digits", "capsules.interleaved=true", "routing=em"]))


# Routings of users


class Sharp(Routing):
    def __init__(self, shape, dropout, sharpness=1.0):
        super().__init__()
        self.sharpness, self.norm = sharpness, torch.nn.LayerNorm(shape.parent_size)

    def forward(self, votes, children, previous):
        parents = self.norm(votes.uniform(children.poses))
        return Capsules(parents if previous is None else parents + self.sharpness * previous.poses)


class Fails(Sharp):
    def __init__(self, shape, dropout):
        super().__init__(shape, dropout)
        self.weights = {}["weights"]


class Named(Sharp):
    def __init__(self, shape, dropout, name, num_routing="two"):
        super().__init__(shape, dropout)


class Scheduled(Sharp):
    def __init__(self, shape, dropout, schedule):
        super().__init__(shape, dropout)


class Defaults(Sharp):
    def __init__(self, shape, dropout, name="one", schedule="", num_routing=5):
        super().__init__(shape, dropout)
        assert (name, schedule, num_routing) == ("one", "", 5)


class Picky(dict):
    __getattr__ = dict.__getitem__


class Unpacks(Sharp):
    def __init__(self, shape, dropout):
        super().__init__(shape, dropout)
        measure(Picky())


def measure(self):
    _n, _h = self.get("shape", (1, 2, 3))


class Opens(Sharp):
    def __init__(self, shape, dropout):
        super().__init__(shape, dropout)
        open("/missing/weights").close()


class TooLarge(Sharp):
    def __init__(self, shape, dropout):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")


class Explains(Sharp):
    def __init__(self, shape, dropout):
        raise ValueError("routing.sharpness=0 must be greater than 0")


class NoDropout(Sharp):
    def __init__(self, shape):
        super().__init__(shape, 0.0)


class NeedsSharpness(Sharp):
    def __init__(self, shape, dropout, sharpness):
        super().__init__(shape, dropout, sharpness)


class Short(Sharp):
    def forward(self, votes, children, previous):
        return Capsules(super().forward(votes, children, previous).poses[..., 1:])


class Bare(Sharp):
    def forward(self, votes, children, previous):
        return super().forward(votes, children, previous).poses


class NeverActive(Sharp):
    uses_activations = True


class Fails2(Sharp):
    def forward(self, votes, children, previous):
        return [][0]


class Unpacks2(Sharp):
    def forward(self, votes, children, previous):
        _n, _h = children.poses.shape


class Measures(Sharp):
    """Needs numbers, which the tensors of an estimate of memory do not have."""

    def forward(self, votes, children, previous):
        parents = super().forward(votes, children, previous)
        return parents if parents.poses.sum().item() < 1e9 else Capsules(2 * parents.poses)


class Own(Sharp):
    """Computes its own coefficients and does not return them."""

    def forward(self, votes, children, previous):
        return Capsules(votes.explicit(children.poses).sum((3, 4, 5)).movedim(3, 1))


@pytest.fixture
def own(tiny, monkeypatch):
    """The overrides of a tiny run with a routing of this file."""
    monkeypatch.setenv("CAPSULE_SWEEPS_TRUST_PACKAGES", __name__.partition(".")[0])

    def overrides(cls, *settings):
        named = ["routing.name=own", f"routing._target_={__name__}.{cls.__name__}", "~routing.norm", "num_routing=2"]
        return [*tiny, *named, *(f"++routing.{setting}" for setting in settings)]

    return overrides


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (Fails, [], r"own \(.*\.Fails\) failed \(KeyError: 'weights', in test_stack.py, line \d+\); fix"),
        (Unpacks, [], r"Unpacks\) failed \(ValueError: too many values .*, in test_stack.py, line \d+\); fix"),
        (Opens, [], r"Opens\) failed \(FileNotFoundError: .*/missing/weights', in test_stack.py, line \d+\); fix"),
        (Explains, [], r"^routing.sharpness=0 must be greater than 0$"),
        (Named, [], "has a parameter name, which gets no value from a YAML file: rename it"),
        (Scheduled, [], "has a parameter schedule, which gets no value from a YAML file: rename it"),
        (NoDropout, [], "has no parameter dropout: its constructor must take shape, dropout"),
        (NeedsSharpness, [], "needs a value for sharpness: set it in the YAML file"),
        (Sharp, ["dropout=0.5"], "gets dropout from the network: remove dropout=0.5"),
        (Sharp, ["sharpnes=2"], "has no setting sharpnes: remove sharpnes=2 .its settings are sharpness"),
        (Sharp, ["sharpness='???'"], r"^routing\.sharpness has no value; set routing\.sharpness="),
        (Sharp, ["_target_=null"], r"^routing\._target_ has no value"),
    ],
)
def test_a_routing_that_cannot_be_made_is_one_sentence(own, cls, settings, message):
    with pytest.raises(ValueError, match=message) as raised:
        build_model(compose_config(own(cls, *settings)))
    assert "\n" not in str(raised.value)


def test_defaults_of_a_routing_and_too_little_memory_pass(own):
    build_model(compose_config(own(Defaults)))
    with pytest.raises(RuntimeError, match=r"^DefaultCPUAllocator: can't"):
        build_model(compose_config(own(TooLarge)))


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (
            Short,
            r"Short returned poses of shape \(\d, 2, 4, 4, 3\): Capsules.poses must have the shape \(B, 2, 4, 4, 4\)",
        ),
        (Bare, "Bare returned no Capsules"),
        (NeverActive, r"returned no activations: .* must have the shape \(B, 2, 4, 4\)"),
        (Unpacks2, r"capsnet failed \(ValueError: too many values .*, in test_stack.py, line \d+\); fix"),
        (Fails2, r"capsnet failed \(IndexError: list index out of range, in test_stack.py, line \d+\)"),
    ],
)
def test_a_routing_that_fails_is_one_sentence(own, capsule_sweeps, cls, message):
    for command in ("describe", "bench"):
        ended = capsule_sweeps(command, *own(cls))
        assert ended.code == 1 and re.search(message, ended.err) and len(ended.err.splitlines()) == 1, ended.text


class Backbone(torch.nn.Module):
    def __init__(self, image_shape, channels, out_shape=(4, 16, 16)):
        super().__init__()
        self.conv, self.out_shape = torch.nn.Conv2d(1, channels, 3, 2, 1), out_shape

    def forward(self, images):
        return self.conv(images)


class Linear(torch.nn.Module):
    def __init__(self, image_shape, num_classes, more):
        super().__init__()
        self.head = torch.nn.Linear(1024, num_classes + more)

    def forward(self, images):
        logits = self.head(images.flatten(1))
        return logits if logits.shape[1] != 10 else (logits, None)


BACKBONE, LINEAR = (f"{__name__}.{cls.__name__}" for cls in (Backbone, Linear))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([f"backbone._target_={BACKBONE}", "+backbone.out_shape=null"], "Backbone has out_shape=None: .* must set it"),
        ([f"backbone._target_={BACKBONE}", "+backbone.out_shape=[4,16,15]"], r"out_shape is \(4, 16, 15\): set it to"),
        (
            ["model=resnet18", f"model._target_={LINEAR}", "+model.more=1"],
            r"returned a tensor of shape \(8, 11\): .* \(B, 10\)",
        ),
        (
            ["model=resnet18", f"model._target_={LINEAR}", "+model.more=0"],
            "Linear returned a tuple: it must return logits",
        ),
    ],
)
def test_a_backbone_and_a_model_that_return_something_else_are_one_sentence(own, launch, tiny, words, message):
    ended = launch("backbone.name=own", *words, *(["model.name=own"] if "model" in words[0] else []))
    assert ended.code == 1 and re.search(message, ended.text) and "Traceback" not in ended.text, ended.text


def test_coefficients_that_a_routing_does_not_return_are_one_sentence(own):
    with pytest.raises(ValueError, match=r"no coefficients: .* must have the shape \(B, 4, 4, 3, 3, 2, 2\)"):
        build_model(compose_config(own(Own)))(torch.zeros(1, 1, 32, 32), intermediates=True)


def test_a_routing_that_needs_numbers_trains_without_an_estimate_of_memory(own, launch, capsule_sweeps, monkeypatch):
    monkeypatch.setattr("capsule_sweeps.training.memory.free_memory", lambda: 2**20)
    words = [*own(Measures), "dataset.train_size=41", "training.epochs=1"]  # the last batch has one image
    ended = launch(base=words)
    assert ended.code == 0 and "memory of a training step is unknown (DataDependent" in ended.text, ended.text
    ended = capsule_sweeps("describe", *words)
    assert ended.code == 0 and "total" in ended.out and "training step is unknown" in ended.out, ended.text
    assert capsule_sweeps("bench", "--repeats=1", *words).code == 0
