"""An exponential moving average of a model's weights: `training.ema`."""

import copy
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """`model`, a copy of the trained model, holds the average of its weights over the steps so far.

    Step n, counted from 0, moves the average by 1 − min(decay, (1 + n) / (10 + n)), so that short runs also forget
    their initialization. The running means and variances of BatchNorm are averaged with the same factor and not
    copied: the last ones describe the last weights, while to first order the mean of an activation under the averaged
    weights is the average of its means. Integer buffers are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._decay = decay
        self._floats, self._others = _tensors(self.model)
        self._their_floats, self._their_others = _tensors(model)

    def update(self, step: int) -> None:
        """Call this after each step of the optimizer. It does not wait for the GPU."""
        decay = min(self._decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(self._floats, self._their_floats, step)
        if self._others:
            torch._foreach_copy_(self._others, self._their_others)


def _tensors(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Copies of weights and buffers: floating-point tensors, and all others."""
    every = [tensor.detach() for tensor in chain(model.parameters(), model.buffers())]
    return [t for t in every if t.is_floating_point()], [t for t in every if not t.is_floating_point()]
