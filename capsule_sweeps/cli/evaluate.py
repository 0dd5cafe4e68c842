"""Measure a run's weights on test images: accuracy, loss, confusion, calibration; the run is not changed."""

from __future__ import annotations

import argparse

from capsule_sweeps.cli import add_format, add_overrides, add_run, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    about = "dataset.test_shift=2 dataset.test_rotation=15 dataset.affine_test=true dataset=… data_dir=… device=…"
    add_overrides(parser, about)
    parser.add_argument("--num-routing", metavar="1,2,3", help="routing iterations (those it was trained with)")
    order = "take the classes of the images for those of the run in their order, whatever their names"
    parser.add_argument("--classes-in-order", action="store_true", help=order)
    add_format(parser)
    parser.add_argument("--figure", type=path, metavar="PATH", help="confusion matrices, PATH.png and .pdf")


def run(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.evaluation.evaluate import evaluate, parse_iterations
    from capsule_sweeps.runs.select import find_run

    found = find_run(arguments.runs_dir, arguments.run)
    iterations = parse_iterations(arguments.num_routing)
    options = arguments.format, arguments.figure, arguments.classes_in_order
    print(evaluate(found, arguments.overrides, iterations, *options))
