"""Differences between groups of runs that differ in one key: `results --against KEY=VALUE`; also used for ablations.

The baseline of a group has KEY=VALUE and equals the group in all other keys. The name of a config group (routing,
model, backbone, dataset, capsules) stands for all signed keys of that group. If no group is equal in all other keys,
the baseline may also differ in training.*, because an option may set its own recipe; the table marks such rows.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import pandas as pd

from capsule_sweeps.display import counted, listed
from capsule_sweeps.results.columns import setting, settings_frame, short_names, typed
from capsule_sweeps.results.intervals import by_seed, compare, holm
from capsule_sweeps.results.stein import first_of
from capsule_sweeps.results.tables import finished_runs
from capsule_sweeps.runs import filters
from capsule_sweeps.runs.signature import without_neutral

SHOWN = 5  # rows or keys named in a note
NUMBERS = ["n", "mean", "difference", "half_width", "first_seeds", "p_value", "p_holm", "seeds_needed", "paired"]
NUMBERS += ["not_learned"]
CHOICES = {"routing": ("model.routing.",), "model": ("model.",), "backbone": ("model.backbone.",)}
CHOICES |= {"capsules": ("model.capsules.",), "dataset": ("dataset.",)}


class Pair(NamedTuple):
    """Group of the base, group that is compared with it, their values of the key, and in which settings of the recipe
    they also differ."""

    base: str
    group: str
    change: str
    of_base: str
    recipe: str = ""


def against_table(
    runs: pd.DataFrame, against: str, rule: str, find: Callable[[pd.DataFrame], Iterable[Pair]] | None = None
) -> pd.DataFrame:
    """One row per baseline and per group that differs from a baseline only in the key of `against`.

    Columns: the settings in which baselines differ; base (the same in words); the key (such as num_routing) with the
    value of the row's runs; parameters, where they differ between rows; recipe: the settings training.* in which a
    group also differs from its base, if any does; n (pairs of seeds, or the runs of the smaller group), mean of the
    row's runs (%), difference to the base (percentage points), half_width of its 95 % interval, p_value, p_holm (Holm's
    correction over all rows), seeds_needed (see `intervals.compare`), paired, not_learned (how many runs of a row did
    not learn, if any did not), rule; also first_seeds, the n0 of the interval, if a procedure chose the number of seeds
    of some groups. `find`, given a run of each group, returns other pairs than those of the key. Raises ValueError if
    no run has the key or the value.
    """
    finished = compared_runs(runs, rule)
    accuracies = {str(group): by_seed(own, rule) for group, own in finished.groupby("group")}
    first = one_of_each(finished)
    begun = {str(group): first_of(own) for group, own in finished.groupby("group")}
    sizes = finished.groupby("group").parameters.max()
    unlearned = finished.groupby("group").not_learned.count()
    found = list(find(first) if find else _pairs(first, against, runs))
    key, rows = column_of(against), []
    bases = {pair.base: pair.of_base for pair in found}
    names, frame = base_names(first.loc[list(bases)], against)
    settings = list(frame.columns)
    compared = defaultdict(list)
    for pair in found:
        compared[pair.base].append(pair)
    for base, name in zip(bases, names, strict=True):
        own = accuracies[base]
        of = {**frame.loc[base], "base": name}
        row = {**of, key: bases[base], "n": len(own), "mean": own.mean(), "difference": 0.0}
        rows.append({**row, "parameters": sizes[base], "not_learned": unlearned[base]})
        for pair in compared[base]:
            seen = compare(accuracies[pair.group], own, begun[pair.group], begun[base])
            row = {**of, key: pair.change + ("*" if pair.recipe else ""), "n": seen.n}
            row |= {"mean": accuracies[pair.group].mean(), "difference": seen.difference, "half_width": seen.half_width}
            row |= {"first_seeds": seen.first_seeds, "parameters": sizes[pair.group]}
            row |= {"recipe": pair.recipe or None, "not_learned": unlearned[pair.group]}
            rows.append({**row, "p_value": seen.p_value, "seeds_needed": seen.seeds_needed, "paired": seen.paired})
    table = pd.DataFrame(rows, columns=[*settings, "base", key, "parameters", "recipe", *NUMBERS]).assign(rule=rule)
    table = table.astype(dict.fromkeys(("n", "seeds_needed", "first_seeds", "parameters"), "Int64"))
    table = table if table.parameters.nunique() > 1 else table.drop(columns="parameters")
    table = table if table.recipe.notna().any() else table.drop(columns="recipe")
    table = table if table.not_learned.any() else table.drop(columns="not_learned")
    table = table if table.first_seeds.notna().any() else table.drop(columns="first_seeds")
    numbers = ["mean", "difference", "half_width", "p_value", "p_holm"]
    table[numbers] = table[numbers].astype(float)
    table["p_holm"] = holm(table.p_value)
    return table.sort_values(["base", "difference"], kind="stable", ignore_index=True)


def uncompared(runs: pd.DataFrame, against: str, rule: str) -> tuple[list[str], list[str]]:
    """Names of the finished groups that are in no row of `against_table`: those that no base equals in all other keys,
    and bases that no other group equals in all other keys; some groups have finished."""
    first = one_of_each(compared_runs(runs, rule))
    compared = {group for pair in _pairs(first, against, runs) for group in (pair.base, pair.group)}
    key, _, value = against.partition("=")
    is_base = filters.fit(first, f"{_plain(key)}={value}")
    names = zip(base_names(first, "")[0], first.index, is_base, strict=True)
    alone = [(name, base) for name, group, base in names if group not in compared]
    return [name for name, base in alone if not base], [name for name, base in alone if base]


def compared_runs(runs: pd.DataFrame, rule: str) -> pd.DataFrame:
    """The finished runs that enter a comparison."""
    return finished_runs(runs, rule).dropna(subset=["group", "seed"]).drop_duplicates(["group", "seed"])


def one_of_each(finished: pd.DataFrame) -> pd.DataFrame:
    """A run of each group, which is its index."""
    return finished.drop_duplicates("group").set_index("group", drop=False)


def column_of(against: str) -> str:
    """The name of the key's column: its last word, or `routing` for routing.name."""
    return against.partition("=")[0].removesuffix(".name").rpartition(".")[2]


