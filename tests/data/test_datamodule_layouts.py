"""The data module on each layout: cases of each part, in HU and aligned; pairs with an offset."""

import shutil

import lightning as L
import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import position_slab, save

from mpunet.data.datamodule import ThickThinDataModule

SHAPE = (19, 8, 10)
SLAB = position_slab(SHAPE)
THICK = {"spacing": (3.0, 0.7, 0.7)}


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
        return ThickThinDataModule(**given | options)

    return make


def as_rplhr(root, **parts):
    """Position volumes as float32 in [0, 1], numbered over all parts; volume i is i HU higher."""
    number = 0
    for part, names in parts.items():
        for name in names:
            for kind, step, options in (("1mm", 1, {}), ("5mm", 3, THICK)):
                unit = ((SLAB[::step] + number + 1024.0) / 3072).astype(np.float32)
                save(root / part / kind / f"{name}.nii.gz", unit, **options)
            number += 1
    return root


def in_hu(data, *stages):
    """For each part the names, and of each case the number that was added."""
    out = {}
    for stage in stages:
        data.setup(stage)
    for part, cases in data.cases.items():
        for case in cases:
            assert case.thin.dtype == case.thick.dtype == np.int16
            number = int(case.thin[0, 0, 0]) + 1000
            np.testing.assert_array_equal(case.thin, SLAB + number)
            np.testing.assert_array_equal(case.thick, SLAB[::3] + number)
            out.setdefault(part, {})[case.name] = number
    return out


class TestRplhr:
    def test_its_own_split_with_nothing_but_the_path(self, make, tmp_path):
        root = as_rplhr(tmp_path / "rplhr", train="ab", val="c", test="ad")
        assert in_hu(make(data_dir=str(root), split=(0.2, 0.4, 0.4)), "fit", "test") == {
            "train": {"train/a": 0, "train/b": 1},
            "val": {"val/c": 2},
            "test": {"test/a": 3, "test/d": 4},
        }

    def test_part_by_part(self, make, tmp_path):
        root = as_rplhr(tmp_path / "rplhr", train="ab", val="c", test="ad")
        parts = {f"{part}_dir": str(root / part) for part in ("train", "val", "test")}
        expected = {"train": {"a": 0, "b": 1}, "val": {"c": 2}, "test": {"a": 3, "d": 4}}
        assert in_hu(make(**parts), "fit", "test") == expected
        # The whole as each part's folder: nothing is trained on that is for testing.
        found = in_hu(make(**dict.fromkeys(parts, str(root))), "fit", "test")
        assert {part: sorted(numbers.values()) for part, numbers in found.items()} == {
            "train": [0, 1],
            "val": [2],
            "test": [3, 4],
        }

    def test_without_all_parts(self, make, tmp_path):
        root = as_rplhr(tmp_path / "rplhr", train="a")
        assert in_hu(make(data_dir=str(root)), "fit") == {"train": {"train/a": 0}}
        with pytest.raises(
            ValueError, match=r"leaves no case for test: .* cases if it is the data's own split"
        ):
            make(data_dir=str(root)).setup("test")
        with pytest.raises(
            ValueError,
            match=r"rplhr has a split of its own, and no case in it for val: give another val_dir",
        ):
            make(train_dir=str(root), val_dir=str(root)).setup("fit")

    def test_copied_elsewhere(self, make, tmp_path):
        as_rplhr(tmp_path / "train", x="a")
        (tmp_path / "train" / "x").rename(tmp_path / "mine")
        with pytest.raises(
            ValueError, match=r"a.nii.gz: intensities of .* are not HU.*--data.intensity rplhr"
        ):
            make(train_dir=str(tmp_path / "mine")).prepare_data()
        assert in_hu(make(train_dir=str(tmp_path / "mine"), intensity="rplhr"), "fit") == {
            "train": {"a": 0}
        }

    def test_to_predict(self, make, tmp_path):
        root = as_rplhr(tmp_path / "rplhr", test="a")
        data = make(predict_dir=str(root / "test" / "5mm"))
        data.setup("predict")
        (case,) = data.predict_dataloader()
        np.testing.assert_allclose(list(case.volume), SLAB[::3], rtol=0, atol=1e-3)
        (root / "test").rename(root / "mine")
        for intensity, failed in (("auto", True), ("rplhr", False)):
            data = make(predict_dir=str(root / "mine" / "5mm"), intensity=intensity)
            data.setup("predict")
            assert [case.error is not None for case in data.predict_dataloader()] == [failed]


