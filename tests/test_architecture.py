"""The house: imports run as the table says, outside services have one owner, and listing and planning need no torch."""

import ast
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "capsule_sweeps"
FILES = sorted(PACKAGE.rglob("*.py"))
EVERY = [
    "cli",
    "launchers",
    "evaluation",
    "profiling",
    "training",
    "tracking",
    "results",
    "networks",
    "routing",
    "data",
    "runs",
    "config",
]

# room → the rooms that it may import; everybody may use console and display. Lazy: inside of functions only.
MAY_IMPORT = {
    "cli": EVERY,
    "launchers": ["training", "tracking", "networks", "results", "data", "runs", "config"],
    "evaluation": ["training", "networks", "routing", "results", "data", "runs", "config"],
    "profiling": ["training", "networks", "routing", "results", "data", "runs", "config"],
    "training": ["tracking", "networks", "data", "runs", "config"],
    "tracking": ["runs", "config"],
    "results": ["runs", "config"],
    "networks": ["routing", "config"],
    "runs": ["config"],
    "config": [],
    "routing": [],
    "data": [],
    "console": [],
    "display": [],
}
LAZILY = {"config": ["data", "networks"], "results": ["networks"]}
TORCH_FREE = ("runs", "results", "config", "cli")


@cache
def imports(path: Path, everywhere: bool = True) -> set[str]:
    """Dotted names of what a file imports: wherever in it, or only what is executed when it is imported."""
    tree, found = ast.parse(path.read_text()), set()
    nodes = list(ast.walk(tree)) if everywhere else [node for top in tree.body for node in at_import(top)]
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def at_import(node: ast.AST) -> list[ast.AST]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef) or (
        isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node)
    ):
        return []
    return [node, *(below for child in ast.iter_child_nodes(node) for below in at_import(child))]


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("capsule_sweeps.")} & MAY_IMPORT.keys()


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path): path for path in FILES}


def reached(start: str) -> set[str]:
    found, todo = set(), [start]
    while todo:
        for name in (imports(MODULES[todo.pop()]) & MODULES.keys()) - found:
            found.add(name)
            todo.append(name)
    return found


def test_imports_are_those_of_the_table() -> None:
    for path in FILES:
        own = room(path)
        if own in ("__init__", "__main__"):
            continue
        assert rooms(imports(path)) - {own, "console", "display"} <= {*MAY_IMPORT[own], *LAZILY.get(own, [])}, path
        assert rooms(imports(path, everywhere=False)) - {own, "console", "display"} <= {*MAY_IMPORT[own]}, path


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert [name for name in MODULES if name in reached(name)] == []


@pytest.mark.parametrize(
    ("service", "owners"),
    [
        ("wandb", r"tracking/wandb\w*\.py"),
        ("wandb_workspaces", r"tracking/wandb_dashboard\.py"),
        ("torchvision", r"data/sources/torchvision\.py"),
        ("submitit", r"launchers/slurm/\w+\.py"),
        ("sklearn", r"data/sources/\w+\.py"),
        ("tensorboard", r"tracking/tensorboard\.py"),
    ],
)
def test_outside_services_have_one_owner(service, owners) -> None:
    users = [p for p in FILES if any(name.split(".")[0] == service for name in imports(p))]
    assert [p for p in users if not re.fullmatch(owners, p.relative_to(PACKAGE).as_posix())] == []


@pytest.mark.parametrize(
    ("word", "room"), [(r"slurm|sbatch|squeue", "launchers/slurm"), (r"wandb", "tracking")], ids=["slurm", "wandb"]
)
def test_only_its_room_imports_a_cluster_or_a_tracker(word, room) -> None:
    """Others reach them through a Protocol, or by the class that a configuration names; cli/ has their commands."""
    for path in FILES:
        place = path.relative_to(PACKAGE).as_posix()
        if not place.startswith((room, "cli/")):
            assert not [name for name in imports(path) if re.search(word, name)], place


def test_listing_planning_and_tabulating_import_no_torch(python, place) -> None:
    drawing = "capsule_sweeps.results.figures"  # imported by the commands that draw
    light = [name for name, path in MODULES.items() if room(path) in TORCH_FREE and name != drawing]
    code = (
        "import sys, importlib\n"
        f"for name in {[*light, 'hydra_plugins.capsule_sweeps']}: importlib.import_module(name)\n"
        "import capsule_sweeps; capsule_sweeps.load_runs('runs'); capsule_sweeps.compose_config([])\n"
        "heavy = {'torch', 'torchvision', 'wandb', 'scipy', 'sklearn', 'submitit', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ended = python("-c", code, PYTHONPATH=str(ROOT))
    assert (ended.code, ended.out) == (0, "[]\n"), ended.text


def test_names_that_newer_versions_of_hydra_deprecate_are_in_one_place() -> None:
    """The suite turns warnings into errors, but on the version that it runs with only."""
    for path in [*FILES, ROOT / "launch.py"]:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        names = {node.func.attr for node in calls if isinstance(node.func, ast.Attribute)}
        keys = {word.arg for node in calls for word in node.keywords}
        assert not {"register_new_resolver", "register_resolver"} & names and "version_base" not in keys, path


def private_names(path: Path) -> set[str]:
    """What a file uses of other packages, or of their objects, under a name that begins with one underscore."""
    found = {name for name in imports(path) if name.split(".")[0] not in sys.stdlib_module_names}
    attributes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    found |= {node.attr for node in attributes if ast.unparse(node.value) not in ("self", "cls")}
    found -= {"_replace", "_asdict", "_exit", "_target_"}  # which are public
    return {name for name in found if re.search(r"(^|\.)_(?!_)", name)}


def test_private_names_of_other_packages_are_in_few_places_and_their_versions_bounded() -> None:
    """Elsewhere there is a public way; each place says why there is none. wandb's are in tracking/wandb_client.py."""
    users = {path.relative_to(PACKAGE).as_posix() for path in FILES if private_names(path)}
    of_torch = {place for place in users if place.startswith(("training/", "routing/", "profiling/", "networks/"))}
    assert users - of_torch == {"config/composer.py", "launchers/entry.py"}, "of Hydra"
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for package in ("hydra-core", "omegaconf", "torch", "wandb", "submitit"):
        assert [text for text in needed if re.match(rf"{package}[<>].*<", text)], package


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
    files = [p for folder in ("capsule_sweeps", "conf", "hydra_plugins", "tests") for p in (ROOT / folder).rglob("*")]
    assert not [path for path in files if re.search("utils?|helpers?|misc|common", path.stem)]
    for path in [*files, ROOT / "launch.py", ROOT / "pyproject.toml"]:
        if path.suffix in (".py", ".yaml", ".toml"):
            assert not re.search(r"(?<![\w.$}])/(home|root|work|Users)/", path.read_text()), path
