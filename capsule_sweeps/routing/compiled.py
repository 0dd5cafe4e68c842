"""torch.compile without effects of earlier runs in the same process; falls back to uncompiled code on failure.

Every layout of arguments is compiled separately, for fixed shapes. torch caches compilations by code object and
silently stops compiling after a few for the same one, so each compilation uses a copy of the function with a code
object of its own. torch keeps compiled code on disk (TORCHINDUCTOR_CACHE_DIR), and later processes with the same
shapes read it.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import stat
import sys
import tempfile
import warnings
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
import torch._functorch.config
from omegaconf import DictConfig
from torch import Tensor, nn

log = logging.getLogger(__name__)

# Compiling takes about half a minute. A step of the paper's network then takes at least 25 ms less on two CPU cores, at
# least 6 ms less on an H100 or H200.
MIN_STEPS = {"cpu": 2000, "cuda": 4000}
NUM_IMAGES = {"sklearn": 1400}  # by dataset.source, if dataset.train_size is not set; others: about 50,000


def decide(config: DictConfig, device: torch.device) -> bool:
    """Whether to compile on this device: the value of `training.compile`, with auto resolved.

    auto: on if the run has at least MIN_STEPS steps, on a CUDA GPU or, if a C++ compiler is available, on a CPU.
    """
    recipe = config.training
    if recipe.compile != "auto":
        return bool(recipe.compile == "on")
    num_steps = recipe.epochs * math.ceil(images_of_an_epoch(config) / recipe.batch_size)
    enough = num_steps >= MIN_STEPS.get(device.type, math.inf)
    return enough and (device.type == "cuda" or has_cpp_compiler())


def images_of_an_epoch(config: DictConfig) -> int:
    """About how many images an epoch has, before any of them is read."""
    return int(config.dataset.train_size or NUM_IMAGES.get(config.dataset.source, 50_000))


def has_cpp_compiler() -> bool:
    """Whether the compiler that torch calls is available: $CXX or, if CXX is not set, g++ (clang++ on macOS)."""
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++").split()[:1]
    return bool(name and shutil.which(name[0]))


class CompileError(Exception):
    """A function could not be compiled; the reason is in the log. Callers fall back to uncompiled code."""


class Compiled:
    """A function of tensors, compiled separately for every layout (shapes, strides, types, device) of its arguments.

    `options` are torch.compile's. A call raises CompileError for a layout that cannot be compiled.
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any] | None = None) -> None:
        self.function = function
        self.options = options
        self.made: dict[Hashable, Callable[..., Any] | None] = {}

    def __call__(self, *tensors: Tensor) -> Any:
        layout = _layout(tensors)
        if layout in self.made:
            made = self.made[layout]
            if made is None:
                raise CompileError
            return made(*tensors)
        self.made[layout] = None
        use_own_cache()
        try:
            if tensors[0].device.type == "cpu" and not has_cpp_compiler():
                raise RuntimeError("no C++ compiler was found: install g++, or set CXX to the path of one")
            with warnings.catch_warnings(), _backward_too():
                warnings.simplefilter("ignore")  # the compiler's, about itself
                made = torch.compile(
                    _own_code(self.function), fullgraph=True, dynamic=False, options=self._options(tensors[0].device)
                )
                results = made(*tensors)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # dynamo, inductor, the C++ compiler and triton each have errors of their own
            warn_once(error)
            raise CompileError from error
        self.made[layout] = made
        return results

    def _options(self, device: torch.device) -> dict[str, Any]:
        """Options of torch.compile, without choosing reduction blocks by timing: results would depend on the load.

        On a GPU forward and backward passes are replayed as CUDA graphs. The host then launches the hundreds of small
        kernels of a step at once, which otherwise takes it longer than the GPU needs to run them.
        """
        import torch._inductor.config  # slow: takes a second

        known = hasattr(torch._inductor.config, "deterministic")  # newer versions of torch only
        options = {**(self.options or {}), **({"deterministic": True} if known else {})}
        return {**options, "triton.cudagraphs": True} if device.type == "cuda" else options


def use_own_cache() -> None:
    """Set TORCHINDUCTOR_CACHE_DIR, unless the user did, to a folder in the user's cache that only the user can write.

    torch executes the code in this folder, and the name of its default in the temporary folder is predictable, so that
    other users could create it first. If there is no private cache, a new folder serves this process and its children.
    """
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "capsule_sweeps" / "torchinductor"
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = cache.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise PermissionError(f"{cache} is a link, or others own it or may write there")
    except OSError as error:
        own = tempfile.mkdtemp(prefix="torchinductor-")
        log.warning("training.compile: %s; compiled code is kept in %s", error, own)
        cache = Path(own)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)


def _layout(tensors: tuple[Tensor, ...]) -> Hashable:
    """Everything that compiled code depends on."""
    device = tensors[0].device.type
    return (
        *((t.shape, t.stride(), t.dtype, t.device, t.requires_grad) for t in tensors),
        torch.get_num_threads(),
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        torch.are_deterministic_algorithms_enabled(),
    )


def _own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    assert isinstance(function, FunctionType)
    code = function.__code__.replace()
    return FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)


def _backward_too() -> AbstractContextManager[None]:
    """Compile backward passes together with their forward passes: later, a failure could no longer fall back."""
    option = "force_non_lazy_backward_lowering"  # newer versions of torch only
    config = torch._functorch.config
    return config.patch(option, True) if hasattr(config, option) else nullcontext()


def warn_once(error: Exception) -> None:
    if not _warned:
        _warned.append(True)
        lines = [line.strip() for line in str(error).splitlines() if not line.startswith("backend=")]
        reason = next(filter(None, lines), type(error).__name__)
        log.warning(
            "training.compile: the model could not be compiled and runs uncompiled, more slowly (%s)", reason[:200]
        )


_warned: list[bool] = []


class CompiledForward:
    """The forward method of a model, compiled for training. Evaluation, a small part of a run, stays uncompiled, and so
    does on a GPU the smaller last batch of an epoch: compiling it would take longer than it does.

    It is set as the attribute `forward` of a model and changes neither parameters nor the state dict.
    """

    def __init__(self, model: nn.Module, batch_size: int) -> None:
        self.model = model
        self.batch_size = batch_size
        forward = type(model).forward

        def train_forward(images: Tensor) -> Tensor:
            logits: Tensor = forward(model, images)
            return logits

        self.eager = train_forward
        self.compiled = Compiled(train_forward)

    def __call__(self, images: Tensor, intermediates: bool = False) -> Any:
        if intermediates:
            return type(self.model).forward(self.model, images, intermediates)
        whole = len(images) == self.batch_size or not images.is_cuda
        if self.model.training and torch.is_grad_enabled() and whole:
            try:
                logits: Tensor = self.compiled(images)
                return logits
            except CompileError:
                pass
        return self.eager(images)

    def __reduce__(self) -> tuple[type[CompiledForward], tuple[nn.Module, int]]:
        return CompiledForward, (self.model, self.batch_size)  # a copy of the model compiles again
