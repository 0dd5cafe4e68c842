"""The commands that settle open verdicts: they compose to what they are about, and what they run settles it."""

import json
import re
import shlex

import pandas as pd
import pytest
from synthetic import finished_run

from capsule_sweeps import compose_config
from capsule_sweeps.results.settle import overrides_of, seed_words
from capsule_sweeps.runs.signature import signed_config


def commands(out: str) -> list[list[str]]:
    return [shlex.split(line) for line in out.splitlines() if line.strip().startswith("python launch.py")]


FIVE = [90.0, 90.2, 90.4, 90.6, 90.8]  # deviation 0.316228


@pytest.mark.parametrize(
    ("values", "seeds", "wanted", "first", "words"),
    [
        (FIVE, range(5), 0.25, None, "half_width=0.25"),  # 13 seeds
        (FIVE, range(5), 0.1, None, "half_width=0.1 max_seeds=78"),
        (FIVE[:2] + FIVE, range(7), 0.25, None, "half_width=0.25 min_seeds=7"),
        ([90.0], range(1), 0.5, None, "half_width=0.5"),
        (FIVE, range(5), 0.001, None, ""),
        (FIVE[:2], range(2), 0.5, 3, "half_width=0.5 min_seeds=3"),  # what was recorded stays
        (FIVE[:4], range(4), 0.5, 30, "half_width=0.5 min_seeds=30 max_seeds=30"),
        (FIVE, range(100, 105), 0.25, None, "seed=range(100,105) half_width=0.25"),
        (FIVE[:2], [3, 9], 0.5, None, "seed=3,9 half_width=0.5"),
    ],
)
def test_seeds_that_bring_an_interval_to_a_half_width(values, seeds, wanted, first, words) -> None:
    found = seed_words(pd.Series(values, index=list(seeds)), wanted, first)
    assert [word.removeprefix("hydra.sweeper.") for word in found] == words.split()


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_command_keeps_the_first_seeds_that_are_recorded(launch, place, capsule_sweeps) -> None:
    """Fewer runs than first seeds are finished, and neither begins at 0: our own sweeper takes the command."""
    from capsule_sweeps.runs.signature import columns
    from capsule_sweeps.runs.sweep import record_seeds

    cell, base = ["dataset=CIFAR10", "num_routing=1"], ["dataset=digits", "training=quick", "num_routing=2"]
    for seed in (100, 101):
        finished_run([*cell, f"seed={seed}"], 0.9, best_test=seed / 100 - 0.05)
        finished_run([*base, f"seed={seed}"], 0.9)
        finished_run([*base, "ablation=no_norm", f"seed={seed}"], 0.9 + (seed - 100) / 100)
    group = columns(compose_config([*base, "ablation=no_norm"]))["group"]
    record_seeds(place / "runs", {"half_width": 0.5, "min_seeds": 4, "resolve": None}, [group])
    record_seeds(
        place / "runs", {"half_width": 1, "min_seeds": 3, "resolve": None}, [columns(compose_config(cell))["group"]]
    )
    (one,) = commands(capsule_sweeps("results", "--published", "readme_table").out.partition("Open verdicts")[2])
    assert {"seed=100,101", "hydra.sweeper.half_width=0.5", "hydra.sweeper.min_seeds=3"} <= set(one)
    (other,) = commands(capsule_sweeps("results", "--ablation").out.partition("neither distinguishable")[2])
    assert {"seed=100,101", "hydra.sweeper.min_seeds=4"} <= set(other)
    for command, todo in ((one, 1), (other, 4)):
        plan = launch(*command[2:], "hydra.launcher.dry_run=true", base=["tracking=none"])
        assert plan.code == 0 and f"{todo} to run" in plan.out, plan.text


def test_commands_that_share_a_group_ask_for_the_same_first_seeds(place, capsule_sweeps) -> None:
    """Else the record of the first command would make the second one an error."""
    for seed in range(8):
        for words, until in (
            (["num_routing=2"], 8),
            (["num_routing=2", "ablation=squash"], 8),
            (["num_routing=2", "ablation=uniform"], 3),  # also that of num_routing=3
            (["num_routing=3"], 8),
            (["num_routing=3", "ablation=no_norm"], 8),
        ):
            if seed < until:
                finished_run(
                    ["dataset=digits", *words, f"seed={seed}"], 0.8 + (seed * (len(words[-1]) + seed)) % 7 / 100
                )
    found = commands(capsule_sweeps("results", "--ablation").out)
    assert len(found) == 4 and not any("min_seeds" in word for words in found for word in words), found


def test_an_open_ablation_has_its_command(launch, capsule_sweeps) -> None:
    base = ["dataset=digits", "training=quick", "num_routing=2"]
    for seed, (one, other) in enumerate([(0.90, 0.91), (0.92, 0.90), (0.91, 0.93)]):
        finished_run([*base, f"seed={seed}"], one)
        finished_run([*base, "ablation=no_norm", f"seed={seed}"], other)
        finished_run([*base, "ablation=squash", f"seed={seed}"], one - 0.2 + seed / 1000)
    out = capsule_sweeps("results", "--ablation").out
    (command,) = commands(out.partition("neither distinguishable from 0")[2])
    assert command[3:6] == ["dataset=digits", "num_routing=2", "training=quick"]
    assert command[6:] == [
        *("ablation=none,no_norm", "hydra.sweeper.resolve=ablation", "hydra.sweeper.half_width=0.5"),
        "hydra.sweeper.max_seeds=134",  # (2.776445 · 2.081666 / 0.5)² = 133.6, differences 1, −2 and 2
    ]
    plan = launch(*command[2:], "hydra.launcher.dry_run=true", base=["tracking=none"]).out
    assert "ablation: none → no_norm" in plan and "6 to skip, 4 to run" in plan
