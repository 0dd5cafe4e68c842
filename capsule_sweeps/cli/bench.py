"""Measure how fast a stack trains on this machine, beside its backbone alone."""

import argparse

from capsule_sweeps.cli import add_format, add_overrides, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_overrides(parser, "as for launch.py: dataset=CIFAR100 training.batch_size=16 …")
    parser.add_argument("--against", type=path, metavar="PATH", help="a checkout of the published code, also timed")
    parser.add_argument("--repeats", type=int, default=7, help="timed steps of each variant (7)")
    add_format(parser)


def run(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.profiling.bench import bench

    print(bench(arguments.overrides, arguments.against, arguments.repeats, arguments.format))
