"""Cores and memory within the limits of control groups, of version 1 and 2."""

import os

import psutil
import pytest

from capsule_sweeps.runs import machine

MB = 2**20


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """groups(own, {file: content}): what /proc/self/cgroup and /sys/fs/cgroup hold on a machine of 64 cores, 64 GiB."""

    def make(own: str, files: dict[str, str]) -> None:
        (tmp_path / "own").write_text(own)
        for name, content in files.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("", (), {"available": 65536 * MB}))
    return make


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/box/part\n", {"box/cpu.max": "200000 100000\n", "box/part/cpu.max": "max 100000\n"}, 2),
        ("0::/box\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/box\n", {"box/cpu.max": "50000 100000\n"}, 1),
        (
            "4:memory:/\n3:cpu,cpuacct:/box\n",
            {"cpu/box/cpu.cfs_quota_us": "300000", "cpu/box/cpu.cfs_period_us": "100000"},
            3,
        ),
        ("3:cpu:/box\n", {"cpu/box/cpu.cfs_quota_us": "-1", "cpu/box/cpu.cfs_period_us": "100000"}, 64),
        ("nonsense\n", {"cpu.max": "x"}, 64),
        ("", {}, 64),
    ],
)
def test_cores_are_those_of_the_quota(groups, own, files, cores) -> None:
    groups(own, files)
    assert machine.num_cores() == cores


@pytest.mark.parametrize(
    ("own", "files", "free"),
    [
        (
            "0::/job\n",
            {
                "job/memory.max": str(1000 * MB),
                "job/memory.current": str(700 * MB),
                "job/memory.stat": f"anon 5\ninactive_file {100 * MB}\n",
            },
            400,
        ),
        ("0::/job\n", {"job/memory.max": "max", "job/memory.current": "7"}, 65536),
        (
            "4:memory:/job/step\n",
            {
                "memory/job/memory.limit_in_bytes": str(500 * MB),
                "memory/job/memory.usage_in_bytes": str(200 * MB),
                "memory/job/memory.stat": f"inactive_file {50 * MB}\ntotal_inactive_file {100 * MB}\n",
            },
            400,
        ),
        ("", {}, 65536),
    ],
)
def test_free_memory_is_what_the_limit_leaves(groups, own, files, free) -> None:
    groups(own, files)
    assert machine.free_memory() == free * MB


@pytest.mark.parametrize(
    ("cores", "load", "threads", "free"),
    [(8, 0.2, 8, None), (8, 5.9, 2, None), (8, 5.9, 4, 2), (8, 30.0, 1, None), (8, 30.0, 8, 1), (2, 0.0, 64, 2)],
)
def test_more_threads_than_free_cores_are_hinted_at(groups, monkeypatch, cores, load, threads, free) -> None:
    groups("0::/\n", {"cpu.max": f"{cores}00000 100000"})
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0, 0))
    hint = machine.busy_hint(threads)
    assert f"OMP_NUM_THREADS={free}" in hint if free else hint == ""
