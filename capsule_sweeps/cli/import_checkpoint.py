"""Make a finished run of a file that the published code wrote; tables leave it out unless imported=true is set."""

from __future__ import annotations

import argparse

from capsule_sweeps.cli import add_overrides, add_runs_dir, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=path, help="the file, ckpt.pth")
    add_overrides(parser, "where it is not CIFAR: dataset=SVHN; routing.schedule=sequential; capsules=NAME, its stack")
    add_runs_dir(parser)
    parser.add_argument("--num-routing", type=int, required=True, help="the iterations that it was trained with")


def run(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.evaluation.import_published import import_checkpoint

    made, new = import_checkpoint(arguments.file, arguments.num_routing, arguments.overrides, arguments.runs_dir)
    print(f"{made.folder} is {'written' if new else 'there already: nothing was done'}")
