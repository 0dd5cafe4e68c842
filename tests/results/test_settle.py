"""The commands that settle open verdicts: they compose to what they are about, and what they run settles it."""

import json
import re
import shlex

import pytest
from synthetic import finished_run

from capsule_sweeps import compose_config
from capsule_sweeps.results.settle import overrides_of, seed_words
from capsule_sweeps.runs.signature import signed_config


def commands(out: str) -> list[list[str]]:
    return [shlex.split(line) for line in out.splitlines() if line.strip().startswith("python launch.py")]


@pytest.mark.parametrize(
    ("std", "n", "wanted", "words"),
    [
        (0.3, 5, 0.25, ["hydra.sweeper.half_width=0.25"]),  # 12 seeds
        (0.3, 5, 0.1, ["hydra.sweeper.half_width=0.1", "hydra.sweeper.max_seeds=70"]),
        (0.3, 8, 0.256789, ["hydra.sweeper.half_width=0.25", "hydra.sweeper.min_seeds=8"]),
        (float("nan"), 1, 0.5, ["hydra.sweeper.half_width=0.5"]),
        (0.3, 5, 0.001, []),
        (0.3, 5, 0.0, []),
    ],
)
def test_seeds_that_bring_an_interval_to_a_half_width(std, n, wanted, words) -> None:
    assert seed_words(std, n, wanted) == words


@pytest.mark.parametrize(
    "words",
    [
        ["dataset=CIFAR100", "num_routing=2"],
        ["dataset=digits", "num_routing=1", "training=quick", "training.epochs=3"],
        ["dataset=MNIST", "model=resnet18"],
        ["dataset=CIFAR10", "backbone=simple", "backbone.channels=64", "routing=em", "num_routing=3"],
        ["dataset=CIFAR10", "num_routing=2", "capsules.pose=vector", "training.milestones=[3,5]"],
    ],
)
def test_overrides_of_a_signed_configuration_compose_to_it(words) -> None:
    config = compose_config(words)
    found = overrides_of(json.dumps(signed_config(config)), config.dataset.name, config.model.name)
    assert (
        found is not None
        and signed_config(compose_config(found)) == signed_config(config)
        and len(found) <= len(words) + 1
    )


def test_text_from_a_run_folder_is_in_no_command() -> None:
    signed = {**signed_config(compose_config(["dataset=CIFAR10"])), "dataset.source": "${oc.env:HOME}"}
    assert overrides_of(json.dumps(signed), "CIFAR10", "capsnet") is None


def test_an_open_published_verdict_has_its_command_and_the_seeds_settle_it(place, capsule_sweeps) -> None:
    cell = ["dataset=CIFAR10", "num_routing=1"]
    spread = [0.9473, 0.9573, 0.9373, 0.9473, 0.9473]  # 94.73 is published; deviation 0.707 points: ±0.88
    for seed, accuracy in enumerate(spread):
        finished_run([*cell, f"seed={seed}"], 0.9, best_test=accuracy)
    out = capsule_sweeps("results", "--published", "readme_table").out
    (command,) = [words for words in commands(out.partition("Open verdicts")[2])]
    assert command[3:] == [*cell, "selection_rule=best_test", "hydra.sweeper.half_width=0.5"]
    for seed in range(5, 16):  # (2.776445 · 0.707107 / 0.5)² = 15.4
        finished_run([*cell, f"seed={seed}"], 0.9, best_test=0.9473 + 0.011 * (-1) ** seed)
    from capsule_sweeps.runs.signature import columns
    from capsule_sweeps.runs.sweep import record_seeds

    group = columns(compose_config(cell))["group"]
    record_seeds(place / "runs", {"half_width": 0.5, "min_seeds": 5, "resolve": None}, [group])
    out = capsule_sweeps("results", "--published", "readme_table").out
    assert "Open verdicts" not in out and re.search(r"num_routing 1.*94\.73.*16 │ *0\.49.*reproduced", out)
    assert "two-stage procedure" in " ".join(out.split())


def test_an_open_ablation_has_its_command(launch, capsule_sweeps) -> None:
    base = ["dataset=digits", "training=quick", "num_routing=2"]
    for seed, (one, other) in enumerate([(0.90, 0.91), (0.92, 0.90), (0.91, 0.93)]):
        finished_run([*base, f"seed={seed}"], one)
        finished_run([*base, "ablation=no_norm", f"seed={seed}"], other)
        finished_run([*base, "ablation=squash", f"seed={seed}"], one - 0.2 + seed / 1000)
    out = capsule_sweeps("results", "--ablation").out
    (command,) = commands(out.partition("not distinguishable from 0 yet")[2])
    assert command[3:6] == ["dataset=digits", "num_routing=2", "training=quick"]
    assert command[6:9] == ["ablation=none,no_norm", "hydra.sweeper.resolve=ablation", "hydra.sweeper.half_width=0.33"]
    plan = launch(*command[2:], "hydra.launcher.dry_run=true", base=["tracking=none"]).out
    assert "ablation: none → no_norm" in plan and "6 to skip, 4 to run" in plan
