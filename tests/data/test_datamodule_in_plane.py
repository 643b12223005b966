"""Training volumes that are thin only in plane: turned, cached and drawn at their rate."""

import numpy as np
import pytest
from helpers import save

from mpunet.data.datamodule import ThickThinDataModule
from mpunet.slices.in_plane import turned

COARSE = np.random.default_rng(0).integers(-1000, 1000, (8, 24, 26)).astype(np.int16)
SPACING = (2.5, 0.8, 0.8)


@pytest.fixture
def make(tmp_path):
    save(
        tmp_path / "train" / "thin.nii.gz",
        np.full((19, 8, 10), -1000, np.int16) + np.arange(10, dtype=np.int16) * 50,
    )
    save(tmp_path / "train" / "coarse.nii.gz", COARSE, spacing=SPACING)

    def make(**options):
        given = {
            "train_dir": str(tmp_path / "train"),
            "cache_dir": str(tmp_path / "cache"),
            "num_workers": 0,
        }
        given["check_data"] = False  # noise is no scan
        return ThickThinDataModule(
            **given | {"n_thick": 4, "ratio": 3, "crop": (4, 6), "crops_per_epoch": 40} | options
        )

    return make


def test_turned_volumes_are_drawn_at_their_rate(make):
    data = make(max_thin_spacing=1.5, in_plane_as_depth=0.5)
    data.prepare_data()
    data.setup("fit")
    assert [case.name for case in data.cases["train"]] == ["thin"]
    assert [case.name for case in data.turned] == ["coarse", "coarse"]
    for case, axis in zip(data.turned, ("height", "width"), strict=True):
        expected = turned(COARSE, SPACING, COARSE > 0, axis=axis)
        np.testing.assert_allclose(
            case.thin, expected.slab, atol=1
        )  # spacings of files are float32
        np.testing.assert_allclose(case.spacing, (1.0, 0.8, 0.8), atol=1e-6)
        assert case.lung.shape == case.thin.shape
        assert case.thick is None
    stds = np.array([batch["thin"].std().item() * 4095 for batch in data.train_dataloader()])
    assert 10 <= (stds > 200).sum() <= 30  # the coarse volume is noise, the thin one a gentle ramp
    # Turned volumes are kept beside the plain ones, and those of another spacing beside them.
    other = make(max_thin_spacing=1.5, in_plane_as_depth=0.5, in_plane_spacing=0.8)
    other.setup("fit")
    assert [len(case.thin) for case in (*data.turned, *other.turned)] == [19, 21, 24, 26]


def test_without_real_thin_volumes_all_crops_are_turned(make, tmp_path):
    (tmp_path / "train" / "thin.nii.gz").unlink()
    data = make(max_thin_spacing=1.5, in_plane_as_depth=0.1)
    data.setup("fit")
    assert len(list(data.train_dataloader())) == 40
    with pytest.raises(
        ValueError, match=r"coarse 2.50 mm. Raise it, or have them turned \(in_plane_as_depth\)"
    ):
        make(max_thin_spacing=1.5).setup("fit")


def test_a_pairs_thick_series_is_left_aside(make, tmp_path):
    save(tmp_path / "pairs" / "thin" / "a.nii.gz", COARSE, spacing=SPACING)
    save(tmp_path / "pairs" / "thick" / "a.nii.gz", COARSE[::3], spacing=(7.5, 0.8, 0.8))
    data = make(train_dir=str(tmp_path / "pairs"), max_thin_spacing=1.5, in_plane_as_depth=0.1)
    data.prepare_data()
    data.setup("fit")
    assert [case.thick for case in data.turned] == [None, None]


@pytest.mark.parametrize(("rate", "limit"), [(0.5, None), (1.5, 1.0), (-0.1, 1.0)])
def test_refused(make, rate, limit):
    with pytest.raises(
        ValueError,
        match=r"from 0 to 1, and 0 unless max_thin_spacing is given; "
        rf"got {rate} with max_thin_spacing {limit}",
    ):
        make(in_plane_as_depth=rate, max_thin_spacing=limit)
