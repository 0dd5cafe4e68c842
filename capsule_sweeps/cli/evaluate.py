"""Evaluate the weights of runs on test images, also shifted, attacked or corrupted ones; runs are not changed.

One run under one condition is shown with its classes and calibration, several runs or conditions as a table.
"""

import argparse
from collections.abc import Callable
from os import sep
from typing import Any

from capsule_sweeps.cli import add_format, add_runs, file
from capsule_sweeps.display import say


def _list(kind: type) -> Callable[[str], list[Any]]:
    def read(text: str) -> list[Any]:
        return [kind(word) for word in text.split(",")]

    read.__name__ = kind.__name__  # in argparse's message for an invalid value
    return read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runs(parser, "routing=em,dynamic num_routing=2")
    parser.epilog = (
        "Words that begin with dataset, data_dir or device are overrides, where several values are conditions: "
        "dataset.test_shift=0,2,4 dataset.test_rotation=15 dataset.affine_test=true dataset=… "
    )
    parser.add_argument("--num-routing", metavar="1,2,3", help="routing iterations (those it was trained with)")
    about = (
        "the last ones, their average, or the best epoch's (of one run: the last ones, and their average if it has one)"
    )
    parser.add_argument("--weights", choices=("last", "ema", "best"), help=about)
    order = "match the classes of the images with those of the run by position, not by name"
    parser.add_argument("--classes-in-order", action="store_true", help=order)
    about = "adversarial images: fgsm, pgd or both, beside the clean ones"
    parser.add_argument("--attack", type=_list(str), default=[], metavar="NAMES", help=about)
    about = "largest change of a pixel by an attack, black 0 and white 1 (0.1)"
    parser.add_argument("--epsilon", type=_list(float), default=[], metavar="0.1,0.2", help=about)
    about = "corrupted images of CIFAR-10-C from DATA_DIR/CIFAR-10-C: names, or all"
    parser.add_argument("--corruption", type=_list(str), default=[], metavar="NAMES", help=about)
    about = "severities of the corruptions (1 to 5)"
    parser.add_argument("--severity", type=_list(int), default=[], metavar="1,3,5", help=about)
    parser.add_argument("--confusion", action="store_true", help="also the confusion matrix")
    add_format(parser)
    about = "PATH.png and .pdf: confusion matrices of one run, or curves over the condition that has several numbers"
    parser.add_argument("--figure", type=file, metavar="PATH", help=about)


def run(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.evaluation import many
    from capsule_sweeps.evaluation.evaluate import TAKEN, evaluate, parse_iterations
    from capsule_sweeps.runs.frame import runs_frame
    from capsule_sweeps.runs.run import Run
    from capsule_sweeps.runs.select import find_run, select

    is_override = [word.lstrip("+~").partition("=")[0].split(".")[0] in TAKEN for word in arguments.runs]
    overrides = [word for word, own in zip(arguments.runs, is_override, strict=True) if own]
    words = [word for word, own in zip(arguments.runs, is_override, strict=True) if not own]
    if not words:
        raise ValueError("evaluate needs runs: a name, the beginning of a signature, a sweep, a filter, or all")
    iterations = parse_iterations(arguments.num_routing)
    harder = arguments.attack, arguments.epsilon, arguments.corruption, arguments.severity
    asked = many.conditions(overrides, *harder)
    runs_dir = arguments.runs_dir
    if len(words) == 1 and sep in words[0]:
        found = find_run(runs_dir, words[0])
        runs_dir, runs = found.folder.parent, runs_frame([found])
    else:
        runs = select(runs_dir, words)
    if len(runs) == len(asked) == 1 and asked[0].attack is None:
        options = arguments.format, arguments.figure, arguments.classes_in_order, arguments.confusion, arguments.weights
        print(evaluate(Run(runs_dir / runs.run[0]), overrides, iterations, *options))
        return
    if arguments.confusion:
        raise ValueError(
            "--confusion shows one run under one condition: name one run, and give each override one value"
        )
    trained = runs[runs.epochs_done.fillna(0) > 0].reset_index(drop=True)
    if trained.empty:
        raise ValueError("none of these runs has trained for an epoch: choose others")
    frame = many.evaluate_many(trained, runs_dir, asked, iterations, arguments.classes_in_order, arguments.weights)
    common = many.trained_alike(trained, frame)
    print(many.show_many(frame, arguments.format, many.notes_on(runs, trained), common))
    if arguments.figure:
        from capsule_sweeps.evaluation.figures import accuracy_curves
        from capsule_sweeps.results.figures import save_as

        over = many.abscissa(frame)
        written = save_as(accuracy_curves(frame, over, many.curve_labels(frame, over)), arguments.figure)
        if arguments.format == "table":
            say(f"Wrote {written[0]} and {written[1]}.")
