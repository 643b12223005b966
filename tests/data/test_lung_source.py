"""Sources of lung masks: the file, thresholding, or another package (replaced by a stand-in)."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import position_slab, save, volume

from mpunet.data import lung_source as module
from mpunet.data.case import Case
from mpunet.data.lung_source import find_lungs, lung_source

SHAPE = (19, 8, 10)
SLAB = position_slab(SHAPE)
CASE = Case("a", "a", Path("a.nii"))


@pytest.fixture
def no_network():
    module._lungmask_network.cache_clear()
    yield
    module._lungmask_network.cache_clear()


def test_which():
    with_file = CASE._replace(lung=Path("lung.nii"))
    assert [lung_source(CASE, masks) for masks in ("auto", "threshold", "lungmask")] == [
        "threshold",
        "threshold",
        "lungmask",
    ]
    assert [lung_source(with_file, masks) for masks in ("auto", "files", "threshold")] == [
        "files",
        "files",
        "threshold",
    ]
    with pytest.raises(
        ValueError, match=r"lung mask for each case .*none for 'a'; add it, or choose auto"
    ):
        lung_source(CASE, "files")
    with pytest.raises(ValueError, match="'threshold' and 'lungmask', got 'unet'"):
        lung_source(CASE, "unet")


def test_a_file_is_passed_over_where_thresholding_is_asked_for(tmp_path):
    lung = save(tmp_path / "lung.nii", np.ones(SHAPE, np.uint8))
    case = CASE._replace(lung=lung)
    assert find_lungs(case, volume(SLAB), "auto").all()
    assert not find_lungs(case, volume(SLAB), "threshold").any()


def test_lungmask(monkeypatch, no_network):
    made = []

    class LMInferer:
        def __init__(self, **options):
            made.append(options)

        def apply(self, image):
            assert type(image) is np.ndarray
            return np.where(image > 100, 2, image > 0).astype(
                np.uint8
            )  # left and right lung have labels of their own

    monkeypatch.setitem(sys.modules, "lungmask", SimpleNamespace(LMInferer=LMInferer))
    for _ in range(2):
        np.testing.assert_array_equal(
            find_lungs(CASE, volume(SLAB, codes="RAI"), "lungmask"), SLAB > 0
        )
    assert made == [{"tqdm_disable": True}]


def test_lungmask_is_missing(monkeypatch, no_network):
    monkeypatch.setitem(sys.modules, "lungmask", None)
    with pytest.raises(ValueError, match=r"pip install 'mpunet\[lungmask\]', or choose threshold"):
        find_lungs(CASE, volume(SLAB), "lungmask")


def test_lungmask_has_no_weights(monkeypatch, no_network):
    def refuse(**options):
        raise OSError("no route to host")

    monkeypatch.setitem(sys.modules, "lungmask", SimpleNamespace(LMInferer=refuse))
    with pytest.raises(ValueError, match=r"could not load its weights \(no route to host\)"):
        find_lungs(CASE, volume(SLAB), "lungmask")


@pytest.mark.parametrize("codes", ["RPS", "SAR"])
def test_a_file_of_another_orientation(tmp_path, codes):
    case = CASE._replace(lung=save(tmp_path / "lung.nii", (SLAB > 0).astype(np.uint8), codes=codes))
    np.testing.assert_array_equal(find_lungs(case, volume(SLAB), "files"), SLAB > 0)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((19, 8, 9), {}),
        (SHAPE, {"start": 1.0}),
        (SHAPE, {"spacing": (1, 0.8, 0.8)}),
    ],
)
def test_a_file_on_another_grid(tmp_path, shape, options):
    case = CASE._replace(lung=save(tmp_path / "lung.nii", np.ones(shape, np.uint8), **options))
    with pytest.raises(
        ValueError, match=r"lung mask .*lung.nii of shape .* is not on the grid of a.nii"
    ):
        find_lungs(case, volume(SLAB), "files")
