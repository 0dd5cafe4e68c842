"""Which classes a configuration may name in `_target_`."""

import subprocess
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from capsule_sweeps.config.build import build
from capsule_sweeps.runs.files import write_json
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signature import columns


def test_only_classes_of_this_package_are_built() -> None:
    ours = ["training.train.train", "runs.run.os.system", "runs.run.Path", "launchers.pool.Worker", "__main__.main"]
    theirs = ["os.system", "builtins.eval", "subprocess.Popen", "capsule_sweeps", "capsule_sweeps_evil.X", "torch.nn"]
    theirs += ["torch_evil.X", "torch.load", "torch.hub.os.system", "torch.nn.Linear", "torchvision.models.vgg11"]
    for target in (*(f"capsule_sweeps.{name}" for name in ours), *theirs, "", ".", "torch."):
        with pytest.raises(ValueError, match=r"_target_"):
            build({"_target_": target, "command": "true"})
    for target in ("capsule_sweeps.networks.backbones.Nothing", "capsule_sweeps.nothing.Nothing"):
        with pytest.raises(ValueError, match="spelling"):
            build({"_target_": target})


def handler(mark: Path) -> dict[str, object]:
    """A class of torch that starts a program when it is made."""
    target = "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler.SubprocessHandler"
    options = {"entrypoint": "touch", "args": [str(mark)], "env": {}, "stdout": None, "stderr": None}
    return {"_target_": target, **options, "local_rank_id": 0, "numa_options": None}


def test_layers_of_this_package_and_those_that_the_user_trusts_are_built(monkeypatch) -> None:
    node = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}
    with pytest.raises(ValueError, match="set CAPSULE_SWEEPS_TRUST_PACKAGES=torch"):
        build(node)
    monkeypatch.setenv("CAPSULE_SWEEPS_TRUST_PACKAGES", "mine, torch")
    assert isinstance(build(node), torch.nn.Linear)


@pytest.mark.parametrize(
    ("code", "what"), [("class A(:", "SyntaxError"), ("raise RuntimeError('no\\nGPU')", "RuntimeError: no GPU")]
)
def test_a_module_that_cannot_be_imported_is_one_sentence(launch, place, monkeypatch, code, what) -> None:
    """A dry run of several models, which compares their sizes, only warns of it."""
    package = f"broken_{what[:2].lower()}"
    (place / package).mkdir()
    (place / package / "model.py").write_text(code)
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("CAPSULE_SWEEPS_TRUST_PACKAGES", package)
    target = f"{package}.model.A"
    with pytest.raises(ValueError, match=what) as raised:
        build({"_target_": target})
    assert "fix this module" in str(raised.value) and "\n" not in str(raised.value)
    override = f"model._target_={target}"
    ended = launch("-m", "model=cnn", override, "model.name=one", "model.width=1,2", "hydra.launcher.dry_run=true")
    assert ended.code == 0 and f"Numbers of parameters are unknown (_target_={target}" in ended.text, ended.text
    ended = launch("model=cnn", override, "model.name=one")
    assert ended.code == 1 and what in ended.err and "Traceback" not in ended.text, ended.text
    init = "    def __init__(self, *args, **kwargs):\n        raise RuntimeError('no GPU')"
    own = f"from torch import nn\nclass A(nn.Module):\n{init}"
    (place / package / "later.py").write_text(own)
    words = ["model=cnn", f"model._target_={package}.later.A", "model.name=one", "model.width=1,2"]
    ended = launch("-m", *words, "hydra.launcher.dry_run=true")
    assert (
        ended.code == 0
        and "unknown (one (" in ended.text
        and "RuntimeError: no GPU, in later.py, line 4)" in ended.text
    ), ended.text
    with pytest.raises(ValueError, match="is not allowed"):
        build({"_target_": "torchvision.ops.MLP"})  # begins with the same letters
    backbone = build({"_target_": "capsule_sweeps.networks.backbones.Simple", "channels": 4}, image_shape=(1, 8, 8))
    assert isinstance(backbone, torch.nn.Module)


def test_stored_configuration_cannot_start_a_program(tiny_config, capsule_sweeps, tmp_path, monkeypatch) -> None:
    mark = tmp_path / "ran"
    config = tiny_config()
    run = Run(Path("runs") / columns(config)["run"])
    with run.claim():
        write_json(run.folder / "run.json", {**columns(config), "state": "failed"})
        evil = OmegaConf.to_container(config)
        evil["model"]["backbone"] = {"name": "simple", **handler(mark)}
        (run.folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(evil)))
    started: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **_: started.append(words))
    ended = capsule_sweeps("retry", "--yes", run.folder.name)
    assert ended.code == 1 and "Traceback" not in ended.text and not started
    with pytest.raises(ValueError, match="_target_"):
        build(handler(mark))
    assert not started
