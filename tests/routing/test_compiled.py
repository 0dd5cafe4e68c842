import copy
import json
import logging
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from routed_layers import SMALL
from torch import nn

from capsule_sweeps.config.compose import compose_config
from capsule_sweeps.networks.build import build_model
from capsule_sweeps.routing import compiled as compiling
from capsule_sweeps.routing.compiled import Compiled, CompileError, decide

ROOT = Path(__file__).resolve().parents[2]

# What a fresh process does: a step of the small model, after steps of other shapes. Prints the logits and a gradient.
STEP = """
import json, sys, warnings
import torch
from capsule_sweeps.config.compose import compose_config
from capsule_sweeps.networks.build import build_model
small, batches = json.loads(sys.argv[1]), json.loads(sys.argv[2])
for batch in batches:
    torch.manual_seed(0)
    model = build_model(compose_config([*small, "training.compile=on", f"training.batch_size={batch}"]))
    torch.manual_seed(1)
    logits = model(torch.randn(batch, 1, 8, 8))
    logits.square().sum().backward()
print(json.dumps([logits.tolist(), model.capsules.layers[-1].weight.grad.flatten().tolist()]))
"""


def small(compiled, batch_size=3):
    torch.manual_seed(0)
    return build_model(compose_config([*SMALL, f"training.compile={compiled}", f"training.batch_size={batch_size}"]))


def step_in_a_process(batches, *overrides, **environment):
    command = [sys.executable, "-c", STEP, json.dumps([*SMALL, *overrides]), json.dumps(batches)]
    path = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "CXX": "g++", **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=path, timeout=600)
    assert done.returncode == 0, done.stderr
    return done


def said(caplog):
    """Our own messages: torch's compiler logs much of its own."""
    return [record.getMessage() for record in caplog.records if record.name == "capsule_sweeps.routing.compiled"]


@pytest.fixture(autouse=True)
def no_warning_yet(monkeypatch):
    monkeypatch.setattr(compiling, "_warned", [])


@pytest.mark.slow
def test_a_compiled_model_is_the_same_model(caplog, compiler):
    eager, compiled = small("off"), small("on")
    assert list(eager.state_dict()) == list(compiled.state_dict())
    assert [name for name, _ in eager.named_parameters()] == [name for name, _ in compiled.named_parameters()]
    compiled.load_state_dict(eager.state_dict())
    images = torch.randn(3, 1, 8, 8)
    results = []
    for model in (eager, compiled):
        logits = model(images)
        logits.square().sum().backward()
        results.append([logits, *(parameter.grad for parameter in model.parameters())])
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())
    for model in (eager, compiled):
        model.eval()
    with torch.no_grad():
        torch.testing.assert_close(eager(images), compiled(images))
    assert not said(caplog), "it was not compiled"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_what_ran_earlier_in_a_process_changes_no_bit():
    alone = step_in_a_process([5]).stdout
    assert step_in_a_process([2, 9, 5]).stdout == alone


@pytest.mark.slow
def test_processes_at_once_share_what_they_compile_with_those_that_follow(tmp_path, compiler):
    counting = tmp_path / "g++"  # writes a line a call
    counting.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nexec {shutil.which("g++")} "$@"\n')
    counting.chmod(0o755)

    def step(_=None):
        cache = str(tmp_path / "cache")
        return step_in_a_process([5], "capsules.layers=[]", CXX=str(counting), TORCHINDUCTOR_CACHE_DIR=cache)

    with ThreadPoolExecutor() as pool:
        both = list(pool.map(step, range(2)))
    calls = (tmp_path / "calls").read_text()
    assert ".cpp" in calls
    third = step()
    assert (tmp_path / "calls").read_text().count(".cpp") == calls.count(".cpp"), "it compiled again"
    assert {done.stdout for done in both} == {third.stdout}
    assert not any("could not be compiled" in done.stderr for done in (*both, third))


@pytest.mark.parametrize("cxx", ["/nonexistent", "/bin/false"])
@pytest.mark.slow
def test_without_a_compiler_there_is_one_warning_and_the_same_numbers(tmp_path, cxx):
    done = step_in_a_process([4, 5], CXX=cxx, TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    assert done.stderr.count("could not be compiled") == 1, done.stderr
    logits, _ = json.loads(done.stdout)
    model = small("off")
    torch.manual_seed(1)
    torch.testing.assert_close(torch.tensor(logits), model(torch.randn(5, 1, 8, 8)))


def test_more_layouts_than_torch_keeps_are_all_compiled(monkeypatch, compiler):
    made = []

    def backend(graph, inputs):
        made.append([tuple(t.shape) for t in inputs if isinstance(t, torch.Tensor)])
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **how: real(f, **{**how, "backend": backend, "options": None}))
    double = Compiled(lambda t: 2 * t)
    for size in [*range(2, 22), *range(2, 22)]:
        assert torch.equal(double(torch.ones(size)), torch.full((size,), 2.0))
    assert made == [[(size,)] for size in range(2, 22)]


