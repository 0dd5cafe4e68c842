"""Run folders without training: what a finished or broken-off run would have left, to test tables and notebooks."""

import copy
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from omegaconf import DictConfig

from capsule_sweeps import compose_config
from capsule_sweeps.runs.files import write_json
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signature import columns, signed_config


def composed(overrides: Sequence[str]) -> DictConfig:
    """As compose_config, which takes tenths of a second, but once per process for all seeds."""
    seeds = [text for text in overrides if re.fullmatch(r"seed=\d+", text)]
    config = copy.deepcopy(_compose(tuple(text for text in overrides if text not in seeds)))
    if seeds:
        config.seed = int(seeds[-1].partition("=")[2])
    return config


@cache
def _compose(overrides: tuple[str, ...]) -> DictConfig:
    return compose_config(list(overrides))


def make_run(config: DictConfig, state: str = "finished") -> Run:
    """A run of this configuration that was claimed and left in this state."""
    run = Run(Path(config.runs_dir) / columns(config)["run"])
    record = {**columns(config), "signed_config": signed_config(config), "state": state, "attempts": []}
    found = {"accuracy_last": 0.5, "accuracy_best_test": 0.5, "accuracy_best_val": None} if state == "finished" else {}
    with run.claim():
        if found:
            write_json(run.folder / "summary.json", {**columns(config), **found})
        write_json(run.folder / "run.json", {**record, **found})
    return run


def finished_run(
    overrides: Sequence[str],
    last: float,
    best_test: float | None = None,
    state: str = "finished",
    best_val: float | None = None,
) -> Path:
    """The folder of one run below runs_dir: accuracies (fractions) for `last` and, if they differ, other rules."""
    config = composed(overrides)
    described = columns(config)
    folder = Path(config.runs_dir) / described["run"]
    folder.mkdir(parents=True)
    found = {"accuracy_last": last, "accuracy_best_test": last if best_test is None else best_test}
    summary = {**described, **found, "accuracy_best_val": best_val, "seconds": 3600.0, "parameters": 10}
    record = {**summary, "state": state, "signed_config": signed_config(config), "execution": {"device": "cuda"}}
    write_json(folder / "run.json", record)
    if state == "finished":
        write_json(folder / "summary.json", summary)
    return folder
