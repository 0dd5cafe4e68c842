"""Whether the files of a run folder that comes from others agree with each other."""

import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from capsule_sweeps.config import selection_rules
from capsule_sweeps.config.check import check
from capsule_sweeps.display import counted
from capsule_sweeps.runs.bundle import CHECKPOINT
from capsule_sweeps.runs.metrics import read_metrics
from capsule_sweeps.runs.record import left_out, read_record, read_summary
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signature import columns, signature, signed_config
from capsule_sweeps.runs.stored import load_config
from capsule_sweeps.runs.stored_weights import check_weights

# Keys of run.json and summary.json that must be valid; others of the wrong type or out of bounds are left out
COMPARED = re.compile(
    "run|signature|group|dataset|model|backbone|routing|schedule|num_routing|seed|epochs|signed_config|imported|"
    "data_sha256|classes|(accuracy|epoch)_.*"
)

NAMES = ("model", "backbone", "routing")  # for display: an attempt may have another name than the one before


def verify(folder: Path) -> dict[str, Any]:
    """The record of a run folder from elsewhere, with the names in its configuration.

    Raises ValueError if its files contradict each other.
    """
    record, summary = read_record(folder), read_summary(folder)
    _check_values(folder / "run.json", record)
    _check_values(folder / "summary.json", summary)
    if (folder / CHECKPOINT).exists():
        check_checkpoint(folder, record)
    finished = (folder / "summary.json").exists()  # its existence makes a run finished, whatever its content
    if finished and summary.get("signature") != record.get("signature"):
        raise ValueError("its summary.json is damaged")
    expected = _follows_from_config(folder, record, finished)
    if not finished:
        record |= {name: expected[name] for name in NAMES if name in expected and name in record}
    for file, found in (("run.json", record), ("summary.json", summary)):
        for key, value in expected.items():
            if found.get(key) is not None and found[key] != value:
                raise ValueError(f"its {file} has {key}={found[key]}, its own files say {value}")
    return record


def _check_values(path: Path, kept: dict[str, Any]) -> None:
    """Raises ValueError if a file has a wrong value of a key that must be valid, given what its reader kept."""
    try:
        damaged = left_out(path, kept)
    except (OSError, ValueError) as error:
        raise ValueError(f"its {path.name} is damaged ({getattr(error, 'strerror', None) or error})") from error
    if wrong := [key for key in damaged if COMPARED.fullmatch(key)]:
        raise ValueError(f"its {path.name} is damaged ({wrong[0][:80]!a} is out of range or of another type)")


def _follows_from_config(folder: Path, record: dict[str, Any], finished: bool) -> dict[str, Any]:
    """Columns and accuracies that follow from the configuration and the epochs of a run.

    Raises ValueError if its name, its signed configuration and its config.yaml do not agree.
    """
    signed, imported = record.get("signed_config"), "imported" in record
    if not signed or signature(signed) != folder.name[-8:]:
        raise ValueError("its signature is not that of its configuration")
    if imported != ("imported.sha256" in signed):
        raise ValueError("its files contradict each other on whether it is imported")
    try:
        config = load_config(folder / "config.yaml")
        config = config if imported else check(config)
        own = signed if imported else signed_config(config)
    except Exception as error:
        raise ValueError(f"its config.yaml is not usable ({' '.join(str(error).split())[:200]})") from error
    if imported:
        return {"group": signature(signed), "seed": None, "epochs": None}
    if own != signed:
        keys = sorted(key for key in own.keys() | signed.keys() if own.get(key) != signed.get(key))
        raise ValueError(f"its signature is not that of its config.yaml ({', '.join(keys[:3])})")
    expected = columns(config)
    expected.pop("run")  # a name for people, which versions of this code spell differently
    return {**expected, **_accuracies(folder, config, finished)}


def _accuracies(folder: Path, config: DictConfig, finished: bool) -> dict[str, Any]:
    """The accuracies of a run under each rule, from its epochs. Raises ValueError if epochs are missing."""
    rows, damage = read_metrics(Run(folder))
    if damage:
        raise ValueError(f"its metrics.jsonl is damaged ({damage.rpartition(' ')[2]})" if "line" in damage else damage)
    epochs = config.training.epochs  # may be a huge number in a forged configuration
    if finished and (len(rows) != epochs or [row.get("epoch") for row in rows] != list(range(1, len(rows) + 1))):
        raise ValueError(f"it is finished, but metrics.jsonl does not have its {counted(epochs, 'epoch')}")
    return selection_rules.summarize(rows) if finished else {}


def check_checkpoint(folder: Path, record: dict[str, Any]) -> None:
    """Raises ValueError for a checkpoint that is not readable when the run is resumed or evaluated."""
    try:
        check_weights(folder / CHECKPOINT, record.get("parameters"))
    except Exception as error:  # zipfile and pickletools have errors of their own
        raise ValueError(f"its {CHECKPOINT} is damaged ({' '.join(str(error).split())[:200]})") from error
