"""The learning rate of each step, `training.lr_schedule`: a function of the step, so that resuming needs no state."""

import math
from typing import Any


def learning_rate(recipe: Any, step: int, num_batches: int) -> float:
    """The learning rate of a step (counted from 0 through all epochs), for the config group `training`.

    It rises linearly from 0 to `lr` during the first `warmup`, a fraction of all steps. Then it falls: by the factor
    `lr_decay` after each milestone (`steps`), or as half a cosine to 0 at the end (`cosine`; Loshchilov and Hutter
    2017, equation 5, one cycle). The rate of a step is that of its middle, so it is never 0. `num_batches` is the
    number of steps per epoch.
    """
    progress = (step + 0.5) / (recipe.epochs * num_batches)
    risen = min(1.0, progress / recipe.warmup) if recipe.warmup else 1.0
    if recipe.lr_schedule == "steps":
        num_decays = sum(step // num_batches >= milestone for milestone in recipe.milestones)
        return float(recipe.lr * recipe.lr_decay**num_decays * risen)
    fallen = max(0.0, progress - recipe.warmup) / (1 - recipe.warmup)
    return float(recipe.lr * risen * (1 + math.cos(math.pi * fallen)) / 2)
