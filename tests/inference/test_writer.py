"""The writer in real Lightning predict runs, on one process and on two."""

import errno
import json
import os
from types import SimpleNamespace

import lightning.pytorch as pl
import nibabel as nib
import numpy as np
import pytest
import torch

from mpunet.inference import result as result_module
from mpunet.inference import writer as writer_module
from mpunet.inference.reconstruct import ThinSlices
from mpunet.inference.writer import ThinVolumeWriter
from mpunet.io.scans import PredictLoader, find_scans, share_out

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:.*isinstance.treespec, LeafSpec:FutureWarning"
    ),  # Lightning's own, with recent torch
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # these scans are tiny
    pytest.mark.filterwarnings("ignore:predict returned None"),  # on purpose: a case that failed
    pytest.mark.filterwarnings(
        "ignore:Total length of `PredictLoader` across ranks is zero"
    ),  # on purpose: nothing left to do
]

AFFINE = np.diag([-0.8, -0.8, 4.0, 1])


class Repeat(pl.LightningModule):
    """Each thick slice as often as fits: ratio 2."""

    def predict_step(self, batch, batch_idx):
        return None if batch.volume is None else np.stack(list(batch.volume)).repeat(2, axis=0)[:-1]


class Scans(pl.LightningDataModule):
    def __init__(self, folder):
        super().__init__()
        self.folder = folder
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def setup(self, stage):
        self.predict_scans = find_scans(self.folder)

    def predict_dataloader(self):
        return PredictLoader(
            share_out(self.predict_scans, self.trainer.world_size)[self.trainer.global_rank]
        )


def save(folder, name, seed=0):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).integers(-1000, 1000, (4, 5, 3)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, AFFINE), folder / name)


def predict(folder, writer, *callbacks, model=None, **options):
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[writer, *callbacks],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )
    trainer.predict(model or Repeat(), datamodule=Scans(folder), return_predictions=False)


def names(folder):
    """Files of a folder, but for the manifest."""
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(name for name in paths if name != "manifest.jsonl")


