"""The file that the published code writes, read without running anything in it."""

import hashlib
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from capsule_sweeps.training.checkpoint import load_tensors

NUMPY: list[Any] = [  # what a NumPy number needs to be read by torch.load(weights_only=True): data, no code
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(np.dtype, *(type(np.dtype(name)) for name in ("float64", "float32", "int64"))),
]
NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)  # int64: BatchNorm counts batches


class Published(NamedTuple):
    """A file of the published code: weights without `module.`, accuracy (a fraction) and how exactly it is given, its
    epoch counted from 1; None for what the file of a fork does not tell."""

    weights: dict[str, Tensor]
    accuracy: float | None
    precision: float
    epoch: int | None
    sha256: str


def read_published(path: Path) -> Published:
    """The content of a file of the published code; nothing in it is executed. Raises ValueError for any other file."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file; pass the ckpt.pth that the published code wrote")
    data = path.read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about kinds of tensors that are refused below
            with torch.serialization.safe_globals(NUMPY):
                content = load_tensors(io.BytesIO(data), "cpu")
    except Exception as error:
        reason = f" ({error})" if type(error) is ValueError else ""  # our own words; torch's are long
        raise ValueError(
            f"{path} cannot be read safely: it is damaged, or holds other things than tensors and numbers{reason}"
        ) from error
    if isinstance(content, Mapping) and content and all(isinstance(value, Tensor) for value in content.values()):
        content = {"net": content}  # of a fork that saved the weights alone
    if not isinstance(content, Mapping) or "net" not in content:
        raise ValueError(f"{path} has no 'net'; the file of the published code has 'net', 'acc' and 'epoch'")
    net, acc, epoch = content["net"], plain(content.get("acc")), plain(content.get("epoch"))
    if not (isinstance(net, Mapping) and net and all(isinstance(tensor, Tensor) for tensor in net.values())):
        raise ValueError(f"{path}: 'net' must hold the weights, a tensor under each name")
    for key, tensor in net.items():
        if (wrong := peculiar(tensor)) is not None:
            raise ValueError(f"{path}: {str(key)[:80]!r} of 'net' is {wrong}, not a plain tensor of numbers")
    if acc is not None and (isinstance(acc, bool) or not isinstance(acc, int | float) or not 0 <= acc <= 100):
        raise ValueError(f"{path}: 'acc'={str(acc)[:80]} must be an accuracy in percent")
    if epoch is not None and (isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0):
        raise ValueError(f"{path}: 'epoch'={str(epoch)[:80]} must be a whole number of at least 0")
    weights = {str(key).removeprefix("module."): tensor for key, tensor in net.items()}
    if len(weights) < len(net):
        raise ValueError(f"{path}: 'net' has a name with 'module.' and without: which is meant is not known")
    known = acc if acc is not None and acc > 1 else None  # below 1 it is unknown whether it is a fraction or in percent
    decimals = len(repr(known).partition(".")[2]) if known is not None else 0
    return Published(
        weights,
        None if known is None else known / 100,
        0.5 * 10.0 ** -(decimals + 2),
        None if epoch is None else epoch + 1,
        hashlib.sha256(data).hexdigest(),
    )


def plain(value: Any) -> Any:
    """A number out of a tensor or a NumPy number; everything else as it is."""
    if isinstance(value, Tensor | np.generic) and (not isinstance(value, Tensor) or value.numel() == 1):
        return value.item()
    return value


def peculiar(tensor: Tensor) -> str | None:
    """Why a tensor cannot be a weight of the published code, whose memory has the size of its shape."""
    if tensor.layout != torch.strided or tensor.dtype not in NUMBERS:
        return f"sparse, or of {tensor.dtype}"
    if tensor.device.type != "cpu" or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        return "without numbers for all of its shape"
    return None if tensor.isfinite().all() else "not finite"
