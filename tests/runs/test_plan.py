"""The plan: what is asked for, what is there, what is to be done; and its short cut past Hydra's composition."""

import ast
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from capsule_sweeps.config.check import check
from capsule_sweeps.config.compose import CONF_DIR, PACKAGE, compose_config, compose_points
from capsule_sweeps.config.versions import BASE
from capsule_sweeps.runs import plan as planning
from capsule_sweeps.runs import provenance
from capsule_sweeps.runs.files import read_json, write_json
from capsule_sweeps.runs.plan import Policy, make_plan
from capsule_sweeps.runs.record import read_record
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signature import columns, signed_config

ROOT = Path(__file__).resolve().parents[2]
STATES = ("new", "running", "interrupted", "failed", "finished", "stale")


def rows(out: str) -> list[tuple[str, str, str, str]]:
    """(run, differs by, state, action) of each row of a plan."""
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]
    return [tuple(row) for row in cells if len(row) == 4 and row[0]]


def stamps(folder: str = "runs") -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in Path(folder).rglob("*")}


class Invent:
    """Run folders as a run in some state leaves them, without training."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack

    def __call__(self, config: DictConfig, state: str, **changes: Any) -> Run:
        run = Run(Path(config.runs_dir) / columns(config)["run"])
        if state == "new":
            return run
        code = provenance.code(signed_config(config))
        record = {**columns(config), "signed_config": signed_config(config), "attempts": [{"code": code}]}
        if state == "running":
            self.stack.enter_context(run.claim())
        else:
            with run.claim():
                pass
        if state == "stale":
            record["attempts"] = [{"code": {**code, "routing.passes": "00000000"}}]
        if state in ("finished", "stale"):
            summary = {"accuracy_last": 0.5, "accuracy_best_test": 0.6, "accuracy_best_val": None}
            record |= {**summary, "epochs_done": config.training.epochs, "seconds": 10.0}
            write_json(run.folder / "summary.json", {**columns(config), **summary})
        record["state"] = "finished" if state == "stale" else state
        write_json(run.folder / "run.json", {**record, **changes})
        return run


@pytest.fixture
def invent() -> Iterator[Invent]:
    with ExitStack() as stack:
        yield Invent(stack)


# ── state and policy → action ────────────────────────────────────────────────────────────────────────────────────────

ALWAYS = {"new": "run", "running": "leave", "interrupted": "resume", "finished": "skip", "stale": "leave"}
RETRIED = {"all": {"oom", "nan", "other"}, "oom": {"oom"}, "nan": {"nan"}, "none": set()}


@pytest.mark.parametrize("retry", RETRIED)
def test_every_state_has_its_action(tiny_config, invent, retry) -> None:
    for seed, state in enumerate(STATES):
        config = tiny_config(f"seed={seed}")
        for failure in ("oom", "nan", "other") if state == "failed" else (None,):
            invent(config, state, failure=failure)
            (point,) = make_plan([config], [[]], Policy(retry=retry))
            expected = ALWAYS.get(state) or ("retry" if failure in RETRIED[retry] else "leave")
            assert (point.state, point.action) == (state, expected)
            assert point.to_do == (expected in ("run", "resume", "retry"))


def test_force_runs_everything_again_except_running_runs(tiny_config, invent) -> None:
    for seed, state in enumerate(STATES):
        config = tiny_config(f"seed={seed}")
        invent(config, state)
        (point,) = make_plan([config], [[]], Policy(force=True, retry="none"))
        assert point.action == {"new": "run", "running": "leave"}.get(state, "rerun")


def test_planning_writes_nothing(tiny_config, invent, place) -> None:
    configs = [tiny_config(f"seed={seed}") for seed in range(len(STATES))]
    for config, state in zip(configs, STATES, strict=True):
        invent(config, state)
    before = stamps()
    for policy in (Policy(), Policy(force=True), Policy(retry="none")):
        planned = make_plan(configs, [[]] * len(configs), policy)
        planning.show_plan(planned, len(configs), 1)
    after = stamps()
    assert {path for path in after if after[path] != before.get(path)} <= {
        path for path in after if "attempt-" in path
    }, "only the heartbeat of the running one may continue"


@pytest.mark.parametrize("state", ["failed", "finished", "interrupted"])
def test_force_keeps_the_old_folder_aside(launch, trained, runs, state) -> None:
    overrides = {"failed": ["training.lr=1e30"]}.get(state, [])
    trained(*overrides, signal_at=(signal.SIGTERM, 7) if state == "interrupted" else None)
    folder = runs.only()
    old = {path.name: path.read_bytes() for path in folder.iterdir()}
    ended = launch(*overrides, "hydra.launcher.force=true")
    assert rows(ended.out)[0][2:] == (state, "rerun")
    assert runs.only() == folder and len(runs.record(folder)["attempts"]) == 1
    (aside,) = Path("runs/.superseded").iterdir()
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == old
    launch(*overrides, "hydra.launcher.force=true")
    assert len(list(Path("runs/.superseded").iterdir())) == 2
    if state == "finished":
        assert [row["train_loss"] for row in runs.metrics(folder)] == [row["train_loss"] for row in runs.metrics(aside)]


@pytest.mark.parametrize("many", [[], ["-m", "seed=0,1"]])
def test_dry_run_stops_after_the_plan(launch, place, many) -> None:
    ended = launch(*many, "hydra.launcher.dry_run=true")
    assert ended.code == 0 and not ended.err
    assert [row[2:] for row in rows(ended.out)] == [("new", "run")] * (2 if many else 1)
    assert "Results" not in ended.out
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("parallel", ["1", "2"])
def test_dry_run_needs_no_torch(python, tiny, parallel) -> None:
    policy = ["hydra.launcher.dry_run=true", f"hydra.launcher.parallel={parallel}"]
    ended = python("-X", "importtime", ROOT / "launch.py", "-m", *tiny, *policy)
    assert ended.code == 0
    assert not re.search(r"\| +torch$", ended.err, re.MULTILINE)


@pytest.mark.parametrize(
    ("override", "words", "flags"),
    [
        ("hydra.launcher.retry=maybe", ["retry", "maybe", "all", "oom", "nan", "none"], ["-m"]),
        ("hydra.launcher.retry=null", ["retry", "null"], []),
        ("hydra.launcher.dry_run=3.5", ["dry_run", "3.5", "true"], []),
        ("hydra.launcher.force=maybe", ["force", "maybe", "true"], ["-m"]),
        ("hydra.launcher.parallel=0", ["parallel", "0", "auto"], ["-m"]),
        ("hydra.launcher.parallel=1.5", ["parallel", "1.5", "auto"], ["-m"]),
        ("hydra.launcher.parallel=many", ["parallel", "many", "auto"], ["-m"]),
        ("hydra.launcher.parallel=true", ["parallel", "auto"], ["-m"]),
        ("hydra.launcher.runs_per_gpu=0", ["runs_per_gpu", "0"], ["-m"]),
        ("hydra.launcher.runs_per_gpu=two", ["runs_per_gpu", "two"], ["-m"]),
        ("+hydra.launcher.unknown=1", ["unknown"], ["-m"]),
    ],
)
def test_bad_policy_is_one_sentence(launch, place, override, words, flags) -> None:
    ended = launch(*flags, override)
    assert ended.code == 1 and "Traceback" not in ended.text
    for word in words:
        assert word in ended.err, ended.err
    assert list(place.iterdir()) == []


# ── code that changed ────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def other_code(monkeypatch: pytest.MonkeyPatch, module: str = "routing.passes") -> Iterator[None]:
    original = provenance.fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "fingerprint", lambda name: "ffffffff" if name == module else original(name))
        yield


def test_finished_with_other_code_is_stale_and_says_what_to_do(launch, trained, runs, monkeypatch) -> None:
    assert trained().code == 0
    before = stamps()
    with other_code(monkeypatch):
        ended = launch()
        assert ended.code == 0 and rows(ended.out)[0][2:] == ("stale", "leave")
        said = ended.out.partition("Results")[0]
        assert "1 stale" in said and "routing.passes" in said and "hydra.launcher.force=true" in said
        assert stamps() == before, "never discarded silently"
    assert rows(launch().out)[0][2:] == ("finished", "skip")
    with other_code(monkeypatch):
        assert rows(launch("hydra.launcher.force=true").out)[0][2:] == ("stale", "rerun")
    with other_code(monkeypatch):
        assert rows(launch().out)[0][2:] == ("finished", "skip")


def test_stale_numbers_are_marked_where_they_stand(launch, trained, capsule_sweeps, monkeypatch) -> None:
    """The plan promises it: never reused silently."""
    assert trained().code == 0
    with other_code(monkeypatch):
        assert "stale" in launch().out.partition("Results")[2].lower()
        assert "stale" in capsule_sweeps("results").out.lower()
        assert "stale" in capsule_sweeps("status").out


def test_run_that_resumes_with_other_code_ends_as_stale(launch, trained, runs, monkeypatch) -> None:
    trained(signal_at=(signal.SIGTERM, 3))
    with other_code(monkeypatch, "networks.layers"):
        ended = launch("hydra.launcher.dry_run=true")
        assert rows(ended.out)[0][2:] == ("interrupted", "resume")
        assert "other code" in ended.out and "networks.layers" in ended.out and "force=true" in ended.out
        assert launch().code == 0
        assert rows(launch().out)[0][2:] == ("stale", "leave")
    assert rows(launch().out)[0][2] == "stale", "a part of it was made with the other"


def forget() -> None:
    provenance.fingerprint.cache_clear()
    provenance._imported.cache_clear()


SYNTAX = (Path(__file__).parents[1] / "golden" / "syntax.txt").read_text()


def test_a_fingerprint_is_the_same_in_every_python() -> None:
    """Measured equal with 3.11.7, 3.12.1 and 3.13.0, whose trees of this text differ."""
    assert provenance.hashed(ast.parse(SYNTAX)) == "b60cfc8f"


def test_what_other_versions_of_python_add_to_a_tree_is_not_code() -> None:
    """3.12 adds `type_params`, `kind` behind an f-string, and an empty text behind a nested format."""
    tree = ast.parse(SYNTAX)
    for node in list(ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            node.type_params = []  # type: ignore[attr-defined, unused-ignore]
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.kind = "u"
        if isinstance(node, ast.FormattedValue) and isinstance(node.format_spec, ast.JoinedStr):
            node.format_spec.values.append(ast.Constant(""))
    assert ast.dump(tree) != ast.dump(ast.parse(SYNTAX))
    assert provenance.hashed(tree) == provenance.hashed(ast.parse(SYNTAX))


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Iterator[Path]:
    """A copy of the package whose fingerprints `code` takes."""
    shutil.copytree(ROOT / "capsule_sweeps", tmp_path / "capsule_sweeps", ignore=shutil.ignore_patterns("__pycache__"))
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "ROOT", tmp_path)
        forget()
        yield tmp_path / "capsule_sweeps"
    forget()


def fingerprints(*overrides: str) -> dict[str, str]:
    forget()
    return provenance.code(signed_config(compose_config(list(overrides))))


def edit(path: Path) -> None:
    path.write_text(path.read_text() + "\n_another = 1\n")


def test_comments_docstrings_and_layout_are_not_code(tree) -> None:
    before = fingerprints()
    for name in before:
        path = provenance._path(name)
        text = re.sub(r'^( *)"""(?:.|\n)*?"""$', r'\1"""Other words."""', path.read_text(), flags=re.MULTILINE)
        lines = text.replace("\n\n", "\n\n\n").splitlines()
        path.write_text("# a comment\n" + "\n".join(lines) + "  # another\n")
        ast.parse(path.read_text())
    assert fingerprints() == before


def test_any_change_of_a_modules_code_counts_for_it_alone(tree) -> None:
    before = fingerprints()
    rooms = {name.split(".")[0]: name for name in before}
    assert set(rooms) == set(provenance.NUMBERS)
    changed = set()
    for name in rooms.values():
        edit(provenance._path(name))
        changed.add(name)
        after = fingerprints()
        assert {module for module in before if before[module] != after[module]} == changed
    for name in before.keys() - changed:
        edit(provenance._path(name))
    assert not before.items() & fingerprints().items()


# Options of conf/routing that are a class of their own; others (sr_em) are variants of one
ROUTINGS = sorted(
    path.stem
    for path in (CONF_DIR / "routing").glob("*.yaml")
    if (PACKAGE / "routing" / path.name).with_suffix(".py").is_file()
)


@pytest.mark.parametrize("used", ["inverted_attention", "em", "uniform"])
def test_only_the_code_that_a_run_uses_makes_it_stale(tree, used) -> None:
    """Editing em.py leaves a run with inverted attention alone; editing passes.py, which both execute, does not."""
    flat = signed_config(compose_config([f"routing={used}", "num_routing=2"]))
    record = {"signed_config": flat, "attempts": [{"code": provenance.code(flat)}]}
    for name in set(ROUTINGS) - {used}:
        edit(tree / "routing" / f"{name}.py")
    forget()
    assert provenance.changed_code(record) == []
    changed = set()
    for name in (used, "passes"):
        edit(tree / "routing" / f"{name}.py")
        forget()
        changed.add(f"routing.{name}")
        assert set(provenance.changed_code(record)) == changed


def test_own_routing_outside_of_the_package_makes_its_runs_stale(tmp_path, monkeypatch) -> None:
    """Also with what it imports of its package. Where the package is not available or not trusted, no run is stale."""
    folder = tmp_path / "mine_outside"
    folder.mkdir()
    texts = {
        "__init__": "raise AssertionError('planning imports nothing')",
        "topk": "from . import helper\ntry:\n  from ..beyond import x\nexcept ImportError: ...\nclass K: ...",
    }
    texts |= {"helper": "import capsule_sweeps.routing.em\nfrom .other import x", "other": "x = 1", "unused": ""}
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
    alone = "try: from .topk import K\nexcept ImportError: from mine_outside.topk import K"
    (tmp_path / "mine_alone.py").write_text(alone)  # a module without a package
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CAPSULE_SWEEPS_TRUST_PACKAGES", "mine_outside,mine_alone")
    flat = {"model.routing._target_": "mine_outside.topk.K"}
    forget()
    now = provenance.code(flat)
    record = {"signed_config": flat, "attempts": [{"code": now}]}
    others = {f"mine_outside.{name}" for name in ("topk", "helper", "other")}
    assert {name for name in now if name.split(".")[0] not in provenance.NUMBERS} == {"mine_outside", *others}
    assert set(provenance.code({"a._target_": "mine_alone.K"})) == {*now, "mine_alone"}
    (folder / "plain" / "inner").mkdir(parents=True)  # folders without __init__.py
    (folder / "plain" / "inner" / "one.py").write_text("from ...other import x")
    forget()
    assert others - set(provenance.code({"a._target_": "mine_outside.plain.inner.one.K"})) == {
        "mine_outside.topk",
        "mine_outside.helper",
    }
    assert "routing.em" in now and provenance.changed_code(record) == []
    for number, text in enumerate(("x = 2", "x =", "def x(")):  # also while it is being edited
        (folder / "other.py").write_text(text)
        forget()
        assert provenance.changed_code(record) == ["mine_outside.other"], number
    monkeypatch.delenv("CAPSULE_SWEEPS_TRUST_PACKAGES")
    forget()
    assert provenance.changed_code(record) == []


def test_a_run_of_the_other_models_uses_no_routing(tree) -> None:
    assert "networks.baselines" in fingerprints("model=cnn")
    assert not any(name.startswith("routing.inverted") for name in fingerprints("model=cnn"))
    assert "networks.capsnet" not in fingerprints("model=cnn")


def test_every_attempt_counts_and_so_does_one_without_fingerprints() -> None:
    flat = signed_config(compose_config([]))
    now = provenance.code(flat)
    assert provenance.changed_code({"signed_config": flat, "attempts": [{"code": now}]}) == []
    other = {**now, "routing.passes": "00000000"}
    attempts = [{"code": now}, {"code": other}]
    assert provenance.changed_code({"signed_config": flat, "attempts": attempts}) == ["routing.passes"]
    assert provenance.changed_code({"signed_config": flat, "attempts": [{}]}) == sorted(now)


def test_a_module_that_a_run_did_not_have_yet_is_no_change() -> None:
    flat = signed_config(compose_config([]))
    before = {name: text for name, text in provenance.code(flat).items() if name != "routing.kernels"}
    assert provenance.changed_code({"signed_config": flat, "attempts": [{"code": before}]}) == []


def test_code_that_computes_the_same_numbers_makes_no_run_stale(monkeypatch) -> None:
    flat = signed_config(compose_config([]))
    now = provenance.code(flat)
    record = {"signed_config": flat, "attempts": [{"code": {**now, "routing.passes": "0ld0ld00"}}]}

    def changed(*equal: str) -> list[str]:
        known = provenance.KnownCode({"routing.passes": list(equal)}, {})
        monkeypatch.setattr(provenance, "_known_code", lambda: known)
        return provenance.changed_code(record)

    assert changed("0ld0ld00", now["routing.passes"]) == []
    assert changed(now["routing.passes"]) == changed("0ld0ld00", "of other code") == ["routing.passes"]


def test_it_is_recorded_what_each_edit_of_code_means_for_finished_runs() -> None:
    """If this fails: python tests/golden/known_code.py same|changed MODULE; see CONTRIBUTING.md."""
    done = subprocess.run([sys.executable, ROOT / "tests/golden/known_code.py"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == [], done.stderr


def test_a_run_of_the_flat_layout_is_stale_when_the_code_changed_and_not_by_the_move(monkeypatch) -> None:
    """Fingerprints under the old names are compared with those of the last flat commit, and what became of each module
    with the code of today."""
    record = read_record(next((ROOT / "tests" / "golden" / "flat" / "finished").iterdir()))
    now = provenance.code(record["signed_config"])
    equal, moved = provenance._known_code()

    def changed(**other: Any) -> list[str]:
        known = provenance.KnownCode(equal, moved)._replace(**other)
        monkeypatch.setattr(provenance, "_known_code", lambda: known)
        return provenance.changed_code(record)

    assert changed() == []
    for old, (_, became) in moved.items():
        used = sorted(became.keys() & now.keys())
        before = changed(before_rooms={**moved, old: (["00000000"], became)})
        assert before == used, "the run was made before the last flat commit"
        for name in used:
            assert changed(equal={**equal, name: [now[name]]}) == ([] if became[name] == now[name] else [name])
    unused = {old for old, (_, became) in moved.items() if not became.keys() & now.keys()}
    assert {"em", "dynamic", "baselines", "self_routing"} <= unused


# ── one run for one signature, estimate, labels ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("setting", [{"force": "no"}, {"dry_run": "maybe"}])
def test_settings_of_launchers_without_a_schema_are_true_or_false(setting) -> None:
    with pytest.raises(ValueError, match="must be true or false"):
        Policy(**setting)


def test_points_that_the_model_cannot_tell_apart_are_one_run(launch, runs) -> None:
    ended = launch("-m", "num_routing=1,2,3", "model.num_routing=2", "hydra.launcher.dry_run=true")
    assert len(rows(ended.out)) == 1 and "3 points" in ended.out and "one run" in ended.out


def test_no_estimate_without_like_runs(launch, tiny_config, invent) -> None:
    invent(tiny_config("backbone.channels=5"), "finished", seconds=100.0)
    assert "no estimate yet" in launch("hydra.launcher.dry_run=true").out


@pytest.mark.parametrize("parallel", [1, 2])
def test_estimate_from_like_runs(tiny_config, invent, capsys, monkeypatch, parallel) -> None:
    for seed, seconds in enumerate((7200.0, 3600.0, 720000.0)):  # an hour an epoch is the median
        invent(tiny_config(f"seed={seed}", "training.lr=0.3"), "finished", epochs_done=2, seconds=seconds)
    half = tiny_config("seed=8", "training.epochs=8")
    invent(half, "interrupted", epochs_done=2, seconds=7200.0)
    unlike = tiny_config("backbone.channels=5")
    configs = [tiny_config("training.epochs=10"), half, unlike]
    plan = make_plan(configs, [[]] * 3, Policy())
    assert [point.seconds for point in plan] == [10 * 3600, 6 * 3600, None]
    planning.show_plan(plan, 3, parallel)
    out = capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        patch.setattr(planning.console(), "_width", 80)
        planning.show_plan(plan, 3, parallel)
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert len(lines) == 3 and all(f"…{point.signature}" in line for point, line in zip(plan, lines, strict=True))
    assert f"about {16 // parallel}.0 h and 1 without an estimate yet" in out
    (again,) = make_plan([half], [[]], Policy(force=True))
    assert again.seconds == 8 * 3600


def test_estimate_from_other_routings_of_the_same_stack_in_a_unit_that_fits(tiny_config, invent, capsys) -> None:
    invent(tiny_config("num_routing=2", "dataset.crop_padding=1"), "finished", epochs_done=2, seconds=1.5)
    for epochs, words in ((1, "about 0.75 s."), (80, "about 60 s."), (960, "about 12 min."), (14400, "about 3.0 h.")):
        plan = make_plan([tiny_config(f"training.epochs={epochs}", "training.batch_size=4")], [[]], Policy())
        planning.show_plan(plan, 1, 1)
        assert words in capsys.readouterr().out
    invent(tiny_config("training.lr=0.3"), "finished", epochs_done=2, seconds=40.0)  # measured exactly
    (exact,) = make_plan([tiny_config("training.epochs=2")], [[]], Policy())
    assert exact.seconds == 40


# ── the short cut past Hydra's composition ───────────────────────────────────────────────────────────────────────────

LAYER = "{type: conv, num_capsules: 2, pose_size: 4, kernel_size: 3, stride: 4}"
POOL = [
    "dataset=digits",
    "backbone=simple",
    "capsules=digits",
    "training=quick",
    "routing=inverted_attention",
    "~tracking",
    "~training.amp",
    "~backbone.channels",
    "+dataset=digits",
    "+foo=1",
    "+training.nesterov=true",
    "++backbone.channels=3",
    "++training.epochs=7",
    "++capsules.layers=[]",
    "capsules.layers=[]",
    f"capsules.layers=[{LAYER}]",
    "capsules.layers.0.pose_size=4",
    "capsules.layers.9.pose_size=4",
    "capsules.primary={pose_size: 4}",
    "capsules.primary=null",
    "capsules.primary.pose_size=${capsules.classes.pose_size}",
    "dataset.train_size=null",
    "dataset.train_size=1.0",
    "dataset.name='a b'",
    "dataset.name='a,b=c'",
    'dataset.name="it\'s"',
    "dataset.name=\\${seed}",
    "dataset.name='${seed}'",
    "dataset.name=",
    "dataset.mean=[0.5,0.5,0.5]",
    "training.epochs=5",
    "training.epochs=${num_routing}",
    "training.epochs=${training.milestones.0}",
    "training.milestones=[3,5]",
    "training.milestones=[5,3]",
    "training.milestones.0=2",
    "training.lr=1",
    "training.lr=${training.lr_decay}",
    "training.compile='on'",
    "training.amp=true",
    "tracking.mode=online",
    "backbone.channels=8",
    "routing.schedule=sequential",
    "routing=null",
    "model.num_routing=4",
    "model.routing.schedule=sequential",
    "model.capsules.dropout=0.5",
    "num_routing=2",
    "num_routing=[1,2]",
    "seed=1.0",
    "seed='7'",
    "seed=${num_routing}",
    "selection_rule=best_val",
    "device=cuda:1",
    "runs_dir=${oc.env:HOME}",
    "debug=yes",
    "nothing=1",
    "hydra.verbose=true",
    "training={lr: 0.3, epochs: 5}",
    "dataset={name: digits, val_size: 10}",
    "capsules=folder",
    "runs_dir=a/${seed}",
]
KNOWN = {  # pairs that differ easily: order, keys that only the schema has, keys behind an interpolation
    "add after set": ["training.epochs=5", "++training.epochs=7"],
    "set after add": ["++training.epochs=7", "training.epochs=5"],
    "add after set, in a group given too": ["training=quick", "training.epochs=3", "++training.epochs=4"],
    "delete after set": ["dataset=digits", "backbone.channels=9", "~backbone.channels"],
    "delete after set, needed": ["training.epochs=9", "~training.epochs"],
    "key that only the schema has": ["tracking=none", "tracking.mode=online"],
    "key of a layer that only the schema has": ["capsules=CIFAR100", "capsules.layers.2.kernel_size=3"],
    "unknown key of an ingredient": ["backbone.depth=3"],
    "unknown key of the model": ["model.depth=3"],
    "key behind an interpolation": ["model.routing.schedule=sequential"],
    "list behind an interpolation": ["model.capsules.layers=[]"],
    "group with its member": ["training=quick", "training.epochs=3"],
    "member before its group": ["training.epochs=3", "training=quick"],
    "member of what another group brings": ["backbone.channels=8", "dataset=digits"],
    "empty list": ["capsules.layers=[]"],
    "list": ["training.milestones=[3,5]"],
    "null": ["dataset.train_size=null"],
    "interpolation": ["training.epochs=${num_routing}", "num_routing=3"],
    "values for a group after its member": ["training=quick", "training.lr=0.3", "training={lr: 0.2}"],
    "values for a group before its member": ["training={lr: 0.2}", "training.lr=0.3", "training=quick"],
    "interpolation between keys that nothing else looks at": ["training.epochs=${seed}", "seed=7", "training.lr=0.2"],
    "twice": ["num_routing=3", "num_routing=2"],
    "added group": ["dataset=digits", "+dataset=digits"],
}


@cache
def hydra() -> tuple[Any, DictConfig]:
    """A config loader and the configuration that a sweep starts from."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF_DIR), **BASE):
        loader = GlobalHydra.instance().config_loader()
        return loader, loader.load_configuration("config", overrides=[], run_mode=RunMode.MULTIRUN)


