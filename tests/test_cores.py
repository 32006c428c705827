"""How many cores a process may use: by affinity and by the control groups, of either version, that it lies in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from alutils.system import device as compute
from alutils.system.cores import usable_cores

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def machine(folder, group, limits):
    """A file system whose control groups have these limits."""
    files = {"proc/self/cgroup": group, **{f"sys/fs/cgroup/{name}": content for name, content in limits.items()}}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def v1(group, quota):
    return {f"{group}/cpu.cfs_quota_us": f"{quota}\n", f"{group}/cpu.cfs_period_us": "100000\n"}


V1_GROUP = "4:memory:/a/b\n2:cpu,cpuacct:/a/b\n0::/\n"


@pytest.mark.parametrize(
    ("group", "limits", "expected"),
    [
        ("0::/\n", {"cpu.max": "300000 100000\n"}, 3),  # a container with a namespace of its own
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),  # part of a core counts as one
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, 8),  # more than there are
        ("0::/\n", {}, 8),
        ("0::/a/b\n", {"cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 1\n"}, 2),
        ("0::/../other\n", {"cpu.max": "300000 100000\n"}, 3),
        (V1_GROUP, v1("cpu/a/b", -1), 8),
        (V1_GROUP, v1("cpu/a", 200_000), 2),
        # Docker without a namespace: the mount begins at the container's own group
        ("2:cpu,cpuacct:/docker/1f\n", v1("cpu", 300_000), 3),
    ],
)
def test_the_quotas_of_all_groups_above_count(eight_cores, tmp_path, group, limits, expected):
    assert usable_cores(machine(tmp_path, group, limits)) == expected


def test_without_control_groups_the_affinity_counts(eight_cores, tmp_path, monkeypatch):
    assert usable_cores(tmp_path) == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert usable_cores(tmp_path) == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores(tmp_path) == 1


def test_torch_takes_no_more_threads_than_cores_unless_told_to(monkeypatch):
    taken = []
    monkeypatch.setattr(compute, "usable_cores", lambda: 2)
    monkeypatch.setattr("torch.set_num_threads", taken.append)
    for threads, told, expected in ((64, None, [2]), (2, None, []), (1, None, []), (64, "64", [])):
        taken.clear()
        monkeypatch.setattr("torch.get_num_threads", lambda answer=threads: answer)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if told:
            monkeypatch.setenv("OMP_NUM_THREADS", told)
        compute.keep_to_own_cores.__wrapped__()
        assert taken == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_make_uses_what_the_process_may_use_before_anything_is_installed(tmp_path):
    """-S: without any installed package."""
    one = {"preexec_fn": lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})}
    script = [sys.executable, "-I", "-S", "alutils/system/cores.py"]
    assert subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True, **one).stdout == "1\n"
    makefile = tmp_path / "Makefile"
    makefile.write_text(f"include {ROOT}/Makefile\ncores:\n\t@echo $(CORES)\n")
    command = ["make", "--silent", "-f", makefile, f"PYTHON={sys.executable}", "cores"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, **one).stdout == "1\n"