def manifest(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    for seed, name in enumerate(["a.nii.gz", "sub/b.nii", "sub/deep/c.nii.gz"]):
        save(folder, name, seed)
    return folder


@pytest.fixture
def output(tmp_path):
    return tmp_path / "new" / "thin"


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_names_subfolders_and_values(scans, output, capsys, precision):
    """However Lightning passes a case on, it arrives as it was read."""
    writer = ThinVolumeWriter(str(output))
    predict(scans, writer, precision=precision)
    assert names(output) == names(scans)
    assert writer.failures == []
    assert f"3 volumes written to {output}\n" in capsys.readouterr().out
    thick, thin = nib.load(scans / "sub/b.nii"), nib.load(output / "sub/b.nii")
    np.testing.assert_array_equal(
        np.asanyarray(thin.dataobj), np.asanyarray(thick.dataobj).repeat(2, axis=2)[..., :-1]
    )
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


def failing(monkeypatch, name, error):
    """Let the write of one file fail."""
    original = result_module.write_slices

    def write_slices(path, *args, **options):
        if path.name == name:
            raise error
        original(path, *args, **options)

    monkeypatch.setattr(result_module, "write_slices", write_slices)


def test_a_failing_write_does_not_stop_the_others(scans, output, monkeypatch):
    failing(monkeypatch, "b.nii", OSError(errno.EIO, "Input/output error"))
    writer = ThinVolumeWriter(str(output))
    predict(scans, writer)
    assert names(output) == ["a.nii.gz", "sub/deep/c.nii.gz"]
    [failure] = writer.failures
    assert failure.relative == "sub/b.nii"
    assert failure.reason == f"cannot write {output}/sub/b.nii: Input/output error"
    assert not writer.disk_full


def test_a_failing_network_does_not_stop_the_others(scans, output):
    class Broken(pl.LightningModule):
        def predict_step(self, batch, batch_idx):
            def finished():
                yield torch.zeros(2, 5, 4)
                if batch.scan.path.name == "b.nii":
                    raise RuntimeError("CUDA error:\n an illegal memory access")
                yield torch.zeros(3, 5, 4)

            return ThinSlices(finished(), (3, 5, 4), 2, last_first=False)

    writer = ThinVolumeWriter(str(output))
    predict(scans, writer, model=Broken())
    assert names(output) == ["a.nii.gz", "sub/deep/c.nii.gz"]
    assert [failure.reason for failure in writer.failures] == [
        "RuntimeError: CUDA error: an illegal memory access"
    ]


class TestFullDisk:
    @pytest.mark.parametrize(
        ("free", "expected"), [(100, ["a.nii.gz"]), (10**9, ["a.nii.gz", "sub/deep/c.nii.gz"])]
    )
    def test_nothing_is_computed_for_a_full_disk(self, scans, output, monkeypatch, free, expected):
        failing(monkeypatch, "b.nii", OSError(errno.ENOSPC, "No space left on device"))
        usage = writer_module.shutil.disk_usage(scans)
        monkeypatch.setattr(
            writer_module.shutil, "disk_usage", lambda path: usage._replace(free=free)
        )
        writer = ThinVolumeWriter(str(output))
        predict(scans, writer)
        assert names(output) == expected
        assert writer.disk_full
        reasons = [failure.reason for failure in writer.failures]
        assert reasons[0].endswith(
            "b.nii: No space left on device; "
            "free space and start again, finished volumes are skipped"
        )
        assert (
            reasons[1:]
            == [f"[Errno 28] not tried: the disk of {output} is full"][: 3 - 1 - len(expected)]
        )


class TestManifest:
    def test_one_line_for_each_scan(self, scans, output):
        (scans / "z.nii").write_bytes(b"hello")
        predict(scans, ThinVolumeWriter(str(output)))
        records = manifest(output)
        assert [record["file"] for record in records] == [
            "a.nii.gz",
            "sub/b.nii",
            "sub/deep/c.nii.gz",
            "z.nii",
        ]
        assert [record["status"] for record in records] == ["written"] * 3 + ["failed"]
        assert records[0]["shape"] == [4, 5, 5]
        assert records[0]["spacing"] == [0.8, 0.8, 2]
        assert records[0]["reason"] is None
        assert records[0]["seconds"] > 0
        assert records[3]["reason"].startswith("not a NIfTI file")
        assert records[3]["shape"] is None

    def test_results_that_were_there_before(self, scans, output, capsys):
        output.mkdir(parents=True)
        (output / "a.nii.gz").write_bytes(b"mine")
        for _ in range(2):
            predict(scans, ThinVolumeWriter(str(output)))
        assert [(record["file"], record["status"]) for record in manifest(output)] == [
            ("sub/b.nii", "written"), ("sub/deep/c.nii.gz", "written"), ("a.nii.gz", "skipped"),
        ]  # fmt: skip
        assert "another checkpoint" not in capsys.readouterr().out

    def test_results_of_a_different_stride_are_told(self, scans, output, capsys):
        class Strided(Repeat):
            def __init__(self, stride):
                super().__init__()
                self.reconstructor = SimpleNamespace(
                    engine=SimpleNamespace(stride=stride, tile=(64, 64))
                )

        predict(scans, ThinVolumeWriter(str(output)), model=Strided(1))
        assert {(record["stride"], *record["tile"]) for record in manifest(output)} == {(1, 64, 64)}
        predict(scans, ThinVolumeWriter(str(output)), model=Strided(1))
        assert "another" not in capsys.readouterr().out
        predict(scans, ThinVolumeWriter(str(output)), model=Strided(7))
        assert (
            "3 of the skipped volumes were made with another checkpoint, stride, thin_spacing"
            in capsys.readouterr().out
        )

    def test_results_of_another_thin_spacing_are_told(self, scans, output, capsys):
        class Spaced(Repeat):
            def __init__(self, thin_spacing):
                super().__init__()
                self.reconstructor = SimpleNamespace(engine=None, thin_spacing=thin_spacing)

        predict(scans, ThinVolumeWriter(str(output)), model=Spaced(1.0))
        assert {record["thin_spacing"] for record in manifest(output)} == {1.0}
        predict(scans, ThinVolumeWriter(str(output)), model=Spaced(1.0))
        assert "skipped volumes were made" not in capsys.readouterr().out
        predict(scans, ThinVolumeWriter(str(output)), model=Spaced(None))
        assert "3 of the skipped volumes were made with another" in capsys.readouterr().out

    def test_many_failures_are_not_all_printed(self, scans, output, capsys):
        for i in range(30):
            (scans / f"x{i}.nii").write_bytes(b"hello")
        predict(scans, ThinVolumeWriter(str(output)))
        out = capsys.readouterr().out
        assert "3 volumes written" in out
        assert out.count("not a NIfTI file") == 20
        assert f"... and 10 more, see {output}/manifest.jsonl" in out
        assert sum(record["status"] == "failed" for record in manifest(output)) == 30


def test_what_killed_runs_left_is_cleared_away(scans, output):
    output.mkdir(parents=True)
    (output / ".a.0123abcd.partial.nii.gz").write_bytes(b"half")
    (output / ".manifest.rank1.jsonl").write_text('{"file": "old.nii", "status": "written"}\n')
    predict(scans, ThinVolumeWriter(str(output)))
    assert names(output) == names(scans)
    assert manifest(output)[0] == {"file": "old.nii", "status": "written"}


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
        with pytest.raises(
            ValueError,
            match=r"1 of 3 outputs already exist, such as .*a.nii.gz; use --writer.existing",
        ):
            predict(scans, ThinVolumeWriter(str(output), existing="error"))
        assert names(output) == ["a.nii.gz"]


class TestRefused:
    def test_no_folder(self, scans):
        with pytest.raises(
            ValueError, match=r"output folder for predict, got none; give --writer.output_dir"
        ):
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
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            callbacks=[ThinVolumeWriter(str(output))],
        )
        loader = PredictLoader(find_scans(scans))
        with pytest.raises(ValueError, match="needs a datamodule with predict_scans"):
            trainer.predict(Repeat(), loader)


