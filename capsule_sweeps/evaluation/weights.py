"""A run's trained model, from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from capsule_sweeps.networks.build import build_model
from capsule_sweeps.runs.files import read_json


def load_trained(folder: Path) -> tuple[nn.Module, DictConfig]:
    """The model of a run with the weights of its last checkpoint, in evaluation mode on the CPU, and its config.

    Raises ValueError when the folder has no checkpoint, or what is in it is damaged.
    """
    return load_checkpoint(folder)[:2]


def load_checkpoint(folder: Path) -> tuple[nn.Module, DictConfig, dict[str, Any]]:
    """What `load_trained` returns, and all that is in the checkpoint, which a running process may replace meanwhile."""
    path = folder / "checkpoint.pt"
    if not path.is_file():
        raise ValueError(f"{folder} has no checkpoint.pt: choose a run that has trained for an epoch")
    try:
        config = DictConfig(OmegaConf.load(folder / "config.yaml"))
        config.training.compile, config.device = "off", "cpu"
        if config.dataset.mean is None:  # it was measured
            measured = read_json(folder / "run.json")["normalization"]
            config.dataset.mean, config.dataset.std = measured["mean"], measured["std"]
        model = build_model(config)
    except Exception as error:
        raise ValueError(f"{folder} does not tell its model ({' '.join(str(error).split())[:200]})") from error
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("ema", "model"):  # the average, too, must fit
            if key != "ema" or key in checkpoint:
                model.load_state_dict(checkpoint[key])
    except Exception as error:
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())[:200]})") from error
    return model.eval(), config, checkpoint