def _plain(key: str) -> str:
    """The name of a choice without .name: routing for model.routing.name."""
    return key.removesuffix(".name").removeprefix("model.") if key.endswith(".name") else key


def _pairs(first: pd.DataFrame, against: str, runs: pd.DataFrame) -> Iterator[Pair]:
    """Baseline and group; `first`: a run of each finished group; `runs`: all runs."""
    key = against.partition("=")[0]
    if not against.partition("=")[2]:
        raise ValueError(f"--against {against} is invalid; use KEY=VALUE of the baseline, such as num_routing=1")
    if first.empty:
        return
    key = _plain(key)
    against = f"{key}={against.partition('=')[2]}"
    if key == "seed":
        raise ValueError(
            f"--against {against}: a group has runs of several seeds; use another key, such as num_routing=1"
        )
    signed = filters.signed_key(first, key)
    free = CHOICES.get(key) or ((signed,) if signed else ())
    if not free:
        if filters.signed_key(runs, key):
            raise ValueError(f"--against {against}: {_unfinished(runs, key)}")
        if key not in first.columns:
            raise ValueError(f"--against {against}: {filters.unknown(first, key)}")
        raise ValueError(
            f"--against {against}: {key} is not a key of the configuration; use one, such as num_routing=1"
        )
    is_base = filters.fit(first, against)
    if not is_base.any():
        raise ValueError(f"--against {filters.none_fits(first, against, [against], 'finished group')}")
    found = first[key] if key in first.columns else filters.values(first, signed) if signed else ""
    label = pd.Series(found, index=first.index, dtype=object).map(filters.as_typed)
    text = against.partition("=")[2]
    if len(filters.parsed(key, text)) > 1 or label[is_base].nunique() > 1:
        one = label[is_base].iloc[0] or text.partition(",")[0]
        raise ValueError(f"--against {against} has several values; set the one of the baseline, such as {key}={one}")
    named = label[is_base].iloc[0] != ""
    label = _distinct(label, first, free)
    bases, groups = first[is_base], first[~is_base]
    done: set[tuple[str, str]] = set()  # base, settings of a group that was compared with it
    for keys in (free, (*free, "training.")) if key in CHOICES else (free,):
        found, equal = [], defaultdict(list)  # all but `keys` of a base → bases
        for base, one in bases.signed_config.items():
            equal[rest(one, keys)].append(str(base))
        for group, one in groups.signed_config.items():
            own, alike = _free(one, free), equal.get(rest(one, keys), [])
            alike = alike if keys == free or len(alike) == 1 else []  # with several recipes the baseline is ambiguous
            for base in (base for base in alike if (base, own) not in done):
                recipe = "" if keys == free else _recipe(one, bases.signed_config[base])
                found.append(Pair(base, str(group), label[group], label[base] if named else text, recipe))
        done |= {(pair.base, _free(groups.signed_config[pair.group], free)) for pair in found}
        yield from found


