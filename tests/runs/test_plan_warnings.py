"""What a plan warns of: one line each, and none where nothing is wrong."""

from __future__ import annotations

import json

import pytest

from capsule_sweeps import compose_config
from capsule_sweeps.config.compose import _loader, compose_points
from capsule_sweeps.launchers.launch import warn_of_sizes
from capsule_sweeps.runs.plan import Policy, make_plan, show_plan
from capsule_sweeps.runs.plan_warnings import plan_warnings
from capsule_sweeps.runs.signature import signed_config

GOOD = ["dataset=digits", "training=quick", "num_routing=2"]


def plan(*points: str, base=GOOD):
    words = [[*base, *point.split()] for point in points]
    with _loader() as loader:
        return make_plan(compose_points(loader, None, words), words, Policy())


@pytest.mark.parametrize(
    "points",
    [
        ["seed=0", "seed=1"],
        ["num_routing=2", "num_routing=3"],
        ["routing=uniform num_routing=1"],
        ["routing=self_routing num_routing=1"],
        ["model=resnet18 num_routing=1"],
        ["training.epochs=3", "training.epochs=1"],
        ["training=paper", "training=fast"],
        ["training.epochs=5 training.milestones=[2,4]"],
    ],
)
def test_nothing_to_warn_of(points, place) -> None:
    assert plan_warnings(plan(*points)) == []


def test_one_iteration_does_not_route(place) -> None:
    (line,) = plan_warnings(plan("num_routing=1", "num_routing=2"))
    assert line.startswith("num_routing=1 does not route (1 of 2 runs): its coefficients are uniform.")
    line = plan_warnings(plan("num_routing=1 routing=em", "num_routing=1 routing=dynamic"))[-1]
    assert line.startswith("num_routing=1 does not route: ") and "routing=em,dynamic do not compare" in line

    (line,) = plan_warnings(plan("num_routing=1 routing.schedule=sequential", "num_routing=1"))
    assert line.startswith(
        "num_routing=1 does not route: its coefficients are uniform, so that routing.schedule has no"
    )


def test_recipe_of_a_routing_is_named(place) -> None:
    (line,) = plan_warnings(plan("routing=dynamic", "routing=inverted_attention", "routing=dynamic training=paper"))
    assert line == "routing=dynamic trains with training.clip_norm=1.0, from conf/routing/dynamic.yaml."
    assert plan_warnings(plan("routing=dynamic training.clip_norm=null", "routing=dynamic training.clip_norm=3")) == []
    for name in ("a" * 300, "../routing/dynamic"):
        assert plan_warnings(plan(f"num_routing=2 routing.name={name}")) == []
    assert plan_warnings(plan("routing=sr_dynamic capsules=sr_capsnet_1 training=sr_capsnet backbone=resnet20")) == []


def test_milestones_that_no_epoch_reaches(place) -> None:
    (line,) = plan_warnings(plan("training.epochs=12 training.milestones=[8,12,250]"))
    assert "training.milestones=[8, 12, 250]: 12, 250 are beyond" in line and "training.epochs=12" in line
    assert "training.milestones=[0.43, 0.71] is [5, 9] here" in line


def test_points_that_coincide_are_named(place) -> None:
    (line,) = plan_warnings(plan("device=cpu", "device=auto", "seed=1"))
    assert (
        line == "device=cpu and device=auto are one run: they differ only in settings that do not change its numbers."
    )
    (line,) = plan_warnings(plan("seed=1", "seed=1", "seed=2"))
    assert line == "seed=1 is asked for more than once: it is one run."
    many = plan_warnings(plan(*[f"seed={seed} device={device}" for seed in range(7) for device in ("cpu", "auto")]))
    assert len(many) == 6 and many[-1] == "2 more groups are like this."


def test_models_of_very_different_size(place, capsys) -> None:
    two = plan("model=cnn", "model=capsnet", "model=cnn model.width=8 dataset=MNIST backbone=simple capsules=digits")
    assert plan_warnings(two) == []  # no run with these models was made, and the plan does without torch
    warn_of_sizes(two)
    said = capsys.readouterr().out
    assert said.startswith("model=cnn has 955,402 parameters and model=capsnet has 47,761")
    assert plan_warnings(two) == [said.strip()]
    warn_of_sizes(two)
    assert not capsys.readouterr().out
    same = plan("seed=0", "ablation=squash")
    warn_of_sizes(same)
    assert plan_warnings(same) == [] and not capsys.readouterr().out


def test_dry_run_warns_of_sizes(launch, place, tiny) -> None:
    dry = "hydra.launcher.dry_run=true"
    ended = launch("-m", "num_routing=2,3", "model=cnn,capsnet", dry)
    assert ended.code == 0 and ended.out.count("the difference between their accuracies is also one of size.") == 1
    assert "parameters" not in launch("-m", "num_routing=2,3", "seed=0,1", dry).out


def test_sizes_are_known_from_runs_that_were_made(place) -> None:
    points = ["model=cnn", "model=capsnet"]
    for planned, parameters in zip(plan(*points), (500, 100), strict=True):
        planned.run.folder.mkdir(parents=True)
        record = {"signed_config": signed_config(planned.config), "parameters": parameters}
        (planned.run.folder / "run.json").write_text(json.dumps(record))
    (line,) = plan_warnings(plan("model=cnn seed=1", "model=capsnet seed=1"))
    assert line.startswith("model=cnn has 500 parameters and model=capsnet has 100:")


def test_warnings_are_shown_with_the_plan(place, capsys) -> None:
    found = plan("num_routing=1", "num_routing=1 device=cpu")
    show_plan(found, 2, 1)
    out = capsys.readouterr().out
    assert "1 run (2 points): 1 to run" in out and all(line in out for line in plan_warnings(found))


# Milestones as fractions


@pytest.mark.parametrize(
    ("words", "milestones"),
    [
        ("training=paper", [150, 250]),
        ("training=paper training.epochs=35", [15, 25]),
        ("training=paper training.epochs=7", [3, 5]),
        ("training=quick", [8, 11]),
        ("training=quick training.epochs=24", [16, 22]),
        ("training=quick training.epochs=2", [1]),
        ("training=quick training.epochs=1", []),
        ("training=quick training.epochs=5 training.milestones=[3,7]", [3, 7]),
        ("training=quick training.epochs=6 training.milestones=[0.5,0.51]", [3]),
    ],
)
def test_recipe_keeps_its_shape_in_a_run_of_another_length(words, milestones) -> None:
    found = compose_config(["dataset=digits", *words.split()]).training.milestones
    assert list(found) == milestones and all(isinstance(value, int) for value in found)


@pytest.mark.parametrize(
    "value", ["[3,1]", "[0.5,0.5]", "[a]", "[true]", "[2.5]", "[0]", "[-0.1]", "[1,1]", "[[1]]", "[.nan]"]
)
def test_bad_milestones(value) -> None:
    with pytest.raises(ValueError, match=r"training\.milestones"):
        compose_config([f"training.milestones={value}"])
