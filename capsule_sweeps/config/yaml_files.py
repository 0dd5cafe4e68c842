"""The YAML files of a configuration: bounds on what they hold, and values that YAML 1.1 takes for something else."""

import logging
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

log = logging.getLogger(__name__)

MAX_BYTES = 256_000
MAX_VALUES = 100_000  # aliases written out
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
NAMES = {  # keys whose values are text
    *("name", "project", "entity", "group", "partition", "account", "qos", "constraint", "time"),
    *("dataset", "backbone", "capsules", "routing", "model", "training", "tracking", "ablation", "experiment"),
}


@cache
def read_options(folder: Path) -> dict[str, dict[str, Any]]:
    """Option → what its file in a folder such as conf/routing sets, as {"routing": …, "training": …}: the settings of
    its group with those of the options that it starts from, and its changes to other groups, not resolved.

    A file that is not an option is left out, with one warning that names it.
    """
    group, files = folder.name, {}
    for path in sorted(filter(Path.is_file, folder.glob("*.yaml"))):
        try:
            files[path.stem] = _option(group, yaml.safe_load(path.read_bytes()))
        except Exception as error:  # YAML itself raises errors of many types for values such as dates
            why = " ".join(str(getattr(error, "strerror", None) or error).split())
            log.warning("%s is not a readable option and is left out (%s): fix or remove it.", path, why)

    def settings(name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
        bases = [base for base in files[name]["defaults"] if isinstance(base, str) and base in files]
        parts = [settings(base, (*above, name)) for base in bases if base not in (*above, name)]
        return {key: value for part in (*parts, files[name][group]) for key, value in part.items()}

    return {name: {**content, group: settings(name)} for name, content in files.items()}


def _option(group: str, content: Any) -> dict[str, Any]:
    """The content of an option's file by group, and its list of defaults. Raises ValueError if it has other types."""
    if not isinstance(content, dict):
        raise ValueError("it has no keys")
    defaults, rest = content.get("defaults") or [], {key: content[key] for key in content if key != "defaults"}
    rest = rest if group in rest else {group: rest}  # a file that begins with `# @package _global_` names its group
    if not isinstance(defaults, list):
        raise ValueError("its defaults are not a list")
    if not isinstance(rest[group], dict):
        raise ValueError(f"its {group} has no keys")
    return {**{key: value for key, value in rest.items() if isinstance(value, dict)}, "defaults": defaults}


def check_files(folders: Sequence[Path]) -> None:
    """Raises ValueError for a file that is too large, or becomes so when its aliases are written out."""
    for path in sorted(path for folder in folders for path in folder.rglob("*.yaml") if path.is_file()):
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path} has more than {MAX_BYTES:,} bytes: it is not a configuration; move it away")
        text = path.read_text(errors="replace")
        if "&" in text and "*" in text:
            try:
                values = _num_values(yaml.compose(text, LOADER), {})
            except yaml.YAMLError:
                continue  # Hydra says where, if it reads the file
            except RecursionError:
                values = MAX_VALUES + 1
            if values > MAX_VALUES:
                raise ValueError(f"{path} has more than {MAX_VALUES:,} values when its aliases (*) are written out")


def _num_values(node: Any, known: dict[int, int]) -> int:
    """The size of a YAML node, with each alias counted as the node it refers to."""
    if id(node) not in known:
        known[id(node)] = MAX_VALUES + 1  # of a node that contains itself
        children = node.value if isinstance(node, yaml.SequenceNode | yaml.MappingNode) else []
        flat = [item for child in children for item in (child if isinstance(child, tuple) else (child,))]
        known[id(node)] = 1 + sum(_num_values(child, known) for child in flat)
    return known[id(node)]


def check_spelling(runtime: DictConfig) -> None:
    """Raises ValueError for a value in a chosen file that YAML reads differently than it looks.

    `runtime`: hydra.runtime of a composed configuration. 12:30:00 is a number in base 60, 010 is 8, the name `on` is
    true.
    """
    folders = [Path(source.path) for source in runtime.config_sources if source.schema == "file"]
    chosen = ["config", *(f"{group}/{option}" for group, option in runtime.choices.items() if isinstance(option, str))]
    seen: set[str] = set()
    while chosen:
        name = chosen.pop()
        path = next((path for folder in folders if (path := folder / f"{name}.yaml").is_file()), None)
        if name in seen or path is None:
            continue
        seen.add(name)
        try:
            node = yaml.compose(path.read_text(), LOADER)
        except yaml.YAMLError:
            continue
        for key, scalar in _scalars(node):
            if key == "defaults":  # other options of the same group
                chosen.append(f"{name.rpartition('/')[0]}/{scalar.value}")
            elif value := _surprise(key, scalar):
                raise ValueError(
                    f"{path}, line {scalar.start_mark.line + 1}: {key}: {scalar.value} is read as {value}; "
                    f'write {key}: "{scalar.value}"'
                )


def _scalars(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(last part of the key, plain scalar) of all values in a YAML node."""
    if isinstance(node, yaml.MappingNode):
        for name, child in node.value:
            yield from _scalars(child, str(name.value).rpartition(".")[2])
    elif isinstance(node, yaml.SequenceNode):
        for child in node.value:
            yield from _scalars(child, key)
    elif isinstance(node, yaml.ScalarNode) and not node.style:
        yield key, node


def _surprise(key: str, scalar: Any) -> str:
    """How YAML reads a value that looks like something else; empty if it is read as it looks."""
    kind, text = scalar.tag.rpartition(":")[2], scalar.value
    if kind not in ("int", "float", "bool") or key == "compile":
        return ""
    value = yaml.SafeLoader("").construct_object(scalar)
    if (kind != "bool" and ":" in text) or (kind == "int" and re.match(r"[-+]?0[0-7_]+$", text)):
        return f"the number {value}"
    return str(value).lower() if key in NAMES and str(value) != text else ""
