"""What the networks of "Self-Routing Capsule Networks" need: padding, batch norms, squash, classes without poses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from capsule_sweeps import build_model, compose_config
from capsule_sweeps.networks.backbones import ResNet20
from capsule_sweeps.networks.layers import CapsuleLayer, PrimaryCapsules
from capsule_sweeps.routing.base import Capsules, LayerShape
from capsule_sweeps.routing.em import EM

SMALL = [*("dataset=digits", "backbone=resnet20", "backbone.width=4", "num_routing=3", "training.compile=off")]


def small(routing: str, layers: int) -> list[str]:
    """capsules=sr_capsnet_<layers> with 3 capsules of 4 numbers."""
    stack = [f"routing={routing}", f"capsules=sr_capsnet_{layers}", "capsules.primary.num_capsules=3"]
    own = ["capsules.primary.pose_size=4", *(["capsules.classes.pose_size=4"] if "self" not in routing else [])]
    conv = "{type: conv, num_capsules: 3, pose_size: 4, kernel_size: 3, stride: 2, padding: 1}"
    return [*SMALL, *stack, *own, *([f"capsules.layers=[{conv}]"] if layers == 2 else [])]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("routing", ["sr_dynamic", "sr_em", "sr_self_routing"])
def test_class_logits_are_logarithms_and_every_weight_learns(routing, layers) -> None:
    torch.manual_seed(0)
    model, images, labels = (
        build_model(compose_config(small(routing, layers))),
        torch.randn(8, 1, 32, 32),
        torch.arange(8),
    )
    for layer in model.capsules.layers if routing == "sr_self_routing" else []:
        torch.nn.init.normal_(layer.routing.weight)  # begins at 0, where poses have no gradient yet
    logits = model(images)
    assert logits.shape == (8, 10) and (logits <= 0).all()
    if routing == "sr_self_routing":  # the classes share out all that the children have
        torch.testing.assert_close(logits.exp().sum(1), torch.ones(8))
    F.cross_entropy(logits, labels).backward()
    still = [name for name, weight in model.named_parameters() if weight.numel() and not weight.grad.abs().sum()]
    assert not still
    seen, steps = model.eval()(images, intermediates=True)
    torch.testing.assert_close(seen, model(images), rtol=1e-4, atol=1e-4)
    assert [len(layer) for layer in steps.layers] == [1 if "self" in routing else 3] * layers


@pytest.mark.parametrize("stride", [1, 2])
def test_padding_adds_children_of_pose_0_and_activation_0(stride) -> None:
    torch.manual_seed(0)
    poses, activations = torch.randn(2, 3, 5, 5, 4, dtype=torch.float64), torch.rand(2, 3, 5, 5, dtype=torch.float64)
    routing = EM(LayerShape((3, 3), 3, 4, 2, 4), 0.0, 0.3, 0.2)
    padded = CapsuleLayer((3, 5, 5, 4), 2, 4, 3, stride, True, routing, padding=1).double()
    plain = CapsuleLayer((3, 7, 7, 4), 2, 4, 3, stride, True, routing).double()
    plain.load_state_dict(padded.state_dict())
    around = F.pad(poses, (0, 0, 1, 1, 1, 1)), F.pad(activations, (1, 1, 1, 1))
    found, expected = padded(Capsules(poses, activations)), plain(Capsules(*around))
    assert found.poses.shape[2:4] == padded.out_shape[1:3] == plain.out_shape[1:3]
    torch.testing.assert_close(found.poses, expected.poses)
    torch.testing.assert_close(found.activations, expected.activations)


def test_batch_norm_of_primary_poses_is_that_of_the_channels_and_squash_comes_after() -> None:
    features = torch.randn(4, 6, 8, 8)
    plain = PrimaryCapsules((6, 8, 8), 3, 4, 3, 1, padding=1, norm="batch")
    plain.add_activations()
    squashed = PrimaryCapsules((6, 8, 8), 3, 4, 3, 1, padding=1, norm="batch_squash")
    squashed.load_state_dict(plain.state_dict(), strict=False)
    channels = F.batch_norm(plain.conv(features), None, None, training=True)
    children = plain(features)
    assert children.poses.shape == (4, *plain.out_shape) == (4, 3, 8, 8, 4)
    torch.testing.assert_close(children.poses[:, 2, :, :, 1], channels[:, 2 * 4 + 1], rtol=1e-4, atol=1e-5)
    expected = F.batch_norm(plain.activation[0](features), None, None, training=True).sigmoid()
    torch.testing.assert_close(children.activations, expected)
    lengths = children.poses.norm(dim=-1)
    torch.testing.assert_close(
        squashed(features).poses.norm(dim=-1), lengths**2 / (1 + lengths**2), rtol=1e-4, atol=1e-5
    )


def test_between_is_a_batch_norm_in_front_of_all_layers_but_the_first() -> None:
    model = build_model(compose_config(small("sr_em", 2)))
    assert [layer.norm is None for layer in model.capsules.layers] == [True, False]


def test_kaiming_weights_have_the_deviation_of_the_published_code() -> None:
    layer = CapsuleLayer(
        (8, 8, 8, 16), 10, 16, None, 1, False, EM(LayerShape((8, 8), 8, 16, 10, 16), 0.0, 1.0, 0.5), init="kaiming"
    )
    assert layer.weight.std().item() == pytest.approx((2 / (16 * 10 * 16)) ** 0.5, rel=0.02)
    assert layer.vote_scale == 1


def test_resnet20_has_the_published_number_of_parameters_and_a_shortcut_without_weights() -> None:
    backbone = ResNet20((3, 32, 32), 16)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 269_072
    assert backbone(torch.randn(2, 3, 33, 32)).shape[1:] == ResNet20((3, 33, 32), 16).out_shape == (64, 9, 8)
    block = backbone.layers[6].eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 16, 8, 8)
    found = block(x)
    torch.testing.assert_close(found[:, 8:24], x[:, :, ::2, ::2])
    assert not found[:, :8].any() and not found[:, 24:].any()


@pytest.mark.parametrize(
    ("message", "overrides"),
    [
        ("capsules.primary.padding=3", ["capsules.primary.padding=3"]),
        ("capsules.primary.norm=squash", ["+capsules.primary.norm=squash"]),
        ("capsules.between=layer", ["capsules.between=layer"]),
        ("capsules.classes.pose_size=0", ["routing=inverted_attention", "capsules.classes.pose_size=0"]),
        ("routing.class_logits=ln", ["routing=sr_em", "routing.class_logits=ln"]),
        ("backbone.width=0", ["backbone.width=0"]),
        ("model.channels=0", ["model=convolution", "model.channels=0"]),
    ],
)
def test_settings_out_of_range_are_one_sentence(message, overrides) -> None:
    with pytest.raises(ValueError, match=message) as failed:
        build_model(compose_config([*SMALL, "capsules=sr_capsnet_1", *overrides]))
    assert len(str(failed.value).splitlines()) == 1
