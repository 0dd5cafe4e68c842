"""The memory that a training step needs, estimated before it is allocated, and invalid batch sizes.

Forward and backward run on shapes without data (torch's FakeTensorMode), which takes seconds for any size.
"""

import logging
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from capsule_sweeps.config.build import in_words, user_code
from capsule_sweeps.networks.build import build_model
from capsule_sweeps.runs.machine import free_memory
from capsule_sweeps.training.losses import LOSSES

log = logging.getLogger(__name__)
logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # it logs the traceback of each error
PROGRAM = 2**28  # bytes that torch itself allocates when it starts to compute
MOST_PER_IMAGE = 4000  # a step needs up to 1200 times the memory of its images; estimated only if this bound exceeds it
NEEDS_NUMBERS = ("DataDependentOutputException", "DynamicOutputShapeException", "UnsupportedFakeTensorException")
FOLLOWED = 32  # images of a step that is followed; what a larger batch needs beyond them grows with the batch


class _Peak(TorchDispatchMode):
    """While open, tracks the bytes of all tensors that are created, and their peak.

    An operator of ours counts with the peak of the tensors that it creates, not only with its results.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most, self._held = 0, 0, set[int]()
        self._within: dict[str, int] = {}  # an operator and the shapes of its arguments → bytes

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (operator := OPDEFS.get(function._schema.name)) is not None:
            shapes = tree_map(lambda arg: (arg.shape, arg.stride()) if isinstance(arg, Tensor) else arg, args)
            if (call := f"{function} {shapes}") not in self._within:
                with ThreadPoolExecutor(1) as thread:  # in this one no other operator can be followed now
                    self._within[call] = thread.submit(_bytes_within, operator._init_fn, args).result()
            self.most = max(self.most, self.now + self._within[call])
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage()._cdata) not in self._held:
                size = tensor.untyped_storage().nbytes()
                self._held.add(key)
                self.now += size
                self.most = max(self.most, self.now)
                weakref.finalize(tensor.untyped_storage(), self._free, key, size)
        return made

    def _free(self, key: int, size: int) -> None:
        self._held.discard(key)
        self.now -= size


def _bytes_within(function: Callable[..., Any], args: Any) -> int:
    """The peak of the bytes that a function of such tensors allocates."""
    given = tree_map_only(
        Tensor, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta"), args
    )
    with _Peak() as peak, torch.no_grad():
        function(*given)
    return peak.most


def step_memory(config: DictConfig, batch_size: int) -> int:
    """Peak bytes of an uncompiled training step with this many images, including weights, gradients and momentum.

    Workspace inside operations of torch is not counted. Raises ValueError for a batch that the model refuses, and
    whatever a class of the user raises that needs numbers: the images have none.
    """
    eager = config.copy()
    eager.training.compile = "off"
    more, weights = peak_of_step(lambda: build_model(eager), config, batch_size)
    return more + (4 if config.training.ema else 3) * weights  # weights, gradients and momentum, the average


def peak_of_step(make: Callable[[], nn.Module], config: DictConfig, batch_size: int) -> tuple[int, int]:
    """Bytes at the peak of an uncompiled training step besides weights, gradients and momentum, and the bytes of the
    weights, for the model that `make` makes."""
    if batch_size > FOLLOWED and "capsules" in config.model:  # other networks are followed quickly at any size
        (half, _), (whole, weights) = (peak_of_step(make, config, size) for size in (FOLLOWED // 2, FOLLOWED))
        return whole + (whole - half) * (batch_size - FOLLOWED) // (FOLLOWED - FOLLOWED // 2), weights
    dataset, recipe = config.dataset, config.training
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    with FakeTensorMode():
        model = make().train()
        torch.nn.utils.convert_conv2d_weight_memory_format(model, layout)
        images = torch.empty(batch_size, dataset.channels, dataset.image_size, dataset.image_size)
        images = images.to(memory_format=layout)
        labels = torch.zeros((batch_size, dataset.labels_per_image), dtype=torch.int64)
        peak = _Peak()
        with peak:
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.amp == "bf16"):
                logits = model(images)
            labels = labels if dataset.labels_per_image > 1 else labels[:, 0]
            LOSSES[recipe.loss](logits.float(), labels, 0.5, "mean").backward()
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return int(peak.most) + images.numel() * images.element_size() - weights, weights


def check_memory(config: DictConfig, at_once: int = 1) -> int | None:
    """The estimated bytes of a step; None if the step is too small to matter, or, with a warning, if a class
    of the user needs numbers to run.

    Raises ValueError, with a batch size that fits, if this machine lacks the memory for `at_once` such runs.
    """
    dataset, size = config.dataset, config.training.batch_size
    free = free_memory() // at_once
    if 4 * dataset.channels * dataset.image_size**2 * size * MOST_PER_IMAGE < free:
        return None
    try:
        need = step_memory(config, size) + PROGRAM
    except ValueError:
        raise
    except Exception as error:
        if type(error).__name__ not in NEEDS_NUMBERS and "tensor subclass" not in str(error):
            with user_code(config.model.name):
                raise
        log.warning("The memory of a training step is unknown (%s).", in_words(error))
        return None
    if need <= free:
        return need
    least = step_memory(config, 1) + PROGRAM
    fits = 1 + int((free - least) * (size - 1) / max(1, need - least)) if size > 1 and least <= free else 0
    many = f" for each of {at_once} runs at once" if at_once > 1 else ""
    advice = (
        f"set training.batch_size={fits} or less" if fits else "set a smaller model, dataset.image_size or parallel=1"
    )
    raise ValueError(
        f"training.batch_size={size}: a training step of {config.model.name} with images of {dataset.image_size}x"
        f"{dataset.image_size} needs about {need / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free here{many}; {advice}"
    )


def check_last_batch(config: DictConfig, num_images: int) -> None:
    """Raises ValueError if the last batch of an epoch has one image and the model cannot be trained on it.

    This concerns layers that normalize over the images of a batch, such as BatchNorm.
    """
    size = config.training.batch_size
    if 1 not in (size, num_images % size):
        return
    try:
        step_memory(config, 1)
    except ValueError as error:
        if "more than 1 value" not in str(error):  # torch's words about BatchNorm
            raise
        fits = next((fit for fit in range(max(2, size - 1), num_images + 1) if num_images % fit != 1), num_images)
        raise ValueError(
            f"training.batch_size={size} leaves a batch of one image of the {num_images} training images, on which "
            f"{config.model.name} cannot be trained ({' '.join(str(error).split())[:120]}); set "
            f"training.batch_size={fits}"
        ) from error
    except Exception:  # of a class of the user that needs numbers
        return