class TestApart:
    """A patient in two parts makes results look better than they are."""

    def test_in_one_source(self, make, tmp_path):
        root = as_rplhr(tmp_path / "rplhr", train="ab", val="b")
        make(data_dir=str(root)).setup("fit")  # files that only share a name
        same = "1mm/b.nii.gz"
        shutil.copy(root / "train" / same, root / "val" / same)
        with pytest.raises(
            ValueError,
            match=r"'b' is both in train \(.*train/1mm/b.nii.gz\) and in val \(.*Remove one",
        ):
            make(data_dir=str(root)).setup("fit")

    @pytest.mark.parametrize(
        ("parts", "pattern", "reason"),
        [
            ({"train": "x", "val": "x"}, None, r"'1_a' is both in train .*x/1_a.nii\) and in val"),
            ({"train": "x", "val": "y"}, "([12])_", "'1' is both in train .* and in val .*1_b.nii"),
            ({"train": "x", "test": "x"}, None, "'1_a' is both in train .* and in test"),
            ({"train": "x", "val": "x/sub"}, None, r"'2_a' is both in train .*x/sub/2_a.nii"),
        ],
    )
    def test_in_folders_of_their_own(self, make, tmp_path, parts, pattern, reason):
        for name in ("x/1_a", "x/sub/2_a", "y/1_b"):
            save(tmp_path / f"{name}.nii", SLAB)
        folders = {f"{part}_dir": str(tmp_path / folder) for part, folder in parts.items()}
        with pytest.raises(ValueError, match=reason):
            make(**folders, patient_pattern=pattern).setup("fit")

    def test_of_two_patients_with_names_of_their_own(self, make, tmp_path):
        for name in ("x/1_a", "y/1_b"):
            save(tmp_path / f"{name}.nii", SLAB)
        data = make(train_dir=str(tmp_path / "x"), val_dir=str(tmp_path / "y"))
        data.setup("fit")
        assert {part: len(cases) for part, cases in data.cases.items()} == {"train": 1, "val": 1}


class TestOtherSources:
    def test_list_with_splits_and_without(self, make, tmp_path):
        for i, name in enumerate("abcd"):
            save(tmp_path / "x" / f"{name}1.nii", SLAB + i)
            save(tmp_path / "y" / f"{name}5.nii", SLAB[::3] + i, **THICK)
        parts = {"a": "val", "b": "train", "c": "test", "d": "train"}
        rows = [f"x/{n}1.nii,y/{n}5.nii,{part}" for n, part in parts.items()]
        (tmp_path / "pairs.csv").write_text("\n".join(["thin,thick,split", *rows]))
        expected = {"train": {"x/b1": 1, "x/d1": 3}, "val": {"x/a1": 0}, "test": {"x/c1": 2}}
        assert in_hu(make(data_dir=str(tmp_path / "pairs.csv")), "fit", "test") == expected
        (tmp_path / "loose.csv").write_text(
            "\n".join(["thin,thick", *(row.rpartition(",")[0] for row in rows)])
        )
        found = in_hu(
            make(data_dir=str(tmp_path / "loose.csv"), split=(0.5, 0.25, 0.25)), "fit", "test"
        )
        assert {part: len(names) for part, names in found.items()} == {
            "train": 2,
            "val": 1,
            "test": 1,
        }
        whole = in_hu(make(train_dir=str(tmp_path / "loose.csv")), "fit")
        assert whole == {"train": {"x/a1": 0, "x/b1": 1, "x/c1": 2, "x/d1": 3}}

    def test_two_folders_anywhere(self, make, tmp_path):
        thin, thick = tmp_path / "here" / "iso", tmp_path / "there"
        save(thin / "a.nii", SLAB)
        save(thick / "a.nii.gz", SLAB[::3], **THICK)
        assert in_hu(make(train_dir={"thin": str(thin), "thick": str(thick)}), "fit") == {
            "train": {"a": 0}
        }


