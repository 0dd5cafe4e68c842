import pytest
import torch

from capsule_sweeps.networks.backbones import BasicBlock, ResNet, Simple


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 17, 9)])
def test_out_shape_is_what_comes_out(shape):
    for backbone in (Simple(shape, channels=5), ResNet(shape)):
        assert backbone(torch.randn(2, *shape)).shape == (2, *backbone.out_shape)


def test_simple_is_a_convolution_and_a_relu():
    backbone = Simple((3, 8, 8), channels=7)
    assert sum(p.numel() for p in backbone.parameters()) == 7 * (3 * 9 + 1)
    features = backbone(torch.randn(4, 3, 8, 8))
    assert (features >= 0).all() and (features == 0).any()


def test_resnet_has_seven_blocks_and_the_published_number_of_parameters():
    backbone = ResNet((3, 32, 32))
    assert [m.conv1.out_channels for m in backbone.modules() if isinstance(m, BasicBlock)] == [64] * 3 + [128] * 4
    stem, shortcut = 3 * 64 * 9 + 128, 64 * 128 + 256
    blocks = 3 * (2 * 64 * 64 * 9 + 256) + (64 + 3 * 128 + 4 * 128) * 128 * 9 + 4 * 512
    assert sum(p.numel() for p in backbone.parameters()) == stem + shortcut + blocks


def test_basic_block_adds_its_input():
    block = BasicBlock(4, 4, stride=1).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(block(x), x.relu())


def test_channels_must_be_positive():
    with pytest.raises(ValueError, match=r"backbone\.channels=0"):
        Simple((3, 8, 8), channels=0)