def test_what_changes_bits_is_not_chosen_by_timing_it(monkeypatch, compiler):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda f, options, **_: asked.append(options) or f)
    for options in (None, {"max_fusion_size": 1}):
        assert Compiled(lambda t: 2 * t, options)(torch.ones(2)).tolist() == [2, 2]
        assert asked.pop() == {**(options or {}), "deterministic": True}


def test_a_failure_is_remembered_for_its_layout_and_reported_once(monkeypatch, caplog, compiler):
    tries = []

    def fail(function, **_):
        tries.append(function)
        raise RuntimeError("no\ncompiler")

    monkeypatch.setattr(torch, "compile", lambda f, **options: lambda *tensors: fail(f, **options))
    double = Compiled(lambda t: 2 * t)
    with caplog.at_level(logging.WARNING):
        for size in (2, 2, 3):
            with pytest.raises(CompileError):
                double(torch.ones(size))
    assert len(tries) == 2
    assert len(said(caplog)) == 1 and "(no)" in said(caplog)[0]


def test_a_backward_pass_that_cannot_be_compiled_is_noticed_in_time(monkeypatch, caplog, compiler):
    from functorch.compile import make_boxed_func  # takes seconds to import
    from torch._dynamo.backends.common import aot_autograd

    def fail(graph, inputs):
        raise RuntimeError("no backward")

    # Not by the inductor, which takes long; the kernels in it have no backward pass and are "compiled".
    backend = aot_autograd(fw_compiler=lambda graph, inputs: make_boxed_func(graph.forward), bw_compiler=fail)
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **how: real(f, **{**how, "backend": backend, "options": None}))
    model, images = small("on", 2), torch.randn(2, 1, 8, 8)
    logits = model(images)
    logits.sum().backward()
    torch.testing.assert_close(logits, small("off")(images))
    assert len(said(caplog)) == 1 and "no backward)" in said(caplog)[0]


def test_a_copy_of_a_compiled_model_is_a_model_of_its_own():
    model = small("on")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert twin.forward.model is twin
    twin.eval()
    assert twin(torch.randn(2, 1, 8, 8)).abs().sum() > 0


def test_only_training_is_compiled_and_on_a_gpu_only_whole_batches(monkeypatch):
    model = small("on", 3)
    monkeypatch.setattr(model.forward, "compiled", lambda images: "compiled")
    images = torch.randn(3, 1, 8, 8)
    assert model.forward(images) == model.forward(images[:2]) == "compiled"
    with torch.no_grad():
        assert model(images).shape == (3, 10), "evaluation"

    class OnGpu(torch.Tensor):
        is_cuda = True

    monkeypatch.setattr(model.forward, "eager", lambda images: "eager")
    whole = images.as_subclass(OnGpu)
    assert model.forward(whole) == "compiled" and model.forward(whole[:2]) == "eager"


@pytest.mark.parametrize(
    ("asked", "device", "compiler", "steps", "wanted"),
    [
        ("on", "cpu", False, 1, True),
        ("off", "cuda", True, 10**6, False),
        ("auto", "cuda", False, 4000, True),
        ("auto", "cuda", True, 3999, False),
        ("auto", "mps", True, 10**6, False),
        ("auto", "cpu", True, 2000, True),
        ("auto", "cpu", True, 1999, False),
        ("auto", "cpu", False, 10**6, False),
    ],
)
def test_auto_compiles_where_it_pays(monkeypatch, asked, device, compiler, steps, wanted):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiling.shutil, "which", lambda name: "/usr/bin/" + name if compiler else None)
    recipe = {"compile": asked, "epochs": steps, "batch_size": 8}
    config = OmegaConf.create({"training": recipe, "dataset": {"train_size": 8, "source": "folder"}})
    assert decide(config, torch.device(device)) is wanted


@pytest.mark.parametrize(
    ("cxx", "there", "wanted"),
    [
        (None, {"g++"}, True),
        (None, {"clang++"}, False),  # torch does not look for it
        ("clang++ -v", {"clang++"}, True),
        ("clang++", {"g++"}, False),
        (" ", {"g++"}, False),
    ],
)
def test_the_compiler_is_the_one_that_torch_will_call(monkeypatch, cxx, there, wanted):
    monkeypatch.setattr(compiling.sys, "platform", "linux")
    monkeypatch.setattr(compiling.shutil, "which", lambda name: name if name in there else None)
    monkeypatch.delenv("CXX", raising=False)
    if cxx is not None:
        monkeypatch.setenv("CXX", cxx)
    assert compiling.has_cpp_compiler() is wanted


def test_a_model_is_built_without_a_training_part():
    config = OmegaConf.create(OmegaConf.to_container(compose_config(SMALL)))
    del config["training"]
    assert isinstance(build_model(config), nn.Module)
