"""Which GPU a job of the batch gets, without any GPU: what counts is CUDA_VISIBLE_DEVICES and what nvidia-smi says."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

WORKFLOW = Path(__file__).resolve().parent.parent / "workflow"
sys.path.insert(0, str(WORKFLOW))

import devices  # noqa: E402

TWO_GPUS = "0, GPU-ab01\\n1, GPU-cd02\\n"


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.setattr(devices.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(devices, "POLL_SECONDS", 0.01)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))  # without this machine's own nvidia-smi
    return monkeypatch


def install_nvidia_smi(folder, says):
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{says}'\n")
    program.chmod(0o755)
    return program


def hold(held, runs_per_gpu):
    place = devices.one_device(runs_per_gpu)
    held.append((place.__enter__()["CUDA_VISIBLE_DEVICES"], place))


def test_jobs_spread_over_the_gpus_then_share_them_and_then_wait(places):
    places.setenv("CUDA_VISIBLE_DEVICES", "GPU-3, GPU-ab/1")
    held = []
    for _ in range(4):
        hold(held, runs_per_gpu=2)
    assert [device for device, _ in held] == ["GPU-3", "GPU-ab/1", "GPU-3", "GPU-ab/1"]
    fifth = threading.Thread(target=hold, args=(held, 2))
    fifth.start()
    fifth.join(0.1)
    assert len(held) == 4
    held[1][1].__exit__(None, None, None)
    fifth.join()
    assert held[4][0] == "GPU-ab/1"
    for i in (0, 2, 3, 4):
        held[i][1].__exit__(None, None, None)


def test_a_killed_job_gives_its_gpu_back(places, tmp_path):
    places.setenv("CUDA_VISIBLE_DEVICES", "0")
    code = "import devices\nwith devices.one_device(1):\n    print('held', flush=True)\n    input()"
    env = {**os.environ, "PYTHONPATH": str(WORKFLOW), "TMPDIR": str(tmp_path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], env=env, text=True, **pipes) as other:
        assert other.stdout.readline() == "held\n"
        held = []
        waiting = threading.Thread(target=hold, args=(held, 1))
        waiting.start()
        waiting.join(0.1)
        assert held == []
        other.kill()
        waiting.join()
    assert held[0][0] == "0"


def test_each_slurm_allocation_has_devices_of_its_own(places):
    places.setenv("CUDA_VISIBLE_DEVICES", "0")
    held = []
    for job in ("17", "18"):
        places.setenv("SLURM_JOB_ID", job)
        hold(held, 1)
    assert [device for device, _ in held] == ["0", "0"]


VISIBLE = {
    "": [], "-1": [], "NoDevFiles": [], "1,-1,0": ["1"], "0,none,1": ["0"], " 1, 0": ["1", "0"], "1st": ["1"],
    "0,1,0": [], "GPU-ab, GPU-cd": ["GPU-ab", "GPU-cd"], "GPU-ab,1": ["GPU-ab"], "1,GPU-ab": ["1"],
    "GPU-ab,GPU-ab": [], "MIG-ab/1/0": ["MIG-ab/1/0"],
}  # fmt: skip


def test_the_visible_devices_are_cuda_s(places, tmp_path):
    """Without nvidia-smi, and with it to ask."""
    for _ in range(2):
        for listed, expected in VISIBLE.items():
            places.setenv("CUDA_VISIBLE_DEVICES", listed)
            assert devices.visible_devices() == expected, listed
        install_nvidia_smi(tmp_path, TWO_GPUS)


@pytest.mark.parametrize("listed", ["2", "GPU-ff", "GPU-", "7,0"])
def test_a_device_that_is_not_there_is_none(listed, places, tmp_path):
    places.setenv("CUDA_VISIBLE_DEVICES", listed)
    install_nvidia_smi(tmp_path, TWO_GPUS)
    with devices.one_device(1) as environment:
        assert environment == {}


def test_without_a_list_nvidia_smi_is_asked(places, tmp_path):
    program = install_nvidia_smi(tmp_path, TWO_GPUS)
    assert devices.visible_devices() == ["0", "1"]
    with devices.one_device(1) as environment:
        assert environment == {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    program.write_text("#!/bin/sh\necho no devices were found\nexit 6\n")
    with devices.one_device(1) as environment:
        assert environment == {} and devices.visible_devices() == []
