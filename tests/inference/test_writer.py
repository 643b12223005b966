"""The writer in real Lightning predict runs, on one process and on two."""

import json
import os
from operator import itemgetter

import lightning.pytorch as pl
import nibabel as nib
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mpunet.data.scans import PredictScans, find_scans
from mpunet.inference import writer as writer_module
from mpunet.inference.writer import ThinVolumeWriter

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),  # Lightning's own, with recent torch
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # these scans are tiny
    pytest.mark.filterwarnings("ignore:predict returned None"),  # on purpose: a case that failed
    pytest.mark.filterwarnings("ignore:Total length of `DataLoader` across ranks is zero"),  # on purpose: nothing left to do
]

AFFINE = np.diag([-0.8, -0.8, 4.0, 1])


class Repeat(pl.LightningModule):
    """Each thick slice as often as fits: ratio 2."""

    def predict_step(self, batch, batch_idx):
        return None if batch.volume is None else batch.volume.slab.repeat(2, axis=0)[:-1]


class Scans(pl.LightningDataModule):
    def __init__(self, folder, **loading):
        super().__init__()
        self.folder = folder
        self.loading = loading or {"batch_size": 1, "collate_fn": itemgetter(0)}

    def setup(self, stage):
        self.predict_scans = find_scans(self.folder)

    def predict_dataloader(self):
        return DataLoader(PredictScans(self.predict_scans), **self.loading)


def save(folder, name, seed=0):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).integers(-1000, 1000, (4, 5, 3)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, AFFINE), folder / name)


def predict(folder, writer, *callbacks, loading=None, **options):
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[writer, *callbacks],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )
    trainer.predict(Repeat(), datamodule=Scans(folder, **(loading or {})), return_predictions=False)


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    for seed, name in enumerate(["a.nii.gz", "sub/b.nii", "sub/deep/c.nii.gz"]):
        save(folder, name, seed)
    return folder


@pytest.fixture
def output(tmp_path):
    return tmp_path / "new" / "thin"


@pytest.mark.filterwarnings("ignore:Couldn't infer the batch indices")  # with batch_size=None; the writer needs none
@pytest.mark.parametrize(
    ("precision", "loading"),
    [
        ("32-true", None),
        ("bf16-true", None),
        ("32-true", {"batch_size": None}),
        ("32-true", {"batch_size": None, "num_workers": 1, "multiprocessing_context": "fork"}),
    ],
)
def test_names_subfolders_and_values(scans, output, capsys, precision, loading):
    """However Lightning and the loader pass a case on, it arrives as it was read."""
    writer = ThinVolumeWriter(str(output))
    predict(scans, writer, precision=precision, loading=loading)
    assert names(output) == names(scans)
    assert writer.failures == []
    assert f"3 volumes written to {output}\n" in capsys.readouterr().out
    thick, thin = nib.load(scans / "sub/b.nii"), nib.load(output / "sub/b.nii")
    np.testing.assert_array_equal(np.asanyarray(thin.dataobj), np.asanyarray(thick.dataobj).repeat(2, axis=2)[..., :-1])
    np.testing.assert_allclose(thin.affine, np.diag([-0.8, -0.8, 2, 1]), atol=1e-6)


def test_broken_scans_are_named_with_the_reason(scans, output, capsys):
    (scans / "sub" / "broken.nii.gz").write_bytes(b"hello")
    writer = ThinVolumeWriter(str(output))
    predict(scans, writer)
    assert len(names(output)) == 3
    [failure] = writer.failures
    assert failure.relative == "sub/broken.nii.gz"
    assert "not a NIfTI file" in failure.reason
    out = capsys.readouterr().out
    assert f"3 volumes written to {output}, 1 failed:\n  sub/broken.nii.gz: not a NIfTI file" in out


def test_a_failing_write_does_not_stop_the_others(scans, output, monkeypatch):
    original = writer_module.write_volume

    def full_for_b(path, *args, **options):
        if path.name == "b.nii":
            raise OSError(28, "No space left on device")
        original(path, *args, **options)

    monkeypatch.setattr(writer_module, "write_volume", full_for_b)
    writer = ThinVolumeWriter(str(output))
    predict(scans, writer)
    assert names(output) == ["a.nii.gz", "sub/deep/c.nii.gz"]
    assert [failure.relative for failure in writer.failures] == ["sub/b.nii"]
    assert "No space left on device" in writer.failures[0].reason


