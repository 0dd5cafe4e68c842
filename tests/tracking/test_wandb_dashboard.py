"""A workspace and a report in W&B; every name in them is one that runs log."""

import json
import sys
from pathlib import Path

import pytest

from capsule_sweeps.config import selection_rules
from capsule_sweeps.runs.signature import columns
from capsule_sweeps.tracking.wandb_dashboard import check_names, make_workspace
from capsule_sweeps.tracking.wandb_send import METRICS, summary_keys

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def dashboard(python):
    return lambda *arguments: python("-m", "capsule_sweeps", "dashboard", *arguments, PYTHONPATH=str(ROOT))


def names(spec: object, found: set[str]) -> set[str]:
    """Every metric, summary and config name in a specification, as section:name."""
    if isinstance(spec, dict):
        if spec.get("section") in ("config", "summary"):
            found.add(f"{spec['section']}:{spec['name']}")
        for key, value in spec.items():
            if key == "metrics":
                found |= {f"metric:{name}" for name in value}
            elif key == "groupBy":
                found.add(f"config:{value}")
            names(value, found)
            names(key, found)
    elif isinstance(spec, list):
        for value in spec:
            names(value, found)
    elif isinstance(spec, str) and spec.startswith(("config:", "summary:")):
        found.add(spec)
    return found


def test_dashboard_of_a_sweep(python, tiny, runs, tiny_config, dashboard, wandb_server) -> None:
    settings = ("tracking=wandb", "num_routing=1,2", "seed=0")
    assert python(ROOT / "launch.py", "-m", *tiny, *settings).code == 0
    sweep = runs.record(runs.folders()[0])["sweep"]
    ended = dashboard("--project", "capsule_sweeps", sweep)
    assert ended.code == 0, ended.text
    assert len(ended.out.splitlines()) == 2 and ended.out.count(wandb_server.url) == 2
    assert len(wandb_server.views) == 2 and not wandb_server.unknown
    logged = set(wandb_server.rows(runs.folders()[0].name[-8:])[0])
    for view in wandb_server.views.values():
        spec = json.loads(view["spec"])
        found = names(spec, set())
        assert {"config:num_routing.value", "config:dataset.value", "summary:accuracy_last"} <= found
        for name in found:
            section, _, key = name.partition(":")
            known = columns(tiny_config()) if section == "config" else {*summary_keys(), *logged}
            assert key.removesuffix(".value") in known, name
        assert f'"{sweep}"' in view["spec"]
        kinds = {"Scatter Plot", "Run History Line Plot", "Parallel Coordinates Plot", "Bar Chart"}
        assert all(f'"{kind}"' in view["spec"] for kind in kinds)


def test_names_are_those_that_runs_log(launch, runs) -> None:
    """The constants, against a run with validation images and averaged weights."""
    assert launch("dataset.val_size=20", "training.ema=0.9").code == 0
    assert set(runs.metrics(runs.only())[0]) == set(METRICS)
    assert set(summary_keys()) <= set(json.loads((runs.only() / "summary.json").read_text()))


def test_name_that_no_run_logged(dashboard, wandb_server, tiny_config) -> None:
    check_names({"accuracy_last", *METRICS}, set(columns(tiny_config())), "accuracy_last")
    with pytest.raises(ValueError, match="accuracy_best_val"):
        check_names({"accuracy_last", *METRICS}, set(columns(tiny_config())), "accuracy_best_val")
    ended = dashboard("--project", "empty")
    assert ended.code == 1 and ended.err.count("\n") == 1 and "accuracy_last" in ended.err and "sync" in ended.err
    assert not wandb_server.views


def test_missing_package_is_one_sentence(capsule_sweeps, place, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    ended = capsule_sweeps("dashboard", "--project", "p")
    assert ended.code == 1 and "pip install wandb-workspaces" in ended.err and ended.err.count("\n") == 1


@pytest.mark.nightly
def test_refusal_is_one_sentence(python, tiny, dashboard, wandb_server, monkeypatch) -> None:
    settings = ("tracking=wandb", "training.epochs=1")
    assert python(ROOT / "launch.py", *tiny, *settings).code == 0
    monkeypatch.delattr(type(wandb_server), "gql_UpsertView2")
    ended = dashboard("--project", "capsule_sweeps")
    assert ended.code == 1 and "Error: W&B refused" in ended.err and "Traceback" not in ended.err


def test_without_a_key(capsule_sweeps, place) -> None:
    ended = capsule_sweeps("dashboard", "--project", "p")
    assert ended.code == 1 and "no API key" in ended.err


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of wandb-workspaces itself
def test_same_panels_for_every_rule() -> None:
    for rule in selection_rules.names():
        spec = make_workspace("me", "p", "sweep-1", f"accuracy_{rule}")._to_model().spec.model_dump_json(by_alias=True)
        assert f"summary:accuracy_{rule}" in names(json.loads(spec), set())
