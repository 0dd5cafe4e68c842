"""Device and threads of a run, which can only change the last bits of its numbers."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from capsule_sweeps.runs import machine

log = logging.getLogger(__name__)


def choose_device(asked: str, before: str | None = None) -> torch.device:
    """The requested device; for `auto` that of earlier attempts (`before`), else the best one available.

    Raises ValueError if the device is not available.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked == "auto":
        asked = before if before and there.get(before) else next(name for name, present in there.items() if present)
    device = torch.device(asked)
    if not there[device.type] or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        present = ", ".join(name for name, present in there.items() if present)
        raise ValueError(f"device={asked} is not available (found: {present}); use device=auto")
    return device


def forget_peak(device: torch.device) -> None:
    """From now on `peak_memory` is that since now."""
    machine.forget_peak()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> float | None:
    """MB: on a CUDA GPU the most memory that torch reserved, CUDA graphs included; elsewhere the most that this process
    has had."""
    return round(torch.cuda.max_memory_reserved(device) / 1e6, 1) if device.type == "cuda" else machine.peak_memory()


def pin_execution(wanted: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """The execution of a run (device, threads, …): that of its first attempt, for bitwise equal results."""
    if before is None:
        return wanted
    known = [key for key in wanted.keys() & before.keys() if key != "device" and type(before[key]) is type(wanted[key])]
    kept = {**wanted, **{key: before[key] for key in known}}
    if kept["device"] != before.get("device"):
        log.warning(
            "the run began on %s and resumes on %s, so its last bits may differ", before.get("device"), kept["device"]
        )
    return kept


@contextmanager
def num_threads(number: int) -> Iterator[None]:
    """Context in which torch uses this number of threads; afterwards the previous number is restored."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
