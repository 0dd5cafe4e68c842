"""What does not iterate is one run, whatever num_routing says."""

from pathlib import Path

import pytest
import torch

from capsule_sweeps import build_model, compose_config
from capsule_sweeps.runs.signature import signature, signed_config

ROUTINGS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "routing").glob("*.yaml"))
STILL = ("routing=self_routing", "routing=sr_self_routing", "routing=uniform", "ablation=uniform")
WORDS = [*(f"routing={name}" for name in ROUTINGS), "ablation=uniform", "ablation=softmax_over_children"]


@pytest.mark.parametrize("words", WORDS)
def test_num_routing_splits_runs_only_of_what_iterates(words) -> None:
    configs = [compose_config(["dataset=digits", words, f"num_routing={number}"]) for number in (1, 3)]
    with torch.device("meta"):
        stacks = [build_model(config).capsules for config in configs]
    iterates = stacks[0].class_routing.iterates
    assert iterates == (words not in STILL)
    assert [stack.num_routing for stack in stacks] == ([1, 3] if iterates else [1, 1])
    assert len({signature(signed_config(config)) for config in configs}) == (2 if iterates else 1)
