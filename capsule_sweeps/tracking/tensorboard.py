"""TensorBoard: one scalar per epoch and metric, and in the end the configuration beside the final accuracies."""

import os
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig

from capsule_sweeps.runs.files import NO_LINK
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signature import columns, flatten
from capsule_sweeps.tracking.base import Tracker, own_folder


class TensorBoardTracker(Tracker):
    """Event files in `<run folder>/tensorboard`. Each attempt writes them again from metrics.jsonl.

    So no epoch is missing, doubled or of an abandoned attempt, wherever the last attempt was killed.
    """

    title = "TensorBoard"
    packages = ("tensorboard",)

    @classmethod
    def prepare(cls, configs: Sequence[DictConfig]) -> None:
        if find_spec("tensorboard") is None:
            raise ValueError(
                'tracking=tensorboard needs the package tensorboard: pip install "capsule_sweeps[tensorboard]", or '
                "set tracking=none"
            )

    @classmethod
    def distrust(cls, configs: Sequence[DictConfig]) -> None:
        """Event files are in the run folder, whatever the settings."""

    @classmethod
    def check(cls, config: DictConfig) -> str:
        cls.prepare([config])
        return f"event files in {config.runs_dir}/*/tensorboard; tensorboard --logdir {config.runs_dir}"

    def __init__(self, config: DictConfig, run: Run, sweep: str, rows: Sequence[dict[str, Any]]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = own_folder(run, "tensorboard")
        earlier = sorted(folder.glob("events.out.tfevents.*"))
        for path in earlier[:-1]:
            path.unlink()
        if earlier:
            os.close(os.open(earlier[-1], os.O_WRONLY | os.O_TRUNC | NO_LINK))
        # A TensorBoard that is watching moves from the last file, which must exist for this, to a file whose name sorts
        # after it, and keeps what it has read; `purge_step` makes it forget that. Names begin with the second in which
        # the file was made, so that a file of the same second might sort before the last one. The bound of two seconds
        # is for a last file from a host whose clock is ahead.
        patience = time.monotonic() + 2
        while earlier and int(time.time()) <= int(earlier[-1].name.split(".")[3]) and time.monotonic() < patience:
            time.sleep(0.05)
        self._writer = SummaryWriter(str(folder), purge_step=0 if earlier else None)
        self._config, self._epochs = config, config.training.epochs
        then = time.time() - sum(row["seconds"] for row in rows)  # as if the run had never paused
        for row in rows:
            then += row["seconds"]
            self._write(row, then)
        self._writer.flush()

    def _write(self, row: dict[str, Any], when: float) -> None:
        for name in row.keys() - {"epoch"}:
            self._writer.add_scalar(name, row[name], row["epoch"], when)

    def log(self, row: dict[str, Any]) -> None:
        self._write(row, time.time())
        self._writer.flush()

    def summary(self, values: dict[str, Any]) -> None:
        known = {**dict(flatten(self._config)), **columns(self._config)}
        settings = {key: value if isinstance(value, int | float | str) else str(value) for key, value in known.items()}
        accuracies = {key: value for key, value in values.items() if key.startswith("accuracy_") and value is not None}
        # ".": in the same folder
        self._writer.add_hparams(settings, accuracies, run_name=".", global_step=self._epochs)

    def close(self, outcome: str) -> None:
        self._writer.close()