def _unfinished(runs: pd.DataFrame, key: str) -> str:
    """A sentence about a key that only runs without a result have."""
    signed = filters.signed_key(runs, key)
    having = sum(value == value for value in filters.values(runs, str(signed)))
    return (
        f"no finished run has the key {key}, only {counted(having, 'run')} without a result; `status` says what became "
        f"of these"
    )


def _recipe(own: dict[str, Any], base: dict[str, Any]) -> str:
    """The settings training.* in which a run differs from one of its base, with both values."""
    keys = sorted(key for key in {*own, *base} if key.startswith("training."))
    values = {key: [filters.as_typed(setting(signed, key, None)) for signed in (own, base)] for key in keys}
    return listed([f"{key}={one} (base: {other})" for key, (one, other) in values.items() if one != other], SHOWN)


def _distinct(label: pd.Series, first: pd.DataFrame, free: tuple[str, ...]) -> pd.Series:
    """Labels of groups, with the settings in `free` that tell groups with the same label apart: em density=sum.

    These are the routing, the backbone and num_routing; where they are not enough, all settings that differ.
    """
    signed = first.signed_config
    keys = sorted({key for one in signed for key in one if _within(key, free)})
    values = {key: signed.map(lambda one, key=key: setting(one, key, pd.NA)) for key in keys}
    names = [column for column in ("routing", "backbone") if f"model.{column}.".startswith(free)]
    values |= {column: first[column].astype(object).where(first[column].notna(), pd.NA) for column in names}
    classes = [key for key in keys if key.endswith("_target_")]
    first_words = [*names, *(key for key in keys if key.endswith(".num_routing"))]
    for chosen in (first_words, [key for key in keys if key not in (*first_words, *classes)], classes):
        texts = {
            key: values[key].map(lambda one: "" if one is pd.NA or one != one else str(typed(one))) for key in chosen
        }
        alike = [label.index[label == text] for text in label.unique()]
        differing = [[key for key in chosen if texts[key][groups].nunique() > 1] for groups in alike]
        short = short_names(list(dict.fromkeys(key for own in differing for key in own)))
        words = label.copy()
        for groups, own in zip(alike, differing, strict=True):
            for key in own:
                head = "" if key in names else f"{short[key]}="
                words[groups] += texts[key][groups].map(lambda text, head=head: text and f" {head}{text}")
        label = words.str.strip()
    return label


def rest(signed: dict[str, Any], free: tuple[str, ...] = ()) -> str:
    """A signed configuration as text, without the seed and the keys in `free` (a prefix if it ends in a dot)."""
    return _json({key: value for key, value in signed.items() if key != "seed" and not _within(key, free)})


def _free(signed: dict[str, Any], free: tuple[str, ...]) -> str:
    """The keys in `free` of a signed configuration as text."""
    return _json({key: value for key, value in signed.items() if _within(key, free)})


def _within(key: str, free: tuple[str, ...]) -> bool:
    return key in free or key.startswith(tuple(part for part in free if part.endswith(".")))


def _json(signed: dict[str, Any]) -> str:
    return json.dumps({k: value for k, value in without_neutral(signed).items() if value is not None}, sort_keys=True)


def base_names(first: pd.DataFrame, against: str) -> tuple[list[str], pd.DataFrame]:
    """Names of bases, given a run of each: dataset, num_routing or model, and the settings in which they differ; and
    the same as columns."""
    frame = settings_frame(first).drop(columns=[column_of(against)], errors="ignore")
    names = []
    for group in first.index:
        row = frame.loc[group].drop(["dataset", "num_routing"], errors="ignore")
        kept = {key: value for key, value in row.items() if not pd.isna(value) and value not in (False, "false")}
        words = [str(first.dataset[group])] if "dataset" in frame else []
        if "num_routing" in frame and not pd.isna(first.num_routing[group]):
            words.append(f"num_routing={first.num_routing[group]}")
        elif "model" not in kept:
            words.append(str(first.model[group]))
        names.append(" ".join([*words, *(f"{key}={value}" for key, value in kept.items())]))
    twins = {name for name, count in Counter(names).items() if count > 1}
    names = [f"{name} {group}" if name in twins else name for name, group in zip(names, first.index, strict=True)]
    return names, frame
