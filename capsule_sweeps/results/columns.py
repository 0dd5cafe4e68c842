"""The settings in which runs differ are the columns of a table; constant settings are in its caption."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from capsule_sweeps.config.compose import CONF_DIR
from capsule_sweeps.config.milestones import as_epochs
from capsule_sweeps.config.yaml_files import read_options
from capsule_sweeps.runs.neutral import setting
from capsule_sweeps.runs.signature import NEUTRAL

LABELS = ("dataset", "model", "backbone", "routing", "schedule", "imported")  # columns of `load_runs`
ALWAYS = ("dataset", "num_routing")  # always columns of a table in a file
FEW = 3  # settings in which a recipe differs from an option of training that has its name in a caption
EPOCHS, MILESTONES = "training.epochs", "training.milestones"


def differences_of(here: dict[str, Any], there: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Signed key → its two values, for all keys except the seed in which two configurations differ."""
    keys = sorted((here.keys() | there.keys()) - {"seed"})
    pairs = {key: (setting(here, key), setting(there, key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def typed(value: Any) -> Any:
    """A value as it is typed on the command line: numbers stay numbers, everything else becomes text."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, list):
        return "[" + ",".join(str(typed(one)) for one in value) + "]"
    return "null" if value is None else value


def as_typed(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """A frame with the settings in some of its columns as texts, which a table does not round; None for none."""
    shown = frame.copy()
    for column in columns:
        shown[column] = pd.Series(map(setting_text, frame[column]), index=frame.index, dtype=object)
    return shown


def setting_text(value: Any) -> str | None:
    """A setting as it is typed on the command line; None for a missing one."""
    if value is None or value is pd.NA or value != value:
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(typed(value))


def differing(runs: pd.DataFrame) -> list[str]:
    """Signed keys in which runs with the same LABELS differ, except for num_routing, seed, and milestones that follow
    from the epochs in the same way for all runs of a data set. Of epochs and images also those in which runs of a data
    set differ."""
    keys: set[str] = set()
    for labels in (list(LABELS), ["dataset"]):
        for _, alike in runs.groupby(labels, dropna=False):
            configs = list(alike.drop_duplicates("group").signed_config)
            for key in {key for signed in configs for key in signed} - {"seed", "model.num_routing"}:
                counts = len(labels) > 1 or key == EPOCHS or key.startswith("dataset.")
                if counts and len({json.dumps(setting(signed, key)) for signed in configs}) > 1:
                    keys.add(key)
    if {EPOCHS, MILESTONES} <= keys and runs.groupby("dataset").signed_config.agg(_of_one_recipe).all():
        keys.remove(MILESTONES)
    return sorted(keys)


def _of_one_recipe(configs: Iterable[dict[str, Any]]) -> bool:
    """Whether the milestones of all configurations are those of one option of training, for their epochs."""
    pairs = [(signed.get(EPOCHS, 0), signed.get(MILESTONES)) for signed in configs]
    recipes = [option["training"].get("milestones") or [] for option in read_options(CONF_DIR / "training").values()]
    return any(all(as_epochs(recipe, epochs) == found for epochs, found in pairs) for recipe in recipes)


def short_names(keys: Sequence[str], taken: Sequence[str] = ()) -> dict[str, str]:
    """Key → its shortest suffix that is neither that of another key nor a column in `taken`: training.lr → lr."""
    ends = {key: [".".join(parts[-n:]) for n in range(1, len(parts) + 1)] for key in keys if (parts := key.split("."))}
    counts = Counter(end for own in ends.values() for end in own)
    free = {end for end, count in counts.items() if count == 1 and end not in taken and not end.isdigit()}
    return {key: next((end for end in own if end in free), key) for key, own in ends.items()}


def settings_frame(runs: pd.DataFrame, taken: Sequence[str] = ()) -> pd.DataFrame:
    """A column for each setting in which runs differ, on the index of `runs`: always dataset and num_routing, LABELS
    that vary, and each signed key that varies under its short name, with values as typed on the command line."""
    labels = [label for label in LABELS if label in ALWAYS or runs[label].nunique(dropna=False) > 1]
    if "routing" in labels and (runs.groupby("routing", dropna=False).schedule.nunique(dropna=False) <= 1).all():
        labels = [label for label in labels if label != "schedule"]  # it is determined by the routing
    frame = runs[[*labels, "num_routing"]].copy()
    keys = differing(runs)
    for key, name in short_names(keys, [*LABELS, "num_routing", *taken]).items():
        values = [typed(setting(signed, key, pd.NA)) for signed in runs.signed_config]
        numbers = all(isinstance(value, int | float) for value in values)
        frame[name] = pd.Series(values, index=runs.index, dtype=None if numbers else object)
    return frame


def named(row: pd.Series) -> str:
    """A row of a `settings_frame` as words, without missing values; names, such as that of the routing, without key."""
    kept = {key: value for key, value in row.items() if not pd.isna(value) and value is not False}
    bare = ("dataset", "model", "backbone", "routing", "schedule")
    return " ".join(str(value) if key in bare else f"{key}={value}" for key, value in kept.items())


def constants(runs: pd.DataFrame) -> dict[str, Any]:
    """The values of LABELS, num_routing and epochs that all runs have in common."""
    alike = [label for label in (*LABELS[:-1], "num_routing") if runs[label].nunique(dropna=False) == 1]
    found = {label: runs[label].iloc[0] for label in alike}
    epochs = {signed.get("training.epochs") for signed in runs.signed_config}
    if len(epochs) == 1:
        found["epochs"] = epochs.pop()
    return {key: value for key, value in found.items() if not pd.isna(value)}


def in_common(runs: pd.DataFrame) -> dict[str, Any]:
    """What a caption says about some runs: `constants`, and what is uncommon: the settings of their data set that are
    not those of its option, such as image_size, and training, the option that is most like the recipe of each, with the
    FEW settings in which all differ."""
    configs = list(runs.drop_duplicates("group").signed_config)
    first = configs[0] if configs else {}
    keys = sorted(NEUTRAL.keys() | first.keys())
    alike = [key for key in keys if all(setting(one, key) == setting(first, key) for one in configs)]
    same = {key: setting(first, key) for key in alike}
    usual = read_options(CONF_DIR / "dataset").get(str(same.get("dataset.name")), {}).get("dataset")
    found = _unlike(same, "dataset", usual) if usual else {}
    recipes = {name: option["training"] for name, option in read_options(CONF_DIR / "training").items()}
    trained = [signed for signed in configs if EPOCHS in signed] if recipes else []
    nearest = {min(recipes, key=lambda name: len(_unlike(one, "training", recipes[name]))) for one in trained}
    if len(nearest) == 1:
        name = nearest.pop()
        unlike = _unlike(same, "training", recipes[name])
        found |= {"training": name, **unlike} if len(unlike) <= FEW else {}
    return {**constants(runs), **found}


def _unlike(same: dict[str, Any], group: str, option: dict[str, Any]) -> dict[str, Any]:
    """The settings, without epochs, that differ from those of an option in conf/<group>, by the end of their key."""
    found = {}
    for key in (key for key in same if key.startswith(f"{group}.") and key != EPOCHS):
        usual = option.get(key.removeprefix(f"{group}."), NEUTRAL.get(key))
        if key == MILESTONES:
            usual = as_epochs(usual or [], same[EPOCHS]) if EPOCHS in same else same[key]
        measured = isinstance(same[key], list) and not isinstance(usual, list)  # mean and std of the images
        if usual != same[key] and not measured and not str(usual).startswith("${"):
            found[key.rpartition(".")[2]] = typed(same[key])
    return found


def with_constants(table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """A table for programs with a column in front for each of the `constants` of some runs that it does not have."""
    missing = {key: value for key, value in constants(runs).items() if key not in table}
    return pd.concat([pd.DataFrame(missing, index=table.index), table], axis=1) if missing and len(table) else table
