"""Scans whose slices stand nearer or further apart than those that a network was trained on."""

from __future__ import annotations

import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from torch import Tensor, nn

from mpunet.inference import Reconstructor
from mpunet.inference.spacing import SliceSpacing

KNOWN = SliceSpacing(5.0, 6.25)


def linear(windows: Tensor) -> Tensor:
    return nn.functional.interpolate(
        windows, size=(36, *windows.shape[3:]), mode="trilinear", align_corners=True
    )


def scan(mm: float) -> nib.Nifti1Image:
    return nib.Nifti1Image(
        np.full((4, 4, 9), [-1000, -800, 0] * 3, np.int16), np.diag([0.7, 0.7, mm, 1.0])
    )


@pytest.mark.parametrize("mm", [4.5, 5.0, 5.5, 6.25, 6.87])
def test_what_was_trained_on_is_taken_without_a_word(mm: float) -> None:
    assert KNOWN.warning(mm) is None


@pytest.mark.parametrize("mm", [2.5, 3.0, 4.4, 7.0, 12.5])
def test_beside_it_is_a_warning(mm: float) -> None:
    assert f"the slice spacing is {mm:g} mm, but the network was trained on 5 to 6.25 mm" in str(
        KNOWN.warning(mm)
    )


@pytest.mark.parametrize("mm", [1.0, 2.4, 12.6])
def test_beyond_a_factor_of_two_it_is_refused(mm: float) -> None:
    with pytest.raises(ValueError, match=f"the slice spacing is {mm:g} mm.*refused"):
        KNOWN.warning(mm)


def test_the_record_may_tell_nothing() -> None:
    assert SliceSpacing.from_record(None) is SliceSpacing.from_record({}) is None
    assert SliceSpacing.from_record({"thick_spacing": [5, 6.25]}) == KNOWN
    assert str(SliceSpacing(5.0, 5.0)) == "5 mm"


def test_reconstructor_warns_and_refuses(tmp_path: Path) -> None:
    reconstruct = Reconstructor(linear, n_thick=8, ratio=5, multiple=4, spacing=(5.0, 6.25))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reconstruct(scan(5.0))
        reconstruct(np.asarray(scan(1.0).dataobj, np.float32))  # an array has no spacing
    with pytest.warns(UserWarning, match="the slice spacing is 3 mm"):
        thin = reconstruct(scan(3.0))
    assert thin.header.get_zooms()[2] == pytest.approx(0.6)
    with pytest.raises(ValueError, match="refused"):
        reconstruct(scan(1.0))
    nib.save(scan(1.0), tmp_path / "a.nii")
    with pytest.raises(ValueError, match="refused"):
        reconstruct.file(tmp_path / "a.nii", tmp_path / "b.nii")
    assert not (tmp_path / "b.nii").exists()
    Reconstructor(linear, n_thick=8, ratio=5, multiple=4)(scan(1.0))
