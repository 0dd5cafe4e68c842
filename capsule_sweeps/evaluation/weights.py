"""A run's trained model, from its folder."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

from capsule_sweeps.config.selection_rules import RULES, find_rule
from capsule_sweeps.display import counted, listed
from capsule_sweeps.networks.build import build_model
from capsule_sweeps.runs.provenance import changed_code
from capsule_sweeps.runs.record import read_record
from capsule_sweeps.runs.run import Run
from capsule_sweeps.training.checkpoint import BEST, bytes_needed, load_tensors

WEIGHTS = ("last", "ema", "best")  # of the last epoch, their average over the steps, of the best epoch

SHOWN_AS = {"ema": "average"}  # in tables, beside last and best


def code_note(record: dict[str, Any]) -> str:
    """That the code of a run has changed since it was trained; empty if it has not."""
    if not (changed := changed_code(record)):
        return ""
    modules = listed(changed, 5)
    return f"The code has changed since this run was trained ({modules}): its weights may compute other outputs."


def load_trained(folder: Path, weights: str | None = None) -> tuple[nn.Module, DictConfig]:
    """The model of a run, in evaluation mode on the CPU, and its config.

    `weights`: one of WEIGHTS; None stands for those whose accuracy the run's selection_rule reports. Raises ValueError
    when the folder has no checkpoint or not these weights, or when its files are damaged.
    """
    return load_weights(folder, weights)[:2]


def load_weights(folder: Path, weights: str | None = None) -> tuple[nn.Module, DictConfig, dict[str, Any]]:
    """What `load_trained` returns, and what the weights are: weights, epoch, selection_rule, accuracy (a fraction)."""
    model, config, checkpoint = load_checkpoint(folder)
    record, rule = read_record(folder), find_rule(config.get("selection_rule", "last"))
    if "imported" in record:  # the published code writes its best epoch
        rule = find_rule("best_test")
    chosen, epoch, batch = weights or rule.weights, checkpoint["epoch"], checkpoint.get("batch", 0)
    best_epoch = record.get(f"epoch_{rule.name}")
    if chosen == "ema":
        if "ema" not in checkpoint:
            raise ValueError(f"{folder} has no averaged weights, which training.ema makes; use --weights last")
        model.load_state_dict(checkpoint["ema"])
    elif chosen == "best" and best_epoch != epoch:
        best = read_best(folder, model)
        if not rule.chooses or best is None or best["epoch"] != (best_epoch or best["epoch"]):
            keeping = " or ".join(known.name for known in RULES if known.chooses)
            raise ValueError(
                f"{folder} has no weights of its best epoch, which selection_rule={keeping} keeps while a run trains: "
                "use --weights last"
            )
        epoch, batch = best["epoch"], 0
    of_test = [known for known in (rule, *RULES) if known.images == "test" and known.weights == chosen]
    accuracy = record.get(of_test[0].column)
    which = {"weights": chosen, "epoch": epoch, "batch": batch, "selection_rule": rule.name, "accuracy": accuracy}
    return model, config, which


def read_best(folder: Path, model: nn.Module) -> dict[str, Any] | None:
    """The content of best.pt, whose weights the model then has; None when there is no such file."""
    path = folder / BEST
    if not path.is_file():
        return None
    try:
        best: dict[str, Any] = load_tensors(path, "cpu", bytes_needed(model))
        model.load_state_dict(best["model"])
        return {"epoch": int(best["epoch"])}
    except Exception as error:
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())[:200]})") from error


def load_checkpoint(folder: Path) -> tuple[nn.Module, DictConfig, dict[str, Any]]:
    """The model with the weights of the last epoch, its config, and all that is in checkpoint.pt, which a running
    process may replace meanwhile. Raises as `load_trained`."""
    run, path = Run(folder), folder / "checkpoint.pt"
    if not path.is_file():
        raise ValueError(f"{folder} has no checkpoint.pt: choose a run that has trained for an epoch")
    try:
        config = run.config()
        config.training.compile, config.device = "off", "cpu"
        if config.dataset.mean is None:  # it was measured
            measured = run.record()["normalization"]
            config.dataset.mean, config.dataset.std = measured["mean"], measured["std"]
        model = build_model(config)
    except Exception as error:
        raise ValueError(f"{folder} cannot rebuild its model ({' '.join(str(error).split())[:200]})") from error
    try:
        checkpoint = load_tensors(path, "cpu", bytes_needed(model))
        for key in ("ema", "model"):  # the average must fit as well
            if key != "ema" or key in checkpoint:
                model.load_state_dict(checkpoint[key])
        epochs = (config.get("training") or {}).get("epochs")  # an imported run has none
        if (folder / "summary.json").exists() and epochs is not None and checkpoint["epoch"] != epochs:
            raise ValueError(f"it is of epoch {checkpoint['epoch']} of a finished run with {counted(epochs, 'epoch')}")
    except Exception as error:
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())[:200]})") from error
    return model.eval(), config, checkpoint
