"""Print layers, grids, capsules, parameters, multiply-adds and memory of a model, without training."""

import argparse

from capsule_sweeps.cli import add_format, add_overrides


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_overrides(parser, "as for launch.py: dataset=CIFAR100 model=resnet18 …")
    add_format(parser)


def run(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.profiling.describe import describe

    print(describe(arguments.overrides, arguments.format))