class Aligned(L.LightningModule):
    """Trains on batches and demands that thick slice k of each shows what thin slice 3 k shows."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.steps = 0

    def training_step(self, batch, _):
        torch.testing.assert_close(batch["thick"], batch["thin"][:, :, ::3], rtol=0, atol=0)
        self.steps += 1
        return self.layer(batch["thin"].mean()[None]).sum()

    def validation_step(self, batch, _):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


@pytest.mark.filterwarnings(
    "ignore:Total length of `list` across ranks is zero"
)  # no validation data
@pytest.mark.parametrize(
    ("first", "thick", "thin"),
    [
        (2, slice(0, 6), slice(2, 18)),
        (-4, slice(2, 7), slice(2, 15)),
        (7, slice(0, 4), slice(7, 17)),
    ],
)
def test_trained_on_what_both_series_cover(make, tmp_path, first, thick, thin):
    at = first + 3 * np.arange(7 if first < 0 else (18 - first) // 3 + 1)
    series = np.take(SLAB, at, axis=0, mode="clip")
    save(tmp_path / "pairs" / "thin" / "a.nii.gz", SLAB, codes="RAI")
    save(tmp_path / "pairs" / "thick" / "a.nii.gz", series, start=float(first), **THICK)
    # Slices past the thin series are repeats.
    data, module = (
        make(train_dir=str(tmp_path / "pairs"), crops_per_epoch=2, check_data=False),
        Aligned(),
    )
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    L.Trainer(max_steps=2, accelerator="cpu", **quiet).fit(module, datamodule=data)
    assert module.steps == 2
    (case,) = data.cases["train"]
    np.testing.assert_array_equal(case.thick, series[thick])
    np.testing.assert_array_equal(case.thin, SLAB[thin])


def test_another_ratio_is_told_before_any_volume_is_read(make, tmp_path):
    for name, step in (("a", 3), ("b", 2)):
        save(tmp_path / "thin" / f"{name}.nii", SLAB)
        save(tmp_path / "thick" / f"{name}.nii", SLAB[::step], spacing=(float(step), 0.7, 0.7))
    data = make(train_dir=str(tmp_path))
    with pytest.raises(
        ValueError,
        match=r"thick/b.nii and .*slices 2 and 1 mm apart have the ratio 2.000, "
        r"expected 3, the network's",
    ):
        data.prepare_data()
    assert not (tmp_path / "cache").exists()


def test_scanners_pair(make, shared_ct, tmp_path):
    """The 5 mm series starts 2 mm above the 1 mm one, and nobody says so."""
    pair = shared_ct / "pair"
    (tmp_path / "pairs.csv").write_text(
        f"thin,thick\n{pair}/head_thin.nii.gz,{pair}/head_thick.nii.gz\n"
    )
    data = make(train_dir=str(tmp_path / "pairs.csv"), ratio=5)
    data.prepare_data()
    data.setup("fit")
    (case,) = data.cases["train"]
    assert (len(case.thick), len(case.thin)) == (28, 136)
    stored = np.asarray(nib.load(pair / "head_thin.nii.gz").dataobj)
    assert stored.shape[2] == 140
    np.testing.assert_array_equal(
        np.sort(case.thin[::5].ravel()), np.sort(stored[:, :, 2:138:5].ravel())
    )