class TestExisting:
    @pytest.fixture(autouse=True)
    def already(self, output):
        output.mkdir(parents=True)
        (output / "a.nii.gz").write_bytes(b"already")

    def test_skip(self, scans, output, capsys):
        for _ in range(2):  # the second time nothing is left to do
            predict(scans, ThinVolumeWriter(str(output)))
            assert names(output) == names(scans)
            assert (output / "a.nii.gz").read_bytes() == b"already"
        out = capsys.readouterr().out
        assert f"1 of 3 volumes are already in {output}: skipped." in out
        assert f"3 of 3 volumes are already in {output}: skipped." in out

    def test_overwrite(self, scans, output):
        predict(scans, ThinVolumeWriter(str(output), existing="overwrite"))
        assert nib.load(output / "a.nii.gz").shape == (4, 5, 5)

    def test_error(self, scans, output):
        with pytest.raises(ValueError, match=r"1 of 3 outputs are already there, such as .*a.nii.gz; use --writer.existing"):
            predict(scans, ThinVolumeWriter(str(output), existing="error"))
        assert names(output) == ["a.nii.gz"]


class TestRefused:
    def test_no_folder(self, scans):
        with pytest.raises(ValueError, match=r"output folder for predict, got none; give --writer.output_dir"):
            predict(scans, ThinVolumeWriter())

    def test_onto_the_scans(self, scans):
        before = names(scans)
        with pytest.raises(ValueError, match="would overwrite the scan"):
            predict(scans, ThinVolumeWriter(str(scans / "sub" / "..")))
        with pytest.raises(ValueError, match="is in the input folder"):
            predict(scans, ThinVolumeWriter(str(scans / "thin")))
        assert names(scans) == before

    def test_a_single_file_may_have_its_folder_beside_it(self, scans):
        predict(scans / "a.nii.gz", ThinVolumeWriter(str(scans / "thin")))
        assert names(scans / "thin") == ["a.nii.gz"]
        with pytest.raises(ValueError, match="would overwrite the scan"):
            predict(scans / "a.nii.gz", ThinVolumeWriter(str(scans)))

    def test_not_writable(self, scans, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(ValueError, match="Cannot write to the output folder"):
            predict(scans, ThinVolumeWriter(str(tmp_path / "file" / "thin")))

    def test_without_a_datamodule(self, scans, output):
        trainer = pl.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[ThinVolumeWriter(str(output))]
        )
        loader = DataLoader(PredictScans(find_scans(scans)), batch_size=1, collate_fn=itemgetter(0))
        with pytest.raises(ValueError, match="needs a datamodule with predict_scans"):
            trainer.predict(Repeat(), loader)


def test_no_op_outside_predict(scans, output):
    writer = ThinVolumeWriter()
    writer.setup(pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), Repeat(), "fit")


class Report(pl.Callback):
    """What each rank knows afterwards; runs after the writer."""

    def __init__(self, folder):
        self.folder = folder

    def on_predict_end(self, trainer, pl_module):
        [writer] = [callback for callback in trainer.callbacks if isinstance(callback, ThinVolumeWriter)]
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(writer.failures))


class TestTwoProcesses:
    @pytest.fixture(autouse=True)
    def can_fork(self):
        # Forked processes need no second import of Lightning, which takes longer than all these tests.
        if not torch.distributed.is_available() or not hasattr(os, "fork") or torch.cuda.is_initialized():
            pytest.skip("needs torch.distributed, os.fork and CUDA not yet in use in this process")

    def test_each_scan_once_and_failures_on_every_rank(self, scans, output, tmp_path):
        (scans / "z.nii").write_bytes(b"hello")
        (scans / "sub" / "y.nii").write_bytes(b"hello")
        predict(scans, ThinVolumeWriter(str(output)), Report(tmp_path), strategy="ddp_fork", devices=2)
        assert names(output) == ["a.nii.gz", "sub/b.nii", "sub/deep/c.nii.gz"]
        for rank in (0, 1):
            failures = json.loads((tmp_path / f"{rank}.json").read_text())
            assert [relative for relative, _ in failures] == ["sub/y.nii", "z.nii"]

    def test_fewer_scans_than_devices(self, scans, output):
        with pytest.raises(
            Exception, match=r"at least one scan per device, got 1 to predict on 2 devices; use --trainer.devices 1"
        ):
            predict(scans / "a.nii.gz", ThinVolumeWriter(str(output)), strategy="ddp_fork", devices=2)
