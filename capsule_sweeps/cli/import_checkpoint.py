"""Import a checkpoint of the published code as a finished run, which tables include only with imported=true."""

import argparse

from capsule_sweeps.cli import add_overrides, add_runs_dir, path
from capsule_sweeps.display import counted, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=path, help="the file, ckpt.pth")
    add_overrides(parser, "capsules.interleaved=true|false; dataset=SVHN; routing.schedule=sequential; capsules=NAME")
    add_runs_dir(parser)
    parser.add_argument("--num-routing", type=int, required=True, help="the iterations that it was trained with")


def run(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.evaluation.import_published import import_checkpoint

    made, new = import_checkpoint(arguments.file, arguments.num_routing, arguments.overrides, arguments.runs_dir)
    found = made.record().get("imported", {}).get("windows") if new else None
    if found:
        say(
            f"Its windows are those of capsules.interleaved={str(found['interleaved']).lower()}: "
            f"{found['accuracy']:.2%} on {counted(found['images'], 'test image')}, "
            f"{found['accuracy_with_the_other_windows']:.2%} with the others."
        )
    say(f"{made.folder} is {'written' if new else 'there already: nothing was done'}")
