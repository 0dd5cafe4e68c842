"""A Weights & Biases workspace and a report about runs, made through wandb-workspaces (the extra `dashboard`)."""

from typing import Any

from capsule_sweeps.tracking.wandb_client import FINISH_SECONDS, end_service, obstacle, settings
from capsule_sweeps.tracking.wandb_send import METRICS, summary_keys

COLUMNS = ("dataset", "backbone", "routing", "schedule", "num_routing", "seed")  # of the config
CURVES = ("test_accuracy", "train_loss")


def make_dashboard(entity: str | None, project: str, sweep: str | None, rule: str) -> dict[str, str]:
    """Name → address of what was made: a saved workspace and a report.

    Raises ValueError when wandb-workspaces, a key or the server is missing, and when no run there has logged what the
    panels show.
    """
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError as error:
        raise ValueError("a dashboard needs wandb-workspaces: pip install wandb-workspaces") from error
    trouble = obstacle()
    if trouble:
        raise ValueError(f"the dashboard is not possible: {trouble}")
    import wandb

    accuracy = f"accuracy_{rule}"
    try:
        api = wandb.Api(timeout=30)
        owner = str(entity or getattr(settings(), "entity", None) or api.default_entity)
        runs = list(api.runs(f"{owner}/{project}", filters={"group": sweep} if sweep else {}, lazy=False))
        logged = {str(key) for run in runs for key in dict(run.summary.items())}
        check_names(logged, {key for run in runs for key in run.config}, accuracy)
        datasets = sorted({str(run.config["dataset"]) for run in runs if "dataset" in run.config})
        workspace = make_workspace(owner, project, sweep, accuracy).save()
        report = make_report(owner, project, sweep, accuracy, datasets).save()
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"W&B refused a dashboard of {'/'.join(filter(None, (entity, project)))}: {' '.join(str(error).split())}"
        ) from error
    finally:
        end_service(FINISH_SECONDS)
    return {"workspace": workspace.url, "report": report.url}


def check_names(logged: set[str], config: set[str], accuracy: str) -> None:
    """Raises ValueError if runs lack a name that the panels use, which would stay empty without an error."""
    assert {*CURVES, "epoch"} <= set(METRICS) and accuracy in summary_keys()
    missing = sorted({accuracy, "epoch", *CURVES} - logged | set(COLUMNS) - config)
    if missing:
        raise ValueError(f"no run there has logged {', '.join(missing)}; finish runs and send them with `sync` first")


def make_panels(accuracy: str) -> list[Any]:
    """Accuracy against num_routing, learning curves and parallel coordinates of the grouped runs."""
    import wandb_workspaces.reports.v2 as wr

    num_routing, found = wr.Config("num_routing"), wr.SummaryMetric(accuracy)
    columns = [wr.ParallelCoordinatesPlotColumn(wr.Config(name)) for name in COLUMNS]
    return [
        wr.ScatterPlot(
            title=f"{accuracy} against num_routing, by dataset",
            x=num_routing,
            y=found,
            running_ymean=True,
            legend_template="${config:dataset} r${config:num_routing} s${config:seed}",
            layout=wr.Layout(x=0, y=0, w=12, h=8),
        ),
        *(
            wr.LinePlot(
                title=f"{name} by epoch, mean and standard deviation of each group",
                x="epoch",
                y=[name],
                groupby_aggfunc="mean",
                groupby_rangefunc="stddev",
                layout=wr.Layout(x=12 * number, y=8, w=12, h=8),
            )
            for number, name in enumerate(CURVES)
        ),
        wr.ParallelCoordinatesPlot(
            title="What leads to which accuracy",
            columns=[*columns, wr.ParallelCoordinatesPlotColumn(found)],
            layout=wr.Layout(x=0, y=16, w=24, h=8),
        ),
        bars(accuracy, wr.Layout(x=12, y=0, w=12, h=8)),
    ]


def bars(accuracy: str, layout: Any) -> Any:
    import wandb_workspaces.reports.v2 as wr

    return wr.BarPlot(
        title=f"{accuracy} by num_routing, mean and standard deviation",
        metrics=[accuracy],
        groupby=wr.Config("num_routing"),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        orientation="v",
        layout=layout,
    )


def make_workspace(entity: str, project: str, sweep: str | None, accuracy: str) -> Any:
    """A workspace whose runs are those of the sweep, grouped by dataset and num_routing, best first."""
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    return ws.Workspace(
        entity=entity,
        project=project,
        name=sweep or "All runs",
        sections=[ws.Section(name="Routing", panels=make_panels(accuracy), is_open=True, pinned=True)],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=[expr.Metric("Group") == sweep] if sweep else [],
            groupby=[expr.Config("dataset"), expr.Config("num_routing")],
            order=[expr.Ordering(expr.Summary(accuracy), ascending=False)],
            pinned_columns=table_columns(accuracy),
        ),
    )


def make_report(entity: str, project: str, sweep: str | None, accuracy: str, datasets: list[str]) -> Any:
    """A report: all runs, then a chapter per dataset, each with its table of runs."""
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces import expr

    def runset(name: str, *filters: Any) -> Any:
        return wr.Runset(
            entity=entity,
            project=project,
            name=name,
            filters=[*([expr.Metric("Group") == sweep] if sweep else []), *filters],
            groupby=["config.dataset", "config.num_routing"],
            pinned_columns=["run:displayName", *table_columns(accuracy)],
        )

    blocks: list[Any] = [
        wr.TableOfContents(),
        wr.H1("All runs"),
        wr.P(f"Selection rule: {accuracy.removeprefix('accuracy_')}. The table of runs is below the plots."),
        wr.PanelGrid(runsets=[runset("all runs")], panels=make_panels(accuracy)),
    ]
    for dataset in datasets:
        only = runset(dataset, expr.Config("dataset") == dataset)
        panels = [bars(accuracy, wr.Layout(x=0, y=0, w=24, h=8))]
        blocks += [wr.H1(dataset), wr.PanelGrid(runsets=[only], panels=panels)]
    return wr.Report(
        entity=entity,
        project=project,
        title=f"Routing: {sweep or 'all runs'}",
        description="Made by python -m capsule_sweeps dashboard",
        blocks=blocks,
    )


def table_columns(accuracy: str) -> list[str]:
    return [*(f"config:{name}.value" for name in COLUMNS), f"summary:{accuracy}", "run:state"]
