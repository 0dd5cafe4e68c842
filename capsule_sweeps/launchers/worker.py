"""One run in a process of its own: `python -m capsule_sweeps.launchers.worker`, started by the pool.

Reads one line of JSON from its standard input (config, folder, code, submission, sweep, threads, gpu_asked, grace);
writes progress as lines of JSON. If the input ends, the parent is gone, and it saves and stops. Exit code 0 finished, 1
failed, 75 in use, 128 + signal.
"""

import json
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from capsule_sweeps.config.build import where
from capsule_sweeps.config.check import check
from capsule_sweeps.display import Formatter, say
from capsule_sweeps.runs.provenance import ROOT
from capsule_sweeps.runs.run import Busy, Run
from capsule_sweeps.runs.signals import Interrupted, abandon_late, stop_signals
from capsule_sweeps.runs.stored import plain_config

BUSY = os.EX_TEMPFAIL


class PipeDisplay:
    """A display that reports progress to the parent, if it still exists."""

    def _send(self, **event: Any) -> None:
        try:
            print(json.dumps(event), flush=True)
        except OSError:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the parent is gone

    def start(self, name: str, epochs: int, epochs_done: int, num_batches: int) -> None:
        self._send(event="start", epochs=epochs, epochs_done=epochs_done, num_batches=num_batches)

    def batch(self, done: int, loss: float, accuracy: float, images_per_second: float) -> None:
        self._send(event="batch", done=done, loss=loss, accuracy=accuracy, images_per_second=images_per_second)

    def epoch(self, row: dict[str, Any]) -> None:
        self._send(event="epoch", row=row)


def main() -> int:
    with stop_signals() as stop:
        task = json.loads(sys.stdin.readline())
        logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
        logging.getLogger().handlers[0].setFormatter(Formatter())
        logging.getLogger("capsule_sweeps").setLevel(logging.INFO)
        threading.Thread(target=stop_with_parent, daemon=True).start()
        import torch

        from capsule_sweeps.training.train import train

        torch.set_num_threads(task["threads"])
        try:
            if task["code"] != str(ROOT):
                raise ValueError(f"the worker runs the code in {ROOT} and not {task['code']}: was that folder removed?")
            run, config = Run(Path(task["folder"]), task["submission"]), check(plain_config(task["config"]))
            if task["gpu_asked"] and config.device == "auto" and not torch.cuda.is_available():
                raise ValueError(
                    f"the job asked for a GPU, and torch {torch.__version__} finds none on {socket.gethostname()}; set "
                    "device=cpu to train on the CPU, or hydra.launcher.gpus=0"
                )
            with abandon_late(stop, task["grace"]):
                train(config, run, task["sweep"], PipeDisplay(), stop)
        except Interrupted as interrupted:
            say(interrupted, sys.stderr)
            return 128 + interrupted.signum
        except Busy as busy:
            say(busy, sys.stderr)
            return BUSY
        except Exception as error:
            say(f"{type(error).__name__}: {error}{where(error)}", sys.stderr)
            return 1
    return 0


def stop_with_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
