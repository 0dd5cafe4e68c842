"""baselines.py: networks without capsules, and how they live among runs with capsules."""

import re

import pytest
import torch
from synthetic import finished_run
from torch import nn

from capsule_sweeps import build_model, compose_config, load_runs
from capsule_sweeps.config.match_width import matched
from capsule_sweeps.networks.backbones import BasicBlock
from capsule_sweeps.networks.baselines import CNN, ResNet18
from capsule_sweeps.results.ablation import ablation_table
from capsule_sweeps.runs.signature import columns, signed_config

SIMPLE = {"name": "simple", "_target_": "capsule_sweeps.networks.backbones.Simple", "channels": 8}

SMALL = "capsules.primary={num_capsules: 1, pose_size: 4, kernel_size: 1, stride: 16}"


def num_parameters(*overrides: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(compose_config(list(overrides))).parameters())


@pytest.mark.parametrize(("dataset", "parameters"), [("CIFAR10", 11_173_962), ("CIFAR100", 11_220_132)])
def test_resnet18_has_the_known_number_of_parameters(dataset, parameters) -> None:
    assert num_parameters("model=resnet18", f"dataset={dataset}") == parameters


def test_resnet18_has_the_known_layers() -> None:
    model = ResNet18((3, 32, 32), 10)
    blocks = [module for module in model.modules() if isinstance(module, BasicBlock)]
    assert [(block.conv1.out_channels, block.conv1.stride[0]) for block in blocks] == [
        *((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1))
    ]
    assert (model.stem[0].kernel_size, model.stem[0].stride) == ((3, 3), (1, 1))
    assert not any(isinstance(module, nn.MaxPool2d) for module in model.modules())


def test_cnn_computes_what_its_docstring_says() -> None:
    model = CNN(SIMPLE, 5, (1, 12, 12), 3).eval()
    conv1, bn1, _, conv2, bn2, _ = model.convolutions
    images = torch.rand(4, 1, 12, 12)
    features = bn2(conv2(bn1(conv1(model.backbone(images))).relu())).relu()
    assert features.shape == (4, 5, 3, 3)
    hidden, _, classes = model.head
    torch.testing.assert_close(model(images), classes(hidden(features.mean((2, 3))).relu()))
    weights = 8 * (9 + 1) + 8 * 5 * 9 + 5 * 5 * 9 + 4 * 5 + 5 * 6 + 3 * 6
    assert sum(parameter.numel() for parameter in model.parameters()) == weights


@pytest.mark.slow
@pytest.mark.parametrize(
    "base",
    [
        ["backbone=simple"],
        ["backbone=resnet", "routing=em", "num_routing=2"],
        ["backbone=resnet", "dataset=CIFAR100", "num_routing=3"],
    ],
    ids=" ".join,
)
def test_describe_names_the_widths_that_match_a_capsule_model(base) -> None:
    from capsule_sweeps.profiling.describe import layer_table, like_capsnet

    config = compose_config([*base, "model=cnn", "model.width=7"])
    told, model = like_capsnet(config), config.model
    widths = re.findall(r"model\.width=(\d+) has about the (\S+) of model=capsnet .*?, ([\d,]+)", told)
    assert [name for _, name, _ in widths] == ["parameters", "multiply-adds"], told
    capsules = layer_table(compose_config(base)).iloc[-1]
    for width, name, shown in widths:
        wanted = int(capsules[name.replace("-", "_")])
        costs = []
        for model.width in (int(width) - 1, int(width), int(width) + 1):
            costs.append(int(layer_table(config).iloc[-1][name.replace("-", "_")]))
        assert int(shown.replace(",", "")) == wanted
        assert abs(costs[1] - wanted) == min(abs(cost - wanted) for cost in costs) < 0.01 * wanted


def test_no_width_is_as_small_as_a_tiny_stack() -> None:
    from capsule_sweeps.profiling.describe import like_capsnet

    tiny = ["layers=[]", "primary.num_capsules=1", "primary.pose_size=4", "primary.stride=16", "classes.pose_size=4"]
    told = like_capsnet(compose_config(["dataset=digits", "model=cnn", *(f"capsules.{text}" for text in tiny)]))
    assert "no model.width has as few parameters" in told and "no model.width has as few multiply-adds" in told
    wrong = like_capsnet(compose_config(["dataset=digits", "model=cnn", "capsules.primary.kernel_size=99"]))
    assert "Its capsule network is not possible (capsules.primary.kernel_size=99" in wrong


@pytest.mark.parametrize("width", ["0", "1.5"])
def test_width_must_be_a_whole_number(width) -> None:
    with pytest.raises(ValueError, match=rf"model\.width={width}"):
        build_model(compose_config(["model=cnn", f"model.width={width}"]))


