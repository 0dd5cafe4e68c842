"""What is freed stays with the process, unless the user has said otherwise."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Allocates and frees arrays of 64 MB. Prints what was arranged, and how many of the last 20 Linux had to clear.
ARRAYS = """
import resource, torch
from capsule_sweeps.allocator import keep_freed_memory
print(keep_freed_memory())
for _ in range(10):
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**24)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() // 2**26)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
@pytest.mark.parametrize(
    ("environment", "kept"),
    [({}, True), ({"MALLOC_TOP_PAD_": "0"}, False), ({"GLIBC_TUNABLES": "glibc.malloc.check=0"}, False)],
    ids=["nothing said", "MALLOC_", "GLIBC_TUNABLES"],
)
def test_memory_is_cleared_once(python, monkeypatch, environment, kept) -> None:
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]:
        monkeypatch.delenv(name)
    ended = python("-c", ARRAYS, PYTHONPATH=str(ROOT), **environment)
    arranged, cleared = ended.out.split()
    assert arranged == str(kept)
    assert int(cleared) == (0 if kept else 20)