def outcome(compose: Callable[[], DictConfig]) -> str:
    """The configuration, its signed part, or that it is refused as users' mistakes are."""
    from hydra.errors import HydraException

    try:
        config = compose()
        return OmegaConf.to_yaml(config) + repr(signed_config(config))
    except (ValueError, HydraException, OmegaConfBaseException):
        return "refused"


def same(points: Sequence[Sequence[str]]) -> None:
    loader, master = hydra()
    expected = [outcome(lambda point=point: check(loader.load_sweep_config(master, list(point)))) for point in points]
    for number, (point, wanted) in enumerate(zip(points, expected, strict=True)):
        found = outcome(lambda point=point: compose_points(loader, master, [point])[0])
        if found == "refused" and any(re.match(r"(model|backbone|routing)\.", word) for word in point):
            expected[number] = wanted = found  # groups in which Hydra takes any key, and the classes refuse it later
        assert found == wanted, point
    if len(points) == 1:
        return
    right = [point for point, wanted in zip(points, expected, strict=True) if wanted != "refused"]
    together = compose_points(loader, master, right)  # no point leaves a trace in another
    assert [outcome(lambda config=config: config) for config in together] == [
        wanted for wanted in expected if wanted != "refused"
    ]


@pytest.mark.parametrize("case", KNOWN)
def test_short_cut_composes_as_hydra_does(case, place) -> None:
    same([KNOWN[case]])