def test_no_op_outside_predict(scans, output):
    writer = ThinVolumeWriter()
    writer.setup(
        pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), Repeat(), "fit"
    )


class Report(pl.Callback):
    """What each rank knows afterwards; runs after the writer."""

    def __init__(self, folder):
        self.folder = folder

    def teardown(self, trainer, pl_module, stage):
        [writer] = [
            callback for callback in trainer.callbacks if isinstance(callback, ThinVolumeWriter)
        ]
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(writer.failures))


class TestTwoProcesses:
    @pytest.fixture(autouse=True)
    def can_fork(self):
        # Forked processes need no second import of Lightning, which is slower than all these tests.
        if (
            not torch.distributed.is_available()
            or not hasattr(os, "fork")
            or torch.cuda.is_initialized()
        ):
            pytest.skip("needs torch.distributed, os.fork and CUDA not yet in use in this process")

    def test_each_scan_once_and_failures_on_every_rank(self, scans, output, tmp_path):
        (scans / "z.nii").write_bytes(b"hello")
        (scans / "sub" / "y.nii").write_bytes(b"hello")
        predict(
            scans, ThinVolumeWriter(str(output)), Report(tmp_path), strategy="ddp_fork", devices=2
        )
        assert names(output) == ["a.nii.gz", "sub/b.nii", "sub/deep/c.nii.gz"]
        assert sorted(record["file"] for record in manifest(output)) == names(scans)
        for rank in (0, 1):
            failures = json.loads((tmp_path / f"{rank}.json").read_text())
            assert [relative for relative, _ in failures] == ["sub/y.nii", "z.nii"]

    def test_fewer_scans_than_devices(self, scans, output, tmp_path):
        predict(
            scans / "a.nii.gz",
            ThinVolumeWriter(str(output)),
            Report(tmp_path),
            strategy="ddp_fork",
            devices=2,
        )
        assert names(output) == ["a.nii.gz"]
        assert [record["file"] for record in manifest(output)] == ["a.nii.gz"]

    def test_nothing_left_to_do(self, scans, output, tmp_path):
        predict(scans, ThinVolumeWriter(str(output)))
        predict(
            scans, ThinVolumeWriter(str(output)), Report(tmp_path), strategy="ddp_fork", devices=2
        )
        assert json.loads((tmp_path / "1.json").read_text()) == []
