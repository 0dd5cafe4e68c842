"""The learning rate of each step, `training.lr_schedule`: it follows from the step, so that resuming needs no state."""

from __future__ import annotations

import math
from typing import Any


def learning_rate(recipe: Any, step: int, num_batches: int) -> float:
    """The rate of a step (counted from 0 through all epochs) of the settings `training`, with num_batches an epoch.

    It rises linearly from 0 to `lr` in the share `warmup` of all steps. Then it falls: by the factor `lr_decay` after
    each of the milestones (`steps`), or along half a cosine to 0 at the end (`cosine`; Loshchilov and Hutter 2017,
    equation 5, one cycle). Each step has the rate of its middle: none is 0, and a run of any length has a whole cycle.
    """
    progress = (step + 0.5) / (recipe.epochs * num_batches)
    risen = min(1.0, progress / recipe.warmup) if recipe.warmup else 1.0
    if recipe.lr_schedule == "steps":
        num_decays = sum(step // num_batches >= milestone for milestone in recipe.milestones)
        return float(recipe.lr * recipe.lr_decay**num_decays * risen)
    fallen = max(0.0, progress - recipe.warmup) / (1 - recipe.warmup)
    return float(recipe.lr * risen * (1 + math.cos(math.pi * fallen)) / 2)
