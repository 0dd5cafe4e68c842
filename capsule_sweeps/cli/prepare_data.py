"""Download, verify and cache data sets."""

import argparse

from capsule_sweeps.cli import add_overrides
from capsule_sweeps.display import counted, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_overrides(parser, "dataset=CIFAR10,CIFAR100 data_dir=…")


def run(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.config.compose import compose_config
    from capsule_sweeps.config.points import sweep_points
    from capsule_sweeps.data.load import load_data

    wrong = []
    for point in sweep_points(arguments.overrides):
        try:
            config = compose_config(point)
            data = load_data(config.dataset, config.data_dir, "cpu")
        except ValueError as error:  # the others are prepared all the same
            wrong.append(str(error))
        else:
            train, test = counted(len(data.train), "training image"), counted(len(data.test), "test image")
            say(f"{config.dataset.name}: {train} and {test} are ready")
    if wrong:
        raise ValueError("\n".join(dict.fromkeys(wrong)))
