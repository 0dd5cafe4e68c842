"""python -m capsule_sweeps <command>: look at runs, and look after them."""

# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import argcomplete

from capsule_sweeps.config.selection_rules import names
from capsule_sweeps.profiling.bench import add_arguments, bench

FORMATS = ("table", "md", "csv", "json")
STATUS_COLUMNS = ["run", "state", "epochs_done", "epochs", "accuracy_last", "seconds"]  # accuracies are fractions


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m capsule_sweeps", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def add(
        function: Callable[[argparse.Namespace], None], name: str, text: str, **words: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        default = None if list(words) == ["overrides"] else Path("runs")  # overrides may say runs_dir=… themselves
        command.add_argument("--runs-dir", type=Path, default=default, help="where the run folders are (runs)")
        for key, meaning in words.items():
            command.add_argument(key, nargs={"runs": "*", "overrides": "*", "sweep": "?"}.get(key), help=meaning)
        command.set_defaults(function=function)
        return command

    about = "run names, paths, beginnings of signatures, sweeps, or filters: dataset=CIFAR10 num_routing=2 state=failed"
    command = add(status, "status", "list runs and their states", runs=about)
    command.add_argument("--watch", action="store_true", help="show it anew every two seconds, until Ctrl-C")
    command.add_argument("--format", choices=FORMATS, default="table")
    command = add(results, "results", "the table of accuracies over seeds", runs=about)
    text = "which epoch's accuracy counts (last; a published table has its own)"
    command.add_argument("--rule", choices=names(), help=text)
    command.add_argument("--format", choices=(*FORMATS, "tex"), default="table", help="tex: LaTeX with booktabs")
    kind = command.add_mutually_exclusive_group()
    kind.add_argument("--published", metavar="NAME", help="beside published numbers: readme_table")
    kind.add_argument("--ablation", action="store_true", help="differences that ablations make, seed by seed")
    command.add_argument(
        "--figure", type=Path, metavar="PATH", help="with --ablation: a forest plot, PATH.png and .pdf"
    )
    command = add(show, "show", "everything that is known of one run", run="name, path or beginning of a signature")
    command.add_argument("--format", choices=FORMATS, default="table")
    command = add(why, "why", "what makes a run what it is, and how its nearest relatives differ", run="as for show")
    command.add_argument("--format", choices=FORMATS, default="table")
    command = add(cancel, "cancel", "ask running runs to save and stop", runs=about)
    command.add_argument("--format", choices=FORMATS, default="table")
    command = add(retry, "retry", "run failed and interrupted runs again, as they were configured", runs=about)
    command.add_argument("--parallel", default="1", help="runs at once: a number, or auto (1)")
    command.add_argument("--format", choices=FORMATS, default="table", help="of the list of these runs at the end")
    text = "list what nobody needs: temporary files, superseded folders; never a finished run"
    command = add(collect, "gc", text, runs=about)
    command.add_argument("--yes", action="store_true", help="remove it")
    command.add_argument("--format", choices=FORMATS, default="table")
    text = "send to Weights & Biases what it lacks of runs, and check that it arrived"
    command = add(sync, "sync", text, runs=about)
    command.add_argument("--rebuild", action="store_true", help="also untracked runs, and anew what W&B has wrong")
    command.add_argument("--format", choices=FORMATS, default="table")
    text = "make a Weights & Biases workspace and a report of a sweep's runs"
    command = add(dashboard, "dashboard", text, sweep="sweep-…: only its runs; else those of the whole project")
    command.add_argument("--project", required=True, help="the W&B project")
    command.add_argument("--entity", help="its owner (your default one)")
    command.add_argument("--rule", choices=names(), default="last", help="which epoch's accuracy counts (last)")
    command = add(report, "report", "one self-contained HTML page about runs, to be sent", runs=about)
    command.add_argument("--out", type=Path, default=Path("report.html"), help="the file to write (report.html)")
    command.add_argument("--rule", choices=names(), default="last", help="which epoch's accuracy counts (last)")
    text = "download, verify and cache data sets"
    command = add(prepare_data, "prepare-data", text, overrides="dataset=CIFAR10,CIFAR100 data_dir=…")
    command.add_argument("--format", choices=FORMATS, default="table")
    text = (
        "make a finished run of a file that the published code wrote; tables leave it out unless asked: imported=true"
    )
    about = "where it is not CIFAR: dataset=SVHN; routing.schedule=sequential; capsules=NAME, its stack"
    command = add(import_checkpoint, "import-checkpoint", text, file="the file, ckpt.pth", overrides=about)
    command.add_argument("--num-routing", type=int, required=True, help="iterations it was trained with")
    text = "accuracy, loss, confusion, calibration of a run's weights on test images; the run is not changed"
    about = "dataset.test_shift=2 dataset.test_rotation=15 dataset.affine_test=true dataset=… data_dir=… device=…"
    command = add(evaluate, "evaluate", text, run="name, path or beginning of a signature", overrides=about)
    command.add_argument("--num-routing", metavar="1,2,3", help="routing iterations (those it was trained with)")
    command.add_argument("--format", choices=FORMATS, default="table")
    command.add_argument("--figure", type=Path, metavar="PATH", help="confusion matrices, PATH.png and .pdf")
    text = "write a run's model as a torch.export program, which runs without this package"
    command = add(export, "export", text, run="name, path or beginning of a signature")
    command.add_argument("--out", type=Path, required=True, metavar="MODEL.pt2", help="the file to write, a new one")
    about = "as for launch.py; with hydra/launcher=slurm the cluster is checked, too"
    command = add(doctor, "doctor", "check what runs need, before hours are spent", overrides=about)
    command.add_argument("--submit", action="store_true", help="send a job of one minute to see what a node sees")
    command.add_argument("--format", choices=FORMATS, default="table")
    command = commands.add_parser(
        "describe",
        help="layers, parameters, multiply-adds and memory of a model, without training",
        description="layers, grid sizes, capsules, parameters, multiply-adds and memory of a model, without training",
    )
    command.add_argument("overrides", nargs="*", help="as for launch.py: dataset=CIFAR100 model=resnet18 …")
    command.add_argument("--format", choices=FORMATS, default="table")
    command.set_defaults(function=describe)
    command = commands.add_parser(
        "bench",
        help="how fast a stack trains on this machine",
        description="how fast a stack trains here, beside its backbone alone",
    )
    add_arguments(command)
    command.set_defaults(function=lambda arguments: print(bench(arguments)))
    return parser


