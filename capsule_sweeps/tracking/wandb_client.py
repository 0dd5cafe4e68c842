"""The calls of wandb's library: its settings, its server, its service process, and `wandb.init`.

What is private in wandb is used in this file only: `wandb.sdk.wandb_setup` in `settings`, the name of the service's
process in `end_service`, and the `x_` settings in `make_settings`.
"""

import netrc
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from omegaconf import DictConfig, OmegaConf

from capsule_sweeps.runs.signature import columns
from capsule_sweeps.tracking.base import one_line

ANSWER_SECONDS = 5.0
FINISH_SECONDS = 15.0
MAX_NAME, MAX_TAG = 128, 64  # letters that W&B takes of names and groups, and of tags


def settings() -> Any:
    """Wandb's settings from environment variables and files (`wandb offline`, WANDB_ENTITY); None without wandb.

    `wandb.setup`, which is public, would start a service process, also for the children of this one.
    """
    try:
        from wandb.sdk import wandb_setup
    except ImportError:
        return None
    if os.environ.get("WANDB_MODE") == "":
        del os.environ["WANDB_MODE"]  # empty means unset, and wandb refuses it
    found = wandb_setup.singleton().settings
    found.silent = True
    return found


def obstacle() -> str | None:
    """Why no run can be online: no key, or no server that answers within seconds. Without a key, no server is asked."""
    path = Path(os.path.expanduser(os.environ.get("NETRC") or "~/.netrc"))
    if settings() is None:
        return "the package wandb is not installed (`pip install wandb`, or set tracking=none)"
    if not (os.environ.get("WANDB_API_KEY") or path.exists()):
        return "no API key is set (`wandb login`, or WANDB_API_KEY)"
    host = "the W&B server"
    try:
        url = server_url()
        host = urlsplit(url).netloc.rpartition("@")[2]
        if not os.environ.get("WANDB_API_KEY") and not netrc.netrc(path).authenticators(host):
            return f"no API key is set for {host} (`wandb login`, or WANDB_API_KEY)"
        with_timeout(ANSWER_SECONDS, lambda: _ask(url))
    except netrc.NetrcParseError as error:  # its text quotes the file, which holds keys
        return f"{path} is damaged near line {error.lineno}: fix it, or use WANDB_API_KEY"
    except Exception as error:
        return f"{host} does not answer ({one_line(error)})"
    return None


def server_url() -> str:
    return str(settings().base_url)


def _ask(url: str) -> None:
    """Raises OSError when there is no answer, or one that says that the server is down."""
    from urllib import error, request

    try:
        request.urlopen(url.rstrip("/") + "/healthz", timeout=ANSWER_SECONDS).close()
    except error.HTTPError as answer:
        answer.close()
        if answer.code >= 500:
            raise


def with_timeout(seconds: float, function: Callable[[], Any]) -> Any:
    """Return or raise the result of the function; TimeoutError if it takes longer, while it keeps running."""
    ended: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            ended.put((function(), None))
        except Exception as error:
            ended.put((None, error))
        except SystemExit as error:  # wandb leaves the program when its service was killed
            ended.put((None, RuntimeError(f"exit code {error.code}")))

    threading.Thread(target=work, daemon=True, name="wandb").start()
    deadline = time.monotonic() + seconds
    while True:
        try:  # in short waits, because a long one would not be interrupted by Ctrl-C
            value, error = ended.get(timeout=min(0.2, max(0.0, deadline - time.monotonic())))
            break
        except queue.Empty:
            if time.monotonic() >= deadline:
                raise TimeoutError(f"no answer within {seconds:.0f} s") from None
    if error is not None:
        raise error
    return value


def end_service(patience: float) -> None:
    """End W&B's service, by force after `patience` seconds; otherwise this process would wait for it forever at exit.

    The next run gets another."""
    import psutil

    wandb = sys.modules.get("wandb")
    if wandb is None:
        return
    ended = False
    try:
        if patience:
            with suppress(Exception):
                with_timeout(patience, wandb.teardown)
                ended = True
    finally:  # also after Ctrl-C
        if not ended:
            with suppress(psutil.Error):
                for child in psutil.Process().children():
                    if child.name().startswith("wandb-core"):
                        child.kill()
    if not ended:
        with suppress(Exception):
            with_timeout(5, wandb.teardown)


def find(entity: str | None, project: str, identity: str, api: Any = None) -> Any:
    """The run with this id in W&B; None if it does not exist. Raises if the server does not answer."""
    import wandb

    api = api or wandb.Api(timeout=30)
    api.flush()  # it would answer from memory
    try:
        return api.run(f"{entity or api.default_entity}/{project}/{identity}")
    except Exception as error:
        if not isinstance(getattr(error, "exc", None), ValueError):  # wandb's error for a missing run
            raise
        return None


def make_settings(**more: Any) -> Any:
    """The settings of every W&B run, those that this version of wandb has. Raises ValueError for invalid ones."""
    import wandb

    wanted = {
        "init_timeout": 15,
        "finish_timeout": FINISH_SECONDS,  # without it `finish` waits for ever when the server went away
        "finish_timeout_raises": True,
        "x_transaction_log_flush_interval": 1,  # what is not flushed is lost when the process is killed
        "reinit": "finish_previous",  # several runs in one process
        "console": "off",
        "silent": True,
        "disable_git": True,
        "x_save_requirements": False,
        **more,
    }
    known = getattr(wandb.Settings, "model_fields", wanted)
    try:
        return wandb.Settings(**{name: value for name, value in wanted.items() if name in known})
    except Exception as error:
        raise ValueError(f"W&B refuses its settings: {one_line(error)}") from error


def shortened(text: str, longest: int) -> str:
    """Text shortened in the middle to a length that W&B accepts; the end of a run's name is its signature."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[: longest - half - 1]}…{text[-half:]}"


def init(
    mode: Any,
    config: DictConfig,
    folder: Path,
    identity: str,
    sweep: str | None,
    home: tuple[str | None, str],
    facts: dict[str, Any],
    **more: Any,
) -> Any:
    """A W&B run whose own files are in `folder`.

    `home` is its entity and project, `facts` are added to its configuration, `more` are settings of wandb.
    """
    import wandb

    known, resolved = columns(config), OmegaConf.to_container(config)
    tags = [shortened(str(known[key]), MAX_TAG) for key in ("dataset", "model", "backbone", "routing") if known[key]]
    run = wandb.init(
        mode=mode,
        entity=home[0],
        project=home[1],
        id=identity,
        name=shortened(known["run"], MAX_NAME),
        group=sweep and shortened(sweep, MAX_NAME),
        job_type="train",
        tags=list(dict.fromkeys(tags)),
        config={**known, **facts, "resolved": resolved},
        dir=str(folder),
        resume="allow",
        settings=make_settings(**more),
    )
    run.define_metric("*", step_metric="epoch")
    return run
