"""Error maps beside results: what is in the files, and that there is none of half a result."""

import json

import lightning.pytorch as pl
import nibabel as nib
import numpy as np
import pytest
import torch

from mpunet.inference import Reconstructor
from mpunet.inference.errors import ErrorModel
from mpunet.inference.errors.file import ErrorFile
from mpunet.inference.output_folder import plan_output
from mpunet.inference.writer import ThinVolumeWriter
from mpunet.io.scan_file import open_scan, read_volume
from mpunet.io.scans import PredictLoader, find_scans

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


def network(windows):
    size = (5, *windows.shape[3:])
    return torch.nn.functional.interpolate(windows, size, mode="trilinear", align_corners=True)


def reconstructor(**options):
    torch.manual_seed(0)
    model = ErrorModel().requires_grad_(False).eval()
    model.calibrated *= 10  # so that rounded estimates differ
    return Reconstructor(
        network, n_thick=3, ratio=2, multiple=1, device="cpu", error=model, **options
    )


@pytest.fixture(params=[(1, 1, 4), (-1, 1, -4)])
def scan(request, tmp_path):
    """A scan that is stored from the first slice to the last, or the other way round."""
    voxels = np.random.default_rng(0).normal(-800, 90, (7, 6, 5)).astype(np.int16)
    path = tmp_path / "scans" / "a.nii.gz"
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(voxels, np.diag([*request.param, 1])), path)
    return path


def test_map_and_summary(scan, tmp_path):
    expected = reconstructor().with_error(nib.load(scan))
    source = open_scan(scan)
    slices = reconstructor().stream(source)
    file = ErrorFile(slices, tmp_path / "thin.nii.gz", source)
    images = list(file.images("int16"))
    assert sum(map(len, images)) == 9
    written = nib.load(tmp_path / "thin_error.nii.gz")
    np.testing.assert_array_equal(
        np.asanyarray(written.dataobj), np.asanyarray(expected.error.dataobj)
    )
    assert written.get_data_dtype() == np.int16
    np.testing.assert_array_equal(written.affine, expected.image.affine)
    error, image = (np.asanyarray(part.dataobj) for part in (expected.error, expected.image))
    lung = error[(image >= -950) & (image <= -500)]
    assert file.record() == {
        "mean": pytest.approx(error.mean(), abs=0.01),
        "p95": np.quantile(error, 0.95, method="inverted_cdf"),
        "lung_mean": pytest.approx(lung.mean(), abs=0.01),
        "lung_p95": np.quantile(lung, 0.95, method="inverted_cdf"),
    }


def test_reconstructor_writes_the_map_beside_its_file(scan, tmp_path):
    reconstructor().file(scan, tmp_path / "thin.nii")
    expected = reconstructor().with_error(nib.load(scan))
    for name, image in (("thin.nii", expected.image), ("thin_error.nii.gz", expected.error)):
        np.testing.assert_array_equal(
            np.asanyarray(nib.load(tmp_path / name).dataobj), np.asanyarray(image.dataobj)
        )


def test_estimates_at_another_spacing(scan):
    slices = reconstructor(thin_spacing=1.5).stream(read_volume(scan))
    found = slices.slab_with_error()
    assert found.image.shape == found.error.shape == (11, *read_volume(scan).shape[1:])
    assert (found.error >= 0).all()
    same = reconstructor().stream(read_volume(scan)).slab_with_error()
    ends = (0, -1) if read_volume(scan).frame.flipped[0] is False else (-1, 0)
    np.testing.assert_allclose(found.error[ends[0]], same.error[ends[0]], rtol=1e-4)


class Module(pl.LightningModule):
    broken = False

    def __init__(self):
        super().__init__()
        self.reconstructor = reconstructor()

    def predict_step(self, batch, batch_idx):
        slices = self.reconstructor.stream(batch.volume)
        if self.broken:
            finished = slices._finished

            def fails():
                yield next(finished)
                raise RuntimeError("no more")

            slices._finished = fails()
        return slices


class Data(pl.LightningDataModule):
    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def setup(self, stage):
        self.predict_scans = find_scans(self.folder)

    def predict_dataloader(self):
        return PredictLoader(self.predict_scans)


def predict(scan, output, module, **options):
    trainer = pl.Trainer(
        accelerator="cpu", callbacks=[ThinVolumeWriter(str(output), progress="none", **options)],
        logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    trainer.predict(module, datamodule=Data(scan.parent), return_predictions=False)
    return sorted(p.name for p in output.iterdir()), json.loads(
        (output / "manifest.jsonl").read_text().splitlines()[-1]
    )


def test_predict_writes_both_or_neither(scan, tmp_path):
    broken = Module()
    broken.broken = True
    files, record = predict(scan, tmp_path / "broken", broken)
    assert files == ["manifest.jsonl"]
    assert record["status"] == "failed"
    assert record["error"] is None
    files, record = predict(scan, tmp_path / "thin", Module())
    assert files == ["a.nii.gz", "a_error.nii.gz", "manifest.jsonl"]
    error = np.asanyarray(nib.load(tmp_path / "thin" / "a_error.nii.gz").dataobj)
    assert record["error"]["mean"] == pytest.approx(error.mean(), abs=0.01)


def test_a_failure_leaves_the_earlier_result_with_its_map(scan, tmp_path):
    predict(scan, tmp_path, Module())
    paths = [tmp_path / "a.nii.gz", tmp_path / "a_error.nii.gz"]
    before = [path.read_bytes() for path in paths]
    broken = Module()
    broken.broken = True
    _, record = predict(scan, tmp_path, broken, existing="overwrite")
    assert record["status"] == "failed"
    assert [path.read_bytes() for path in paths] == before


def test_maps_of_two_scans_are_two_files(scan, tmp_path):
    nib.save(nib.load(scan), scan.with_name("a.nii"))
    scans = find_scans(scan.parent)
    assert plan_output(str(tmp_path / "thin"), scans, "skip") == (scans, None)
    todo, problem = plan_output(str(tmp_path / "thin"), scans, "skip", error_maps=True)
    assert todo == []
    assert "a_error.nii.gz, which is that of another scan or result; rename" in problem


def test_unlike_scans_are_told(scan, tmp_path):
    module = Module()
    module.reconstructor.error.strange_limit = 0.01
    module.reconstructor.error.whiten *= 100
    _, record = predict(scan, tmp_path / "thin", module)
    assert "unlike the scans that the error estimate knows: 100%" in record["warning"]