@pytest.mark.slow
@pytest.mark.sample(20)
@pytest.mark.parametrize("override", POOL)
def test_short_cut_composes_each_override_as_hydra_does(override, place) -> None:
    same([[override]])


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.sampled_from(POOL), max_size=5, unique=True), min_size=1, max_size=2))
@example([["num_routing=2"], ["num_routing=3"], []])
@example([["capsules.layers=[]"], []])
def test_short_cut_composes_any_overrides_as_hydra_does(points: list[list[str]]) -> None:
    same(points)


def test_each_choice_of_groups_is_composed_once(monkeypatch) -> None:
    loader, master = hydra()
    original, calls = loader.load_sweep_config, []
    monkeypatch.setattr(loader, "load_sweep_config", lambda *args: calls.append(args) or original(*args))
    points = [
        [f"dataset={dataset}", f"num_routing={num_routing}", f"seed={seed}"]
        for dataset in ("CIFAR10", "CIFAR100")
        for num_routing in (1, 2, 3)
        for seed in range(4)
    ]
    configs = compose_points(loader, master, points)
    assert len(configs) == 24 and len({id(config) for config in configs}) == 24
    assert len({repr(signed_config(config)) for config in configs}) == 24
    assert len(calls) == 2


@pytest.mark.parametrize("many", [[], ["-m"]], ids=["run", "sweep"])
def test_hydras_resolvers_work_in_a_sweep_as_in_a_run(launch, place, many) -> None:
    folder = "${hydra:runtime.cwd}/${oc.env:HOME}"
    ended = launch(*many, f"runs_dir={folder}", "hydra.launcher.dry_run=true")
    assert ended.code == 0, ended.text


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "model.routing.schedule=sequential,concurrent"],
        ["-m", "backbone.depth=3,4"],
        ["~backbone.name"],
        ["-m", "~model.name"],
        ["~model"],
        ["training.milestones=${capsules.layers}"],
        ["-m", "training.milestones=${capsules.layers},[1]"],
    ],
)
def test_what_cannot_be_is_no_traceback(launch, place, words) -> None:
    ended = launch(*words, "capsules=digits", "hydra.launcher.dry_run=true")
    assert ended.code != 0 and "Traceback" not in ended.text
    assert list(place.iterdir()) == []


def test_record_of_the_sweep_names_its_runs(launch, runs) -> None:
    assert launch("-m", "seed=0,1").code == 0
    (path,) = Path("runs/.sweeps").glob("sweep-*.json")
    sweep = read_json(path)
    assert sweep["sweep"] == path.stem
    assert sorted(sweep["signatures"]) == sorted(folder.name[-8:] for folder in runs.folders())
    assert launch("-m", "seed=1,0").code == 0 and len(list(Path("runs/.sweeps").iterdir())) == 1
