"""Fixtures that several tests share."""

import os
from pathlib import Path

import pytest
import torch
from helpers import position_slab, save

if "PYTEST_XDIST_WORKER" in os.environ:
    # One core for each worker and the processes that it starts: more threads than cores wait.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

# Where examples/get_data.py has put it, or beside the repository.
REAL_CT = Path(os.environ.get("MPUNET_CT") or Path(__file__).parents[2] / "shared" / "ct")


@pytest.fixture(scope="session")
def shared_ct():
    """The folder of real CT; skips where it is missing."""
    if not REAL_CT.is_dir():
        pytest.skip(
            f"needs the real CT that examples/get_data.py makes; MPUNET_CT names its folder, and "
            f"there is none at {REAL_CT}"
        )
    return REAL_CT


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """A checkpoint of a tiny MPU-Net that was not trained."""
    import lightning as L

    import mpunet

    path = tmp_path_factory.mktemp("net") / "untrained.ckpt"
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    trainer.strategy.connect(mpunet.MPUNetModule(mpunet.MPUNet(widths=(2, 2, 2, 2, 2, 2))))
    trainer.save_checkpoint(path, weights_only=True)
    return path


@pytest.fixture
def thin_folder(tmp_path):
    """Four thin position volumes (19, 8, 10) of 1 mm slices, of patients p0 to p3."""
    for i in range(4):
        save(tmp_path / "thin_only" / f"p{i}.nii.gz", position_slab((19, 8, 10)) + i)
    return tmp_path / "thin_only"


@pytest.fixture
def pair_folder(tmp_path):
    """Two pairs at ratio 3: thin position volumes (19, 8, 10) and every third of their slices."""
    for i in range(2):
        slab = position_slab((19, 8, 10)) + i
        save(tmp_path / "pairs" / "thin" / f"p{i}.nii.gz", slab)
        save(tmp_path / "pairs" / "thick" / f"p{i}.nii.gz", slab[::3], spacing=(3.0, 0.7, 0.7))
    return tmp_path / "pairs"


@pytest.fixture(scope="session")
def browser():
    """One headless Chromium for all tests of pages."""
    from browser import Browser, find_chromium

    command = find_chromium()
    if command is None:
        pytest.skip("needs Chromium or Chrome")
    browser = Browser(command)
    yield browser
    browser.close()
