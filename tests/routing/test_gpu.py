"""The GPU's kernels without a GPU: their numbers in Triton's interpreter, and their compilation for a GPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
pytest.importorskip("triton")


@pytest.mark.slow
def test_interpreted_kernels_are_close_to_autograd_in_float64():
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), str(TESTS / "routing")])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(TESTS / "routing" / "interpreted.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 15
    assert max(max(distances) for distances in found.values()) <= 2e-6, found


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["route_kernel", "route_backward_kernel", "grad_weight_kernel"])
def test_kernels_compile_for_a_gpu_and_keep_votes_in_registers(kernel, tmp_path, monkeypatch):
    """The second convolutional layer of the paper's stack for CIFAR-10, on an H100."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from capsule_sweeps.routing import triton_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = dict(A=4, X=4, D=4, N=32, L=3, NUM_M=32, H=7, W=7, h=5, w=5, STRIDE=1, DB=4, P=8, G=2, M=16)
    constants |= {"route_kernel": {"KEEP": True}, "grad_weight_kernel": {"J": 2}}.get(kernel, {})
    function = getattr(triton_kernels, kernel)
    types = {"scale": "fp32", **dict.fromkeys(("num_i", "num_places", "part", "one"), "i32")}
    signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in function.arg_names}
    source = ASTSource(fn=function, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    (tmp_path / "kernel.ptx").write_text(compiled.asm["ptx"])
    arch = re.search(r"^\.target (\w+)", compiled.asm["ptx"], re.MULTILINE)[1]
    command = [triton.knobs.nvidia.ptxas.path, "-v", f"-arch={arch}", tmp_path / "kernel.ptx", "-o", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert int(re.search(r"(\d+) bytes spill stores", said)[1]) <= 32, said
