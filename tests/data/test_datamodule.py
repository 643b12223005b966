"""The data module: crops by seed, epoch and rank, whole cases, and input that it refuses."""

from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from helpers import position_slab, save
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from mpunet.data.crops import CropSampler
from mpunet.data.datamodule import ThickThinDataModule
from mpunet.slices.simulate import thicken

SHAPE = (19, 8, 10)
SLAB = position_slab(SHAPE)


@pytest.fixture
def make(tmp_path):
    """A data module with a cache of its own, for windows of 4 at ratio 3."""

    def make(**options):
        given = {
            "n_thick": 4,
            "ratio": 3,
            "crop": (4, 6),
            "num_workers": 0,
            "cache_dir": str(tmp_path / "cache"),
        }
        return ThickThinDataModule(
            **given | {key: str(v) if key.endswith("dir") else v for key, v in options.items()}
        )

    return make


def attach(data, *, fn="fit", rank=0, world_size=1, trained=0, **net):
    """What the data module asks a trainer for."""
    progress = SimpleNamespace(total=SimpleNamespace(processed=trained))
    data.trainer = SimpleNamespace(
        world_size=world_size,
        global_rank=rank,
        state=SimpleNamespace(fn=TrainerFn(fn)),
        lightning_module=SimpleNamespace(net=SimpleNamespace(**net)),
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
    )
    return data


