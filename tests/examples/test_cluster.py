"""examples/cluster: the scripts are run as they stand, with an srun and a torchrun of our own.

These two only note what they are called with; the processes that they would start, one on each of
two nodes, are then started here.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pytest
from helpers import position_slab, save
from processes import Command, free_port

FOLDER = Path(__file__).parents[2] / "examples" / "cluster"
NOTE = f"#!{sys.executable}\nimport json, os, sys\n" + (
    "json.dump(sys.argv[1:], open(os.environ['NOTE'], 'w'))\n"
)


@pytest.fixture
def scans(tmp_path):
    for i in range(5):
        save(tmp_path / "scans" / f"p{i}.nii.gz", position_slab((9, 16, 16)), spacing=(5, 1, 1))
    return tmp_path / "scans"


def words_of(script, tmp_path, launcher, *words, **variables):
    """What a script calls its launcher with."""
    (tmp_path / launcher).write_text(NOTE)
    (tmp_path / launcher).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    variables |= {"PATH": path, "NOTE": str(tmp_path / "note")}
    subprocess.run(["bash", FOLDER / script, *words], check=True, env={**os.environ, **variables})
    return json.loads((tmp_path / "note").read_text())


def whole(scans, thin, started):
    """Each scan once, by two processes."""
    ended = [process.wait() for process in started]
    assert [process.status for process in ended] == [0, 0], ended
    names = sorted(path.name for path in scans.iterdir())
    assert sorted(path.name for path in thin.glob("*.nii.gz")) == names
    lines = [json.loads(line) for line in (thin / "manifest.jsonl").read_text().splitlines()]
    assert sorted(line["file"] for line in lines) == names
    assert {line["status"] for line in lines} == {"written"}
    assert nib.load(thin / names[0]).shape == (16, 16, 41)
    assert "5 volumes written" in "".join(process.out for process in ended)


@pytest.mark.skipif(sys.platform == "win32", reason="SLURM runs on Linux")
def test_slurm(scans, untrained, tmp_path):
    thin = tmp_path / "thin"
    options = ["--checkpoint", untrained, "--device", "cpu"]
    job = {"SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NUM_NODES": "2"}  # what sbatch sets
    words = words_of("predict.sbatch", tmp_path, "srun", scans, thin, *options, **job)
    assert words[0] == "mpunet"
    job |= {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "mpunet", "SLURM_NTASKS": "2"}
    job |= {"SLURM_NNODES": "2", "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NODELIST": "127.0.0.1"}
    job["MASTER_PORT"] = free_port()
    tasks = [{"SLURM_PROCID": str(i), "SLURM_NODEID": str(i), "SLURM_LOCALID": "0"} for i in (0, 1)]
    whole(scans, thin, [Command(words[1:], {**job, **task}) for task in tasks])


@pytest.mark.skipif(sys.platform == "win32", reason="a script for bash")
def test_torchrun(scans, untrained, tmp_path):
    thin, started = tmp_path / "thin", []
    port = free_port()
    for node in ("0", "1"):
        place = {"FIRST": "127.0.0.1", "PORT": port, "NODES": "2", "NODE": node, "DEVICES": "1"}
        options = ["--checkpoint", untrained, "--device", "cpu"]
        script = "predict_torchrun.sh"
        words = words_of(script, tmp_path, "torchrun", scans, thin, *options, **place)
        # The real torchrun starts a Python that imports Lightning anew, which takes seconds.
        end = words.index("-m")
        given = dict(zip(words[:end:2], words[1:end:2], strict=True))
        assert given == {
            "--nnodes": "2", "--node_rank": node, "--nproc_per_node": "1",
            "--master_addr": "127.0.0.1", "--master_port": port,
        }  # fmt: skip
        assert words[end + 1] == "mpunet"
        process = {"RANK": node, "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
        process |= {"GROUP_RANK": node, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        process["TORCHELASTIC_RUN_ID"] = "test"
        started.append(Command(words[end + 2 :], process))
    whole(scans, thin, started)
