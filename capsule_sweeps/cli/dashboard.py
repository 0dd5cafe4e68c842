"""Make a Weights & Biases workspace and a report of a sweep's runs."""

import argparse

from capsule_sweeps.cli import add_rule
from capsule_sweeps.display import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", nargs="?", help="sweep-…: only its runs; otherwise those of the whole project")
    parser.add_argument("--project", required=True, help="the W&B project")
    parser.add_argument("--entity", help="its owner (your default one)")
    add_rule(parser)


def run(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.tracking.wandb_dashboard import make_dashboard

    for name, url in make_dashboard(arguments.entity, arguments.project, arguments.sweep, arguments.rule).items():
        say(f"{name}: {url}")