class Seen(L.LightningModule):
    """Trains on batches as any module does, and remembers which they were."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.batches = []

    def training_step(self, batch, _):
        self.batches.append(batch["thin"].double().sum().item())
        return self.layer(batch["thin"].mean()[None]).sum()

    def validation_step(self, batch, _):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def train(data, folder, steps, **options):
    """Sums of the batches that were trained on; a checkpoint after each."""
    module = Seen()
    quiet = {
        "logger": False,
        "limit_val_batches": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    saved = ModelCheckpoint(
        dirpath=folder,
        save_last=True,
        save_top_k=0,
        every_n_train_steps=1,
        enable_version_counter=False,
    )
    trainer = L.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", callbacks=[saved], **quiet
    )
    trainer.fit(module, datamodule=data, **options)
    return module.batches


def fitted(data):
    data.prepare_data()
    data.setup("fit")
    return data


def batches(data, epoch=0):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


class TestCrops:
    def test_batches(self, make, thin_folder):
        data = fitted(make(train_dir=thin_folder, crops_per_epoch=10, batch_size=3))
        found = batches(data)
        assert len(found) == 3  # the tenth crop makes no batch
        for batch in found:
            assert {key: (tuple(t.shape), t.dtype) for key, t in batch.items()} == {
                "thick": ((3, 1, 4, 4, 6), torch.float32),
                "thin": ((3, 1, 10, 4, 6), torch.float32),
                "lung": ((3, 1, 10, 4, 6), torch.float32),
            }
            assert 0 <= batch["thin"].min() <= batch["thin"].max() <= 1

    def test_pairs_come_as_they_are(self, make, pair_folder):
        data = fitted(make(train_dir=pair_folder, crops_per_epoch=6))
        for batch in batches(data):
            torch.testing.assert_close(batch["thick"], batch["thin"][:, :, ::3], rtol=0, atol=0)

    def test_the_same_whatever_the_workers(self, make, thin_folder):
        data = fitted(make(train_dir=thin_folder, crops_per_epoch=8, batch_size=2))
        alone = batches(data)
        data.num_workers = 2
        for a, b in zip(alone, batches(data), strict=True):
            for key, tensor in a.items():
                torch.testing.assert_close(tensor, b[key], rtol=0, atol=0)

    def test_epochs_and_seeds_differ(self, make, thin_folder):
        data = fitted(make(train_dir=thin_folder, crops_per_epoch=5))
        found = [b["thin"] for epoch in (0, 1) for b in batches(data, epoch)]
        data.seed = 1
        found += [b["thin"] for b in batches(data)]
        assert not any(torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])
        data.seed = 0
        torch.testing.assert_close(batches(data, 1)[2]["thin"], found[7], rtol=0, atol=0)

    def test_all_cases_are_drawn_equally_often(self, make, thin_folder):
        crops = fitted(make(train_dir=thin_folder, crops_per_epoch=400)).train_dataloader().dataset
        drawn = []

        def record(data):
            drawn.append(int(data["thin"][0, 0, 0]) + 1000)
            return dict.fromkeys(("thick", "thin", "lung"))

        record.set_random_state = lambda seed: None
        crops.transforms = record
        for item in range(len(crops)):
            crops[item]
        # Volume i is the position volume plus i HU. A quarter of 400 is 100, with a standard
        # deviation of 8.7; three of them are allowed.
        assert len(drawn) == 400
        assert all(74 < drawn.count(i) < 126 for i in range(4))

    def test_ranks_share_what_comes_next(self, make, thin_folder):
        data = fitted(make(train_dir=thin_folder, crops_per_epoch=9, batch_size=2))
        for trained in (0, 2, 7):
            shares = []
            for rank in (0, 1):
                sampler = (
                    attach(data, rank=rank, world_size=2, trained=trained)
                    .train_dataloader()
                    .sampler
                )
                assert isinstance(sampler, CropSampler)
                assert len(sampler) == 4
                shares.append(set(sampler))
            assert not shares[0] & shares[1]
            assert shares[0] | shares[1] == set(range(4 * trained, 4 * trained + 8))

    def test_an_epoch_without_a_batch_is_refused(self, make, thin_folder):
        data = fitted(make(train_dir=thin_folder, crops_per_epoch=7, batch_size=4))
        assert len(batches(data)) == 1
        with pytest.raises(
            ValueError,
            match=r"at least batch_size x processes = 4 x 2, got 7: an epoch would have no batch",
        ):
            attach(data, rank=0, world_size=2).train_dataloader()

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize(
        "stop", [3, 4, 6]
    )  # in the first epoch of four batches, at its end, in the second
    def test_resumed_training_sees_the_crops_that_were_next(
        self, make, thin_folder, tmp_path, stop, workers
    ):
        options = {
            "train_dir": thin_folder,
            "crops_per_epoch": 8,
            "batch_size": 2,
            "num_workers": workers,
        }
        whole = train(make(**options), tmp_path, 9)
        assert len(set(whole)) == 9
        assert train(make(**options), tmp_path, stop) == whole[:stop]
        assert train(make(**options), tmp_path, 9, ckpt_path=tmp_path / "last.ckpt") == whole[stop:]

    def test_thick_series_are_left_out(self, make, tmp_path):
        for name, spacing in (("train/a", 1.0), ("train/b", 2.5), ("val/c", 2.5)):
            save(tmp_path / f"{name}.nii.gz", SLAB, spacing=(spacing, 0.7, 0.7))
        data = fitted(
            make(train_dir=tmp_path / "train", val_dir=tmp_path / "val", max_thin_spacing=1.5)
        )
        assert [case.name for case in data.cases["train"]] == ["a"]
        assert [case.name for case in data.cases["val"]] == ["c"]
        with pytest.raises(
            ValueError, match=r"at most 0.5 mm apart \(max_thin_spacing\): a 1.00 mm, b 2.50 mm"
        ):
            fitted(make(train_dir=tmp_path / "train", max_thin_spacing=0.5))


class TestWholeVolumes:
    def test_simulated(self, make, thin_folder):
        data = make(val_dir=thin_folder)
        attach(data, fn="validate").prepare_data()
        data.setup("validate")
        cases = list(data.val_dataloader())
        assert [(case["name"], case["index"]) for case in cases] == [(f"p{i}", i) for i in range(4)]
        for i, case in enumerate(cases):
            np.testing.assert_array_equal(case["thin"], SLAB + i)
            np.testing.assert_allclose(case["thick"], thicken(SLAB + i, 3), atol=1e-3)
            assert case["thick"].shape == (7, 8, 10)
            assert case["lung"].dtype == torch.bool
            assert case["lung"].shape == SHAPE
            assert case["spacing"] == pytest.approx((1.0, 0.7, 0.7))

    def test_thin_slices_past_the_last_thick_one_are_cut(self, make, thin_folder):
        data = make(test_dir=thin_folder, ratio=4, profile="box")
        attach(data, fn="test").prepare_data()
        data.setup("test")
        case = next(iter(data.test_dataloader()))
        assert [case[key].shape[0] for key in ("thick", "thin", "lung")] == [5, 17, 17]
        np.testing.assert_allclose(case["thick"], thicken(SLAB, 4, profile="box"), atol=1e-3)

    def test_pairs(self, make, pair_folder):
        data = make(test_dir=pair_folder)
        data.setup("test")
        for i, case in enumerate(data.test_dataloader()):
            np.testing.assert_array_equal(case["thick"], SLAB[::3] + i)
            np.testing.assert_array_equal(case["thin"], SLAB + i)
            assert case["thick"].dtype == case["thin"].dtype == torch.float32


class TestFolders:
    def test_split_by_patient(self, make, thin_folder):
        data = make(data_dir=thin_folder, split=(0.5, 0.25, 0.25))
        data.setup("fit")
        data.setup("test")
        names = {part: [case.name for case in cases] for part, cases in data.cases.items()}
        assert {part: len(found) for part, found in names.items()} == {
            "train": 2,
            "val": 1,
            "test": 1,
        }
        assert sorted(name for part in names.values() for name in part) == ["p0", "p1", "p2", "p3"]

    def test_patients_stay_together(self, make, tmp_path):
        for name in ("p0_a", "p0_b", "p1_a", "p2_a"):
            save(tmp_path / "scans" / f"{name}.nii.gz", SLAB)
        for seed in range(5):
            data = make(
                data_dir=tmp_path / "scans",
                split=(0.4, 0.3, 0.3),
                split_seed=seed,
                patient_pattern="(p.)_",
            )
            data.setup("fit")
            data.setup("test")
            parts = [{case.name[:2] for case in cases} for cases in data.cases.values()]
            assert [len(part) for part in parts] == [1, 1, 1]

    def test_fit_without_validation(self, make, thin_folder):
        data = fitted(make(train_dir=thin_folder))
        assert set(data.cases) == {"train"}
        assert len(data.val_dataloader()) == 0

    def test_prepare_data_fills_the_cache(self, make, thin_folder, monkeypatch):
        data = make(train_dir=thin_folder)
        data.prepare_data()
        monkeypatch.setattr(
            "mpunet.data.cache.preparation.read_volume", None
        )  # setup may read no scan again
        data.setup("fit")
        assert len(data.cases["train"]) == 4

    @pytest.mark.parametrize(
        ("options", "stage", "reason"),
        [
            ({}, "fit", "a folder for fit: give train_dir, or data_dir"),
            ({"train_dir": "thin_only"}, "validate", "a folder for validate: give val_dir"),
            ({"val_dir": "thin_only"}, "test", "a folder for test: give test_dir"),
            ({"train_dir": "thin_only"}, "predict", "give predict_dir"),
            ({"train_dir": "gone"}, "fit", r"found nothing at .*gone"),
            ({"train_dir": "thin_only", "val_dir": "gone"}, "fit", r"found nothing at .*gone"),
            ({"predict_dir": "gone"}, "predict", r"found nothing at .*gone"),
            (
                {"data_dir": "thin_only", "split": (0.8, 0.2, 0)},
                "test",
                r"leaves no case for test: give test a fraction",
            ),
            (
                {"data_dir": "thin_only", "split": (0.8, 0.1, 0.2)},
                "fit",
                "fractions of at least 0 with sum 1",
            ),
        ],
    )
    def test_refused(self, make, thin_folder, options, stage, reason):
        root = thin_folder.parent
        data = make(**{key: root / v if key.endswith("dir") else v for key, v in options.items()})

        def run():
            attach(data, fn=stage).prepare_data()
            data.setup(stage)

        with pytest.raises(ValueError, match=reason):
            run()

    def test_two_ways_at_once(self, make, thin_folder):
        with pytest.raises(
            ValueError, match=r"Give data_dir, which is split, or train_dir, .*not both"
        ):
            make(data_dir=thin_folder, val_dir=thin_folder)

    def test_a_broken_scan_stops_training_with_its_name(self, make, thin_folder):
        (thin_folder / "broken.nii.gz").write_bytes(b"no scan")
        with pytest.raises(ValueError, match=r"broken.nii.gz: not a NIfTI file"):
            make(train_dir=thin_folder).prepare_data()


class TestGeometry:
    def test_taken_from_the_network(self, make, thin_folder):
        data = attach(
            make(train_dir=thin_folder, n_thick=None, ratio=None, crops_per_epoch=1),
            n_thick=3,
            ratio=2,
        )
        (batch,) = batches(fitted(data))
        assert (batch["thick"].shape[2], batch["thin"].shape[2]) == (3, 5)

    def test_default_is_the_papers(self, make, thin_folder):
        (batch,) = batches(
            fitted(make(train_dir=thin_folder, n_thick=None, ratio=None, crops_per_epoch=1))
        )
        assert (batch["thick"].shape[2], batch["thin"].shape[2]) == (8, 36)

    @pytest.mark.parametrize("given", [{"n_thick": 8, "ratio": 3}, {"n_thick": 4, "ratio": 5}])
    def test_must_agree_with_the_network(self, make, thin_folder, given):
        data = attach(make(train_dir=thin_folder, **given), n_thick=4, ratio=3)
        with pytest.raises(
            ValueError,
            match=r"The network has (n_thick = 4|ratio = 3), the data (n_thick = 8|ratio = 5)",
        ):
            fitted(data).train_dataloader()


class TestPredict:
    def test_broken_files_come_with_their_error(self, make, tmp_path):
        save(tmp_path / "scans" / "a.nii.gz", SLAB)
        save(tmp_path / "scans" / "sub" / "not_hu.nii.gz", SLAB + 1000)
        (tmp_path / "scans" / "broken.nii").write_bytes(b"no scan")
        data = make(predict_dir=tmp_path / "scans")
        attach(data, fn="predict").prepare_data()
        data.setup("predict")
        cases = {str(case.scan.relative): case for case in data.predict_dataloader()}
        np.testing.assert_array_equal(list(cases["a.nii.gz"].volume), SLAB)
        assert cases["a.nii.gz"].error is None
        assert cases["broken.nii"].error.startswith("broken.nii: not a NIfTI file")
        assert "are not HU" in cases["sub/not_hu.nii.gz"].error
        assert not (tmp_path / "cache").exists()

    def test_what_is_not_hu_can_be_let_in(self, make, tmp_path):
        save(tmp_path / "scans" / "not_hu.nii.gz", SLAB + 1000)
        data = make(predict_dir=tmp_path / "scans", check_hu=False)
        data.setup("predict")
        (case,) = data.predict_dataloader()
        np.testing.assert_array_equal(list(case.volume), SLAB + 1000)

    def test_slice_axis_is_passed_on(self, make, tmp_path):
        save(tmp_path / "scans" / "a.nii.gz", SLAB)
        data = make(predict_dir=tmp_path / "scans", slice_axis=0)
        data.setup("predict")
        (case,) = data.predict_dataloader()
        assert len(case.volume) == 10


@pytest.mark.parametrize(("cores", "workers"), [(1, 0), (2, 0), (4, 4), (64, 8)])
def test_default_workers(make, monkeypatch, cores, workers):
    monkeypatch.setattr("mpunet.data.crops.available_cores", lambda: cores)
    assert make(num_workers=None).num_workers == workers
    assert make(num_workers=3).num_workers == 3
