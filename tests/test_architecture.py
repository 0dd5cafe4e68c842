"""The house: imports run one way, one owner per outside service, and what only lists or plans needs no torch."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "capsule_sweeps"
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem not in ("__init__",))


def imports(path: Path) -> set[str]:
    """Dotted names of everything a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def inner(module: str) -> set[str]:
    """Modules of the package that one of them imports."""
    names = {name.split(".")[1] for name in imports(PACKAGE / f"{module}.py") if name.startswith("capsule_sweeps.")}
    return names & set(MODULES)


def reached(module: str) -> set[str]:
    found, todo = set(), [module]
    while todo:
        for name in inner(todo.pop()) - found:
            found.add(name)
            todo.append(name)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_itself_by_way_of_others(module) -> None:
    assert module not in reached(module)


@pytest.mark.parametrize(
    ("module", "needed", "forbidden"),
    [
        ("launcher", {"store", "tracking"}, {"capsules", "routing", "backbone"}),
        ("train", {"data", "store", "tracking", "model", "losses"}, {"launcher", "plan", "results"}),
        ("model", {"capsules"}, {"train", "data", "store", "launcher", "tracking", "results", "backbone", "routing"}),
        ("capsules", {"routing"}, {"model", "train", "data", "store", "launcher", "tracking", "results", "backbone"}),
        ("routing", set(), set(MODULES) - {"kernels", "compile"}),
        ("dynamic", {"routing"}, set(MODULES) - {"routing"}),
        ("em", {"routing", "kernels"}, set(MODULES) - {"routing", "kernels"}),
        ("self_routing", {"routing"}, set(MODULES) - {"routing"}),
        ("losses", set(), set(MODULES)),
        ("learning_rate", set(), set(MODULES)),
        ("average", set(), set(MODULES)),
        ("backbone", set(), set(MODULES)),
        ("results", {"store"}, {"train", "launcher", "plan", "model", "data", "tracking"}),
        ("statistics", set(), set(MODULES)),
        ("published", {"results", "statistics"}, {"train", "launcher", "plan", "data", "tracking", "figures"}),
        ("ablation", {"results", "statistics"}, {"train", "launcher", "plan", "model", "data", "tracking", "figures"}),
        ("figures", {"results"}, {"train", "launcher", "plan", "model", "data", "tracking"}),
        ("inside", {"model"}, {"train", "launcher", "plan", "tracking", "figures"}),
        ("imported", {"model", "store"}, {"train", "launcher", "plan", "data", "tracking", "results"}),
        ("evaluate", {"inside", "data"}, {"launcher", "plan", "tracking"}),
        ("export", {"inside", "routing"}, {"train", "launcher", "plan", "tracking", "results"}),
        ("store", {"config"}, {"train", "launcher", "plan", "model", "data", "tracking", "results"}),
        ("config", set(), set(MODULES) - {"class_tree"}),
        (
            "baselines",
            {"backbone"},
            {"train", "data", "store", "launcher", "tracking", "results", "capsules", "routing"},
        ),
        ("class_tree", {"decoded"}, set(MODULES) - {"decoded"}),
        ("describe", {"model"}, {"train", "launcher", "plan", "data", "tracking", "store"}),
        ("sync", {"store", "tracking"}, {"train", "launcher", "plan", "model", "data"}),
        ("tracking", {"store"}, {"train", "launcher", "plan", "model", "data", "results"}),
        ("data", {"sources"}, {"train", "launcher", "plan", "model", "results", "store"}),
    ],
)
def test_imports_run_one_way(module, needed, forbidden) -> None:
    assert needed <= inner(module)
    assert not forbidden & inner(module)


@pytest.mark.parametrize(
    ("service", "owners"),
    [
        ("wandb", {"tracking", "sync", "dashboard"}),
        ("wandb_workspaces", {"dashboard"}),
        ("torchvision", {"sources", "bench"}),
        ("submitit", {"submit", "job"}),
        ("sklearn", {"sources"}),
    ],
)
def test_outside_services_have_one_owner(service, owners) -> None:
    users = {m for m in MODULES if any(name.split(".")[0] == service for name in imports(PACKAGE / f"{m}.py"))}
    assert users <= owners


def test_listing_planning_and_tabulating_import_no_torch(python, place) -> None:
    code = (
        "import sys, capsule_sweeps, capsule_sweeps.results, capsule_sweeps.launchers.hydra, capsule_sweeps.runs.plan, "
        "capsule_sweeps.__main__, capsule_sweeps.config, capsule_sweeps.runs.run, hydra_plugins.capsule_sweeps, "
        "capsule_sweeps.results.intervals, capsule_sweeps.results.published, capsule_sweeps.results.ablation\n"
        "capsule_sweeps.load_runs('runs'); capsule_sweeps.compose_config([])\n"
        "heavy = {'torch', 'torchvision', 'wandb', 'scipy', 'sklearn', 'submitit', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ended = python("-c", code, PYTHONPATH=str(ROOT))
    assert (ended.code, ended.out) == (0, "[]\n"), ended.text


@pytest.mark.parametrize("command", ["status", "results"])
def test_commands_import_no_torch(python, place, command) -> None:
    (place / "runs").mkdir()
    ended = python("-X", "importtime", "-m", "capsule_sweeps", command, PYTHONPATH=str(ROOT))
    assert ended.code == 0
    assert re.search(r"\| +pandas$", ended.err, re.MULTILINE)
    assert not re.search(r"\| +(torch|wandb|torchvision|sklearn)$", ended.err, re.MULTILINE)


def test_public_functions() -> None:
    import capsule_sweeps

    assert {"compose_config", "build_model", "load_published_weights", "load_runs"} <= set(capsule_sweeps.__all__)
    assert all(callable(getattr(capsule_sweeps, name)) for name in capsule_sweeps.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        capsule_sweeps.nothing  # noqa: B018


def test_plugin_folder_only_hands_over() -> None:
    """Hydra looks for plugins there and imports all of it at every start."""
    (path,) = (ROOT / "hydra_plugins").glob("*.py")
    assert {name.split(".")[0] for name in imports(path)} == {"capsule_sweeps"}
    bodies = [node.body for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    assert bodies and all(len(body) == 1 and isinstance(body[0], ast.Expr) for body in bodies)


def test_no_file_is_named_utils_and_no_path_is_of_one_machine() -> None:
    files = [
        path for folder in ("capsule_sweeps", "conf", "hydra_plugins", "tests") for path in (ROOT / folder).rglob("*")
    ]
    assert not [path for path in files if re.search("utils?|helpers?|misc|common", path.stem)]
    for path in [*files, ROOT / "launch.py", ROOT / "pyproject.toml"]:
        if path.suffix in (".py", ".yaml", ".toml"):
            assert not re.search(r"(?<![\w.$}])/(home|root|work|Users)/", path.read_text()), path
