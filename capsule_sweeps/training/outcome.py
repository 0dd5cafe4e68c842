"""How an attempt ends, and what is recorded of it."""

import logging
import math
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from capsule_sweeps.config.build import where
from capsule_sweeps.display import Formatter
from capsule_sweeps.runs.claim import Claim
from capsule_sweeps.runs.files import open_append
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signals import Interrupted


def check_finite(losses: Tensor, epoch: int, num_batches: int) -> None:
    """Raises FloatingPointError naming the first step of an epoch whose loss is not finite; losses (num_batches,)."""
    wrong = (~torch.isfinite(losses)).nonzero()
    if len(wrong):
        batch = int(wrong[0])
        step = epoch * num_batches + batch + 1
        remedy = (
            "a smaller training.lr may help" if step > 1 else "no weight has changed yet: check the model's classes"
        )
        raise FloatingPointError(
            f"the loss is {float(losses[batch])} in step {step} (epoch {epoch + 1}, batch {batch + 1}); {remedy}"
        )


def check_evaluation(row: dict[str, Any], steps: int) -> None:
    """Raises FloatingPointError when a loss after so many steps is not finite."""
    for name in row:
        if name.endswith("_loss") and not math.isfinite(row[name]):
            raise FloatingPointError(
                f"the {name} is {row[name]} after step {steps} (epoch {row['epoch']}); a smaller training.lr may help"
            )


@contextmanager
def record_outcome(run: Run, claim: Claim) -> Iterator[None]:
    """While open, records how the run ends early: interrupted, or failed with the traceback in error.txt."""
    try:
        yield
    except Interrupted as interrupted:
        claim.update(state="interrupted", ended=time.time())
        if not interrupted.signum:
            run.dequeue()  # cancelled; after a signal its queue's job resumes it
        raise
    except Exception as error:
        with suppress(OSError, ValueError):  # the folder itself may have caused the failure
            claim.write("error.txt", traceback.format_exc().encode())
            message = f"{type(error).__name__}: {error}{where(error)}"
            claim.update(state="failed", ended=time.time(), error=message, failure=failure(error))
            run.dequeue()
        raise


def failure(error: Exception) -> str:
    """The kind of a failure, as in hydra.launcher.retry: oom, nan or other."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return "oom"
    return "nan" if isinstance(error, FloatingPointError) else "other"


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """While open, log records are also written to a file."""
    root = logging.getLogger()
    with open(open_append(path), "a", encoding="utf-8", errors="backslashreplace") as file:
        handler = logging.StreamHandler(file)
        handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(message)s"))
        root.addHandler(handler)
        try:
            yield
        finally:
            root.removeHandler(handler)
