"""Check folders, device, data, model, tracking and cluster before a long run."""

import argparse
import sys
from itertools import chain

from capsule_sweeps.cli import add_format, add_overrides, add_runs_dir
from capsule_sweeps.display import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_overrides(parser, "as for launch.py; with hydra/launcher=slurm the cluster is also checked")
    add_runs_dir(parser, default=None)  # overrides may set runs_dir=… themselves
    parser.add_argument("--submit", action="store_true", help="send a job of one minute to see what a node sees")
    add_format(parser)


def run(arguments: argparse.Namespace) -> None:
    import pandas as pd

    from capsule_sweeps.config.compose import compose_config, launcher_settings
    from capsule_sweeps.launchers.hydra import make_launcher
    from capsule_sweeps.launchers.preflight import examine
    from capsule_sweeps.results.render import render
    from capsule_sweeps.runs.provenance import CHECKOUT

    config, (_, launcher) = compose_config(arguments.overrides), make_launcher(launcher_settings(arguments.overrides))
    if arguments.runs_dir:
        config.runs_dir = str(arguments.runs_dir)
    checks = examine(config, launcher.here, arguments.overrides)
    if not CHECKOUT:
        text = "of a wheel: launch.py, SLURM jobs and notebooks need a checkout, installed by `pip install -e .`"
        checks = chain([("installation", True, text)], checks)
    checks = chain(checks, launcher.examine(config, arguments.submit))
    found = []
    for name, ok, text in checks:
        found.append({"check": name, "ok": ok, "text": text})
        if arguments.format == "table":
            say(f"{'ok  ' if ok else 'FAIL'}  {name:<14} {text}")
    if arguments.format != "table":
        print(render(pd.DataFrame(found), arguments.format))
    if not all(check["ok"] for check in found):
        sys.exit(1)