@pytest.mark.parametrize("model", ["resnet18", "cnn"])
def test_ingredients_that_a_baseline_does_not_read_are_not_signed(model) -> None:
    base = ["dataset=digits", f"model={model}"]
    one = columns(compose_config(base))
    for override in ("num_routing=3", "routing=uniform", "capsules=CIFAR10", "capsules.dropout=0.2"):
        assert columns(compose_config([*base, override])) == one, override
    assert (one["routing"], one["schedule"], one["num_routing"]) == (None, None, None)
    other = columns(compose_config([*base, "backbone=resnet"]))["signature"] == one["signature"]
    assert other == (model == "resnet18")
    signed = signed_config(compose_config(base))
    assert not [key for key in signed if key.startswith(("model.routing", "model.capsules", "model.num_routing"))]


def test_model_cnn_brings_the_simple_backbone_unless_another_is_named() -> None:
    assert compose_config(["model=cnn"]).model.backbone.name == "simple"
    for overrides in (["model=cnn", "backbone=resnet"], ["backbone=resnet", "model=cnn"]):
        assert compose_config(overrides).model.backbone.name == "resnet"


def test_a_sweep_over_models_and_iterations(launch, capsule_sweeps, runs) -> None:
    """Three iterations of a capsule network are three runs, of a CNN one; all are in one table."""
    base = ["model.width=8"]
    planned = launch("-m", "model=cnn", "num_routing=1,2,3", *base, "training.epochs=1")
    assert planned.code == 0 and "1 run (3 points)" in planned.out, planned.text
    assert runs.only().name.startswith("digits-cnn-simple-s0-")
    assert launch("-m", "num_routing=1,2", "training.epochs=1").code == 0
    for command in (
        ["results", "--format", "csv"],
        ["status"],
        ["results", "--ablation"],
        ["show", runs.folders()[0].name],
    ):
        ended = capsule_sweeps(*command)
        assert ended.code == 0, ended.text
        if command[0] == "results" and "csv" in command:
            rows = [line.split(",") for line in ended.out.splitlines()]
            models = [row[rows[0].index("model")] for row in rows[1:]]
            assert sorted(models) == ["capsnet", "capsnet", "cnn"]
        assert "<NA>" not in ended.out


def test_an_ablation_of_a_baseline_is_named_by_its_model(place) -> None:
    for seed in (0, 1):
        for change in ("none", "no_augmentation"):
            finished_run(["dataset=digits", "model=cnn", f"seed={seed}", f"ablation={change}"], 0.9)
    assert ablation_table(load_runs("runs"), "last").base.unique().tolist() == ["digits cnn"]


def test_width_that_matches_is_the_nearest_one_and_is_signed_as_a_number() -> None:
    wanted = num_parameters("dataset=digits", "routing=em")
    config = compose_config(["dataset=digits", "model=cnn", "routing=em", "model.width=match"])
    width = config.model.width
    sizes = {near: num_parameters("dataset=digits", "model=cnn", f"model.width={near}") for near in range(28, 37)}
    assert abs(sizes[width] - wanted) == min(abs(size - wanted) for size in sizes.values()) and 28 < width < 36
    assert str(matched(config)) == f"{width} ({sizes[width]:,} parameters for {wanted:,})"
    assert signed_config(config) == signed_config(
        compose_config(["dataset=digits", "model=cnn", f"model.width={width}"])
    )
    assert matched(compose_config(["dataset=CIFAR100", "model=cnn"])) is None


def test_plan_shows_the_width_that_matches(launch) -> None:
    points = "hydra.sweeper.points=[{model: capsnet, num_routing: '1,2'}, {model: cnn, model.width: match}]"
    ended = launch("-m", points, "hydra.launcher.dry_run=true")
    assert ended.code == 0 and "3 runs: 3 to run" in ended.out, ended.text
    assert re.search(r"^model\.width=match: \d+ \([\d,]+ parameters for [\d,]+\)\.$", ended.out, re.MULTILINE)


@pytest.mark.parametrize("spelling", ["model.width=match", "++model.width=match", "model.width=Match"])
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["model=capsnet"],
            "model.width=match has no effect on model=capsnet, which has no width: set it for model=cnn",
        ),
        (["model=resnet18"], "model.width=match has no effect on model=resnet18"),
        (["model=cnn", "capsules.primary.pose_size=5"], "not possible: capsules.primary.pose_size=5"),
        (
            [*("model=cnn", "capsules.layers=[]", "backbone.channels=1000", "capsules.classes.pose_size=4"), SMALL],
            "fewer than model=cnn with model.width=1 (",
        ),
    ],
)
def test_width_that_cannot_match_is_one_sentence(overrides, words, spelling) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        compose_config(["dataset=digits", *overrides, spelling])


def test_width_that_matches_cannot_stand_in_a_file_for_all_models(launch, tmp_path) -> None:
    text = "# @package _global_\ndefaults:\n  - override /model: cnn\nmodel:\n  width: match\n"
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "fair.yaml").write_text(text)
    ended = launch(f"--config-dir={tmp_path}", "experiment=fair", "hydra.launcher.dry_run=true")
    assert ended.code == 1 and "model.width=match in a file" in ended.err and "Traceback" not in ended.text