def main() -> None:
    parser = make_parser()
    argcomplete.autocomplete(parser)
    arguments, more = parser.parse_known_args()
    if more and (not hasattr(arguments, "overrides") or any(word.startswith("-") for word in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:  # overrides behind an option, which argparse does not expect there
        arguments.overrides = [*arguments.overrides, *more]
    try:
        arguments.function(arguments)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has seen enough
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def status(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.console import console
    from capsule_sweeps.results.render import render
    from capsule_sweeps.runs.select import select
    from capsule_sweeps.runs.where import where

    while True:
        runs = select(arguments.runs_dir, arguments.runs, imported=True)
        runs["state"] = runs.state.mask(runs.stale, "stale").mask(runs.imported, "imported")
        counts = ", ".join(f"{count} {state}" for state, count in runs.state.value_counts().items()) or "none"
        shown = runs[STATUS_COLUMNS].assign(slurm=where(arguments.runs_dir, runs))
        shown = shown if shown.slurm.any() else shown.drop(columns="slurm")
        text = render(shown, arguments.format, title=f"Runs in {arguments.runs_dir}", note=counts)
        if arguments.watch:
            console().clear()
        print(text, flush=True)
        if not arguments.watch:
            return
        time.sleep(2)


def results(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.results.render import render
    from capsule_sweeps.results.tables import accuracy_table, notes
    from capsule_sweeps.runs.select import select

    if arguments.figure and not arguments.ablation:
        raise ValueError("--figure draws the differences that ablations make: say --ablation, too")
    if arguments.published:
        return published(arguments)
    runs, rule = select(arguments.runs_dir, arguments.runs), arguments.rule or "last"
    if not arguments.ablation:
        print(render(accuracy_table(runs, rule), arguments.format, title="Results", note=notes(runs, rule)))
        return
    from capsule_sweeps.results.ablation import ablation_notes, ablation_table

    table = ablation_table(runs, rule)
    note = ablation_notes(table, runs, rule)
    print(render(table, arguments.format, title="Ablations", note=note))
    if arguments.figure:
        from capsule_sweeps.results.figures import forest_plot, save_as

        written = save_as(forest_plot(table), arguments.figure)
        print(f"wrote {written[0]} and {written[1]}", file=sys.stderr)


def published(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.results.published import NOTED, published_notes, published_table, read_cells
    from capsule_sweeps.results.render import render
    from capsule_sweeps.runs.frame import load_runs
    from capsule_sweeps.runs.select import select

    cells = read_cells(arguments.published)
    rule = next((cell.rule for cell in cells if cell.rule), None)
    if arguments.rule not in (None, rule):
        raise ValueError(f"--rule {arguments.rule}: the published table {arguments.published} counts by {rule}")
    nothing_yet = arguments.runs_dir == Path("runs") and not arguments.runs_dir.exists() and not arguments.runs
    runs = load_runs(arguments.runs_dir) if nothing_yet else select(arguments.runs_dir, arguments.runs)
    table = published_table(runs, cells, arguments.runs_dir)
    note = published_notes(cells, runs, table)
    shown = table if arguments.format in ("csv", "json") else table.drop(columns=NOTED)
    print(render(shown, arguments.format, title=f"{arguments.published}, runs in {arguments.runs_dir}", note=note))


def show(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.results.show import show as show_run
    from capsule_sweeps.runs.select import find_run

    print(show_run(find_run(arguments.runs_dir, arguments.run), arguments.format))


def why(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.results.show import why as explain
    from capsule_sweeps.runs.select import find_run

    print(explain(find_run(arguments.runs_dir, arguments.run), arguments.format))


def cancel(arguments: argparse.Namespace) -> None:
    import pandas as pd

    from capsule_sweeps.launchers.cancel import cancel as request_cancel
    from capsule_sweeps.results.render import render
    from capsule_sweeps.runs.select import select

    if not arguments.runs:
        raise ValueError("say what to cancel: a run, a sweep, or a filter such as state=running")
    sweeps = [word.removeprefix("sweep=") for word in arguments.runs if word.startswith(("sweep-", "sweep="))]
    said = request_cancel(arguments.runs_dir, select(arguments.runs_dir, arguments.runs), sweeps)
    print("\n".join(said) if arguments.format == "table" else render(pd.DataFrame({"done": said}), arguments.format))


def retry(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.launchers.retry import retry as run_again
    from capsule_sweeps.results.render import render
    from capsule_sweeps.runs.frame import runs_frame
    from capsule_sweeps.runs.run import Run
    from capsule_sweeps.runs.select import select

    parallel = int(arguments.parallel) if arguments.parallel.isdigit() else arguments.parallel
    runs = select(arguments.runs_dir, arguments.runs)
    all_finished = run_again(arguments.runs_dir, runs, parallel)
    if arguments.format != "table":
        after = runs_frame(Run(arguments.runs_dir / name) for name in runs.run)
        print(render(after[STATUS_COLUMNS], arguments.format))
    if not all_finished:
        sys.exit(1)


def collect(arguments: argparse.Namespace) -> None:
    import pandas as pd

    from capsule_sweeps.results.render import render
    from capsule_sweeps.runs import garbage
    from capsule_sweeps.runs.select import select

    names = set(select(arguments.runs_dir, arguments.runs).run)
    found = [
        (path, reason, size)
        for path, reason, size in garbage.garbage(arguments.runs_dir)
        if not arguments.runs or {path.parent.name, path.name.rpartition(".")[0]} & names
    ]
    rows = [{"path": str(path), "why": reason, "MB": size / 1e6} for path, reason, size in found]
    note = "Removed." if arguments.yes else "Nothing is removed without --yes."
    print(render(pd.DataFrame(rows, columns=["path", "why", "MB"]), arguments.format, title="Not needed", note=note))
    for path, _, _ in found if arguments.yes else []:
        garbage.remove(path)


def sync(arguments: argparse.Namespace) -> None:
    import pandas as pd

    from capsule_sweeps.results.render import render
    from capsule_sweeps.runs.run import Run
    from capsule_sweeps.runs.select import select
    from capsule_sweeps.tracking.wandb_sync import sync as send

    runs = select(arguments.runs_dir, arguments.runs)
    rows = []
    for name, arrived, text in send([Run(arguments.runs_dir / name) for name in runs.run], arguments.rebuild):
        rows.append({"run": name, "arrived": arrived, "text": text})
        if arguments.format == "table":
            print(f"{'ok     ' if arrived else 'MISSING'}  {name}: {text}", flush=True)
    if arguments.format != "table":
        print(render(pd.DataFrame(rows, columns=["run", "arrived", "text"]), arguments.format))
    elif not rows:
        print("nothing to send: no run with tracking=wandb; --rebuild takes the others too")
    if not all(row["arrived"] for row in rows):
        sys.exit(1)


def dashboard(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.tracking.wandb_dashboard import make_dashboard

    for name, url in make_dashboard(arguments.entity, arguments.project, arguments.sweep, arguments.rule).items():
        print(f"{name}: {url}")


def report(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.results.report import write_report
    from capsule_sweeps.runs.select import select

    write_report(arguments.runs_dir, select(arguments.runs_dir, arguments.runs), arguments.rule, arguments.out)
    print(f"{arguments.out} is written")


def prepare_data(arguments: argparse.Namespace) -> None:
    import pandas as pd

    from capsule_sweeps.config.compose import compose_config, sweep_points
    from capsule_sweeps.data.load import load_data
    from capsule_sweeps.results.render import render

    rows = []
    for point in sweep_points(arguments.overrides):
        config = compose_config(point)
        data = load_data(config.dataset, config.data_dir, "cpu")
        rows.append({"dataset": config.dataset.name, "train": len(data.train), "test": len(data.test)})
        if arguments.format == "table":
            print(f"{config.dataset.name}: {len(data.train):,} training and {len(data.test):,} test images are ready")
    if arguments.format != "table":
        print(render(pd.DataFrame(rows), arguments.format))


def import_checkpoint(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.evaluation.import_published import import_checkpoint as make_run

    run, new = make_run(Path(arguments.file), arguments.num_routing, arguments.overrides, arguments.runs_dir)
    print(f"{run.folder} is {'written' if new else 'there already: nothing was done'}")


def evaluate(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.evaluation.evaluate import evaluate as evaluate_run

    print(evaluate_run(arguments))


def export(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.evaluation.export import export as export_run
    from capsule_sweeps.runs.select import find_run

    print(export_run(find_run(arguments.runs_dir, arguments.run), arguments.out))


def describe(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.profiling.describe import describe as describe_model

    print(describe_model(arguments))


def doctor(arguments: argparse.Namespace) -> None:
    import pandas as pd

    from capsule_sweeps.config.compose import compose_config, launcher_settings
    from capsule_sweeps.launchers.hydra import make_launcher
    from capsule_sweeps.launchers.preflight import examine
    from capsule_sweeps.results.render import render

    overrides = [*arguments.overrides, *([f"runs_dir={arguments.runs_dir}"] if arguments.runs_dir else [])]
    config, (_, launcher) = compose_config(overrides), make_launcher(launcher_settings(overrides))
    checks = chain(examine(config), launcher.examine(config, arguments.submit))
    found = []
    for name, ok, text in checks:
        found.append({"check": name, "ok": ok, "text": text})
        if arguments.format == "table":
            print(f"{'ok  ' if ok else 'MEND'}  {name:<14} {text}", flush=True)
    if arguments.format != "table":
        print(render(pd.DataFrame(found), arguments.format))
    if not all(check["ok"] for check in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
