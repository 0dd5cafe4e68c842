"""Configuration: defaults, groups and their options, what Hydra's own commands say, what follows what."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from capsule_sweeps import build_model, compose_config
from capsule_sweeps.config import compose
from capsule_sweeps.config.check import check
from capsule_sweeps.config.compose import check_names
from capsule_sweeps.runs.signature import columns

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch.py"
OPTIONS = sorted(
    (path.parent.name, path.stem) for path in (ROOT / "conf").glob("*/*.yaml") if path.parent.name != "hydra"
)


# Values


@pytest.mark.parametrize(("group", "name"), [one for one in OPTIONS if one[0] in ("routing", "backbone", "model")])
def test_a_class_under_the_name_of_each_other_one(group, name) -> None:
    config = compose_config([f"{group}={name}"] if group != "routing" or name[:3] != "sr_" else [])
    assert check_names(config) is None
    config[group].name, config[group]._target_ = name, "mine.Own"
    with pytest.raises(ValueError, match=f"{group}.name={name} is the name of capsule_sweeps"):
        check_names(config)


@pytest.mark.parametrize("name", ["a" * 300, "../routing/em", "draft", "null"])
def test_names_that_are_no_options_are_free(name, monkeypatch, tmp_path) -> None:
    shutil.copytree(ROOT / "conf" / "routing", tmp_path / "routing")
    (tmp_path / "routing" / "draft.yaml").write_text("")
    (tmp_path / "routing" / "null.yaml").write_text("training: 5\nrouting: {_target_: null}")
    config = compose_config([])
    monkeypatch.setattr(compose, "CONF_DIR", tmp_path)
    config.routing.name, config.routing._target_ = name, "mine.Own"
    assert check_names(config) is None


@pytest.mark.parametrize(
    ("base", "setting"),
    [("MNIST", "dataset.views=azimuth"), ("digits", "dataset.base=digits"), ("digits", "dataset.base=MNIST")],
)
def test_settings_of_data_without_effect_are_read_but_not_made(base, setting) -> None:
    stored = OmegaConf.create(OmegaConf.to_container(compose_config([f"dataset={base}"])))
    key, value = setting.split("=")
    OmegaConf.update(stored, key, value)
    assert OmegaConf.select(check(stored), key) == value, "runs made before it became an error are read"
    with pytest.raises(ValueError, match=f"{setting} (has no effect|is not read)"):
        compose_config([f"dataset={base}", setting])


def test_defaults() -> None:
    config = compose_config([])
    assert config.dataset.name == config.capsules.name == "CIFAR10"
    assert (config.backbone.name, config.routing.name, config.model.name) == ("resnet", "inverted_attention", "capsnet")
    assert (config.num_routing, config.seed, config.dataset.val_size, config.dataset.train_size) == (1, 0, 0, None)
    assert (config.runs_dir, config.data_dir, config.device) == ("runs", "data", "auto")
    assert (config.tracking.name, config.tracking.mode) == ("wandb", "auto")
    assert config.routing.schedule == "concurrent" and config.debug is False and config.capsules.dropout == 0


def test_paper_recipe() -> None:
    training = compose_config(["training=paper"]).training
    assert (training.epochs, training.batch_size, training.milestones) == (350, 128, [150, 250])
    assert (training.lr, training.momentum, training.weight_decay, training.lr_decay) == (0.1, 0.9, 5e-4, 0.1)
    assert (training.amp, training.channels_last) == ("none", True)
    assert compose_config([]).training == training


def test_published_settings_of_data() -> None:
    for name, classes in (("CIFAR10", 10), ("CIFAR100", 100)):
        dataset = compose_config([f"dataset={name}"]).dataset
        assert (dataset.num_classes, dataset.channels, dataset.image_size) == (classes, 3, 32)
        assert (list(dataset.mean), list(dataset.std)) == ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])
        assert (dataset.crop_padding, dataset.flip, dataset.source) == (4, True, "torchvision")
    assert compose_config(["dataset=digits"]).dataset.flip is False


def conv(size: int, stride: int) -> dict:
    return {
        "type": "conv",
        "num_capsules": 32,
        "pose_size": size,
        "kernel_size": 3,
        "stride": stride,
        "padding": 0,
    }


def test_stacks_of_the_paper() -> None:
    def stack(name: str) -> tuple:
        capsules = OmegaConf.to_container(compose_config([f"dataset={name}"]).model.capsules)
        layers = [{key: value for key, value in layer.items() if value is not None} for layer in capsules["layers"]]
        return capsules["pose"], capsules["primary"], layers, capsules["classes"]

    def primary(size: int) -> dict:
        return {"num_capsules": 32, "pose_size": size, "kernel_size": 1, "stride": 1, "padding": 0, "norm": "layer"}

    assert stack("CIFAR10") == ("matrix", primary(16), [conv(16, 2), conv(16, 1)], {"pose_size": 16})
    connected = {"type": "fc", "num_capsules": 20, "pose_size": 36, "padding": 0}
    assert stack("CIFAR100") == ("matrix", primary(36), [conv(36, 2), conv(36, 1), connected], {"pose_size": 36})


@pytest.mark.parametrize("dataset", ["CIFAR10", "CIFAR100", "digits"])
def test_capsules_and_backbone_follow_the_dataset_unless_named(dataset) -> None:
    config = compose_config([f"dataset={dataset}"])
    assert config.capsules.name == dataset
    assert config.backbone.name == ("simple" if dataset == "digits" else "resnet")
    for overrides in ([f"dataset={dataset}", "capsules=CIFAR100"], ["capsules=CIFAR100", f"dataset={dataset}"]):
        assert compose_config(overrides).capsules.name == "CIFAR100"
    for backbone in ("resnet", "simple"):
        for overrides in (
            [f"dataset={dataset}", f"backbone={backbone}"],
            [f"backbone={backbone}", f"dataset={dataset}"],
        ):
            assert compose_config(overrides).model.backbone.name == backbone


def test_point_of_a_sweep_is_the_run_that_it_would_be_alone(launch) -> None:
    """Groups that follow each other, values that belong to one option only, interpolations."""
    swept = ["dataset=CIFAR10,CIFAR100", "num_routing=1,3", "capsules.dropout=0.1", "dataset.source=folder"]
    out = launch("-m", *swept, "data_dir=nowhere", "device=cpu", base=["tracking=none"]).out
    for dataset in ("CIFAR10", "CIFAR100"):
        for num_routing in (1, 3):
            one = [f"dataset={dataset}", f"num_routing={num_routing}", "capsules.dropout=0.1", "dataset.source=folder"]
            assert columns(compose_config(one))["run"] in out
    assert "CIFAR100-capsnet-resnet" in out


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("num_routing=3", "num_routing", 3),
        ("routing.schedule=sequential", "routing.schedule", "sequential"),
        ("capsules.dropout=0.25", "capsules.dropout", 0.25),
        ("capsules.pose=vector", "capsules.pose", "vector"),
        ("backbone=simple", "backbone.channels", 128),
    ],
)
def test_ingredients_reach_the_model(override, key, value) -> None:
    assert OmegaConf.select(compose_config([override]).model, key) == value


def test_whole_numbers_become_numbers_of_their_type() -> None:
    config = compose_config(["training.lr=1", "training.weight_decay=0"])
    assert isinstance(config.training.lr, float) and isinstance(config.training.weight_decay, float)


def test_composed_configuration_is_resolved_and_plain() -> None:
    config = compose_config(["dataset=digits"])
    assert "hydra" not in config
    assert "${" not in OmegaConf.to_yaml(config)
    assert check(config) == config


def test_composing_leaves_no_state_behind() -> None:
    first = compose_config(["dataset=digits", "num_routing=3", "seed=7"])
    with pytest.raises(ValueError):
        compose_config(["dataset=nonsense"])
    assert compose_config([]) == compose_config([])
    assert compose_config(["dataset=digits", "num_routing=3", "seed=7"]) == first


# Every option


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=["=".join(option) for option in OPTIONS])
def test_every_option_is_composed_built_and_run_on_two_images(group, option, tmp_path) -> None:
    base = [] if group == "dataset" else ["dataset=digits"]
    if option == "folder" and group == "dataset":
        for name in ("ant", "bee"):
            (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "train" / "ant" / "0.png")
        base = [f"dataset.root={tmp_path}"]
    if option == "npz":
        images, labels = np.zeros((4, 28, 28), np.uint8), np.arange(4) % 2
        np.savez(tmp_path / "x.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
        base = [f"dataset.root={tmp_path}/x.npz"]
    run_two_images([*base, f"{group}={option}"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["routing.schedule=sequential", "num_routing=2"],
        ["routing.schedule=concurrent", "num_routing=3"],
        ["capsules.pose=vector", "num_routing=2"],
        ["capsules.dropout=0.5"],
        ["backbone=resnet", "capsules=CIFAR10", "num_routing=2"],
    ],
    ids=" ".join,
)
def test_settings_are_built_and_run_on_two_images(overrides) -> None:
    run_two_images(["dataset=digits", *overrides])


def run_two_images(overrides: list[str]) -> None:
    config = compose_config(overrides)
    model = build_model(config)
    images = torch.rand(2, config.dataset.channels, config.dataset.image_size, config.dataset.image_size)
    logits = model(images)
    assert logits.shape == (2, config.dataset.num_classes) and torch.isfinite(logits).all()
    logits.logsumexp(1).sum().backward()
    for name, parameter in model.named_parameters():
        if not parameter.numel():  # classes without poses have no votes
            continue
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


# Hydra's commands, as real processes


def test_help_shows_groups_and_three_examples_that_compose(python, launch) -> None:
    ended = python(LAUNCH, "--help")
    assert ended.code == 0 and ended.err == ""
    for group, option in OPTIONS:
        shown = re.search(rf"^{group}: (.*)$", ended.out, re.MULTILINE)
        assert shown and option in shown[1].split(", "), group
    examples = re.findall(r"^ *python launch\.py (.*?)(?:  .*)?$", ended.out, re.MULTILINE)
    assert len(examples) >= 3
    for example in examples:  # without images each stops after its plan, at the latest
        planned = launch(*shlex.split(example), "dataset.source=folder", "data_dir=nowhere", base=["device=cpu"])
        assert planned.out.startswith("Plan"), f"{example}: {planned.text}"


def test_cfg_job_resolves(launch) -> None:
    ended = launch("--cfg=job", "--resolve", "dataset=digits", base=[])
    assert check(OmegaConf.create(ended.out)) == compose_config(["dataset=digits"])
    assert "${" not in ended.out


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("dataset=di", {"dataset=digits"}),
        ("training.ep", {"training.epochs="}),
    ],
)
def test_tab_completion(python, line, offered) -> None:
    ended = python("-X", "importtime", LAUNCH, "-sc", "query=bash", COMP_LINE=f"python launch.py {line}")
    assert ended.code == 0
    assert offered <= set(ended.out.split())
    assert not re.search(r"\| +torch$", ended.err, re.MULTILINE)


def test_tab_completion_can_be_installed(launch) -> None:
    assert "COMP_LINE" in launch("-sc", base=["install=bash"]).out


def test_verbose_runs_and_says_more(python, tiny, place) -> None:
    ended = python(LAUNCH, *tiny, "training.epochs=1", "hydra.verbose=true")
    assert ended.code == 0 and "Traceback" not in ended.text
    quiet = python(LAUNCH, *tiny, "training.epochs=1", "runs_dir=again")
    assert len(ended.text.splitlines()) > len(quiet.text.splitlines())
    assert "[HYDRA]" in ended.text or "Hydra 1.3" in ended.text
