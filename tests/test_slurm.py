"""The batch on a Slurm cluster: a real one, of this machine alone (see slurm_cluster.sh)."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = ROOT / "tests" / "slurm_cluster.sh"

missing = [name for name in ("munged", "slurmctld", "slurmd") if not shutil.which(name, path="/usr/sbin:/sbin")]
pytestmark = [
    pytest.mark.skipif(bool(missing), reason=f"no {', '.join(missing)}: apt-get install slurm-wlm munge"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start Slurm's daemons"),
]


@pytest.fixture
def cluster(tmp_path):
    folder = tmp_path / "slurm"
    try:
        started = subprocess.run([CLUSTER, "start", folder], capture_output=True, text=True)
        assert started.returncode == 0, started.stderr
        yield folder
    finally:
        subprocess.run([CLUSTER, "stop", folder], check=True)


def test_a_run_is_a_slurm_job_with_a_gpu(cluster, tmp_path):
    overrides = "{n_synthetic: [24, 8, 8], cold_start: 8, query_size: 8, n_queries: 1, epochs: 1}"
    target = "2024_05_01/04_image_al/random-seed1/done.json"  # not the number 20240501
    options = ["--slurm-no-account", "--slurm-status-command", "squeue", "--seconds-between-status-checks", "1"]
    options += ["--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "5"]
    command = [sys.executable, "-m", "snakemake", target, "--snakefile", ROOT / "Snakefile", *options]
    command += ["--profile", ROOT / "workflow" / "slurm", "--default-resources", "gpu=1", "mem_mb=1000", "runtime=5"]
    command += ["--config", "strategies=random", "seeds=1", f"overrides={overrides}", "runs=2024_05_01"]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout

    folder = (tmp_path / target).parent
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    (job,) = subprocess.run(
        ["scontrol", "show", "jobs", "--oneliner"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert "JobState=COMPLETED" in job and "NumCPUs=1 " in job and re.search(r"Tres\w+=gres:gpu:1", job), job
