"""Data consistency with the slice profile of a scanner, in Reconstructor and in predict."""

import json

import numpy as np
import pytest
import torch
from helpers import nifti, save

import mpunet
from mpunet.__main__ import main
from mpunet.inference import StreamingEngine
from mpunet.io.scan_file import read_volume
from mpunet.metrics.consistency import consistency, consistency_map
from mpunet.models import Bicubic
from mpunet.phantom import chest_phantom
from mpunet.slices.sampled_profile import SampledProfile, read_profile, write_profile
from mpunet.slices.simulate import profile_density, thicken

MM = np.linspace(-10, 10, 81)
SPACING = (5.0, 10.0, 10.0)


def gaussian(fwhm):
    """A Gaussian of a width in mm."""
    return SampledProfile(MM, profile_density(MM, "gaussian", fwhm))


@pytest.fixture(scope="module")
def phantom():
    """Thin slices 1 mm apart, and thick ones 5 mm apart with a profile of 6.5 mm."""
    thin = chest_phantom(3, shape=(51, 40, 48), spacing=(1, 10, 10)).thin
    return thin, thicken(thin, 5, fwhm=1.3).round().astype(np.int16)


def reconstructed(thick, net=None, **options):
    net = net or Bicubic()
    reconstruct = mpunet.Reconstructor.from_network(net, device="cpu", **options)
    image = reconstruct(nifti(thick, spacing=SPACING))
    return mpunet.io.volume.volume_from_image(image).slab.astype(float)


def disagreement(thin, thick):
    """Mean absolute difference of the thickened result from its scan, but for the ends."""
    rows = np.stack(list(consistency_map(thin, thick, profile=gaussian(6.5), spacing=5.0)))
    return float(np.abs(rows[1:-1]).mean())


def rmse(found, thin):
    return float(np.sqrt(np.square(found - thin).mean()))


def test_the_right_profile_lowers_the_error(phantom):
    """By a quarter; one that is too narrow lowers it by less."""
    thin, thick = phantom
    plain = rmse(reconstructed(thick), thin)
    errors = [rmse(reconstructed(thick, profile=gaussian(mm)), thin) for mm in (6.5, 4.5, 1.0)]
    assert errors[0] < 0.8 * plain
    assert errors[0] < errors[1] < errors[2] < 1.05 * plain


def test_beside_the_consistency_of_the_network(phantom):
    thin, thick = phantom
    torch.manual_seed(0)
    net = mpunet.MPUNet(widths=(2, 2, 2, 2, 2, 2), consistency=0.85)
    own = reconstructed(thick, net)
    both = reconstructed(thick, net, profile=gaussian(6.5))
    assert rmse(both, thin) < rmse(own, thin)
    agreement = [disagreement(found, thick) for found in (both, own)]
    assert agreement[0] < 0.5 * agreement[1]


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("last_first", [False, True])
def test_windows_are_corrected_in_the_order_of_the_slab(flips, last_first):
    """However they were flipped for the network, as profiles may be skewed."""
    thick = torch.rand(12, 4, 6, generator=torch.Generator().manual_seed(0))
    order = (0,) if last_first else ()

    def correct(thin, windows):
        assert (windows[:, :, 0] < windows[:, :, -1]).all()
        return thin + torch.arange(7)[:, None, None] * windows[:, :, :1]

    thick = thick.sort(dim=0).values
    engine = StreamingEngine(
        lambda windows: windows.repeat_interleave(2, dim=2)[:, :, :-1],
        n_thick=4, ratio=2, stride=3, multiple=1, flips=flips,
    )  # fmt: skip
    plain, corrected = (
        torch.cat(list(engine.stream(thick.flip(order), shape=(12, 4, 6), last_first=last_first,
                                     correct=function))).flip(order)
        for function in (None, correct)
    )  # fmt: skip
    change = corrected - plain
    torch.testing.assert_close(change[1:6], torch.arange(1.0, 6)[:, None, None] * thick[0])


def test_a_profile_at_the_spacing_of_the_scan(phantom):
    """Too wide for one scan, not for another; arrays have no spacing."""
    _, thick = phantom
    reconstruct = mpunet.Reconstructor.from_network(Bicubic(), profile=gaussian(8.0))
    reconstruct(nifti(thick, spacing=SPACING))
    with pytest.raises(ValueError, match="too wide for data consistency"):
        reconstruct(nifti(thick, spacing=(3.5, 10.0, 10.0)))
    with pytest.raises(ValueError, match="thin_spacing and profile cannot be used"):
        reconstruct(thick.astype(np.float32))


def test_predict_and_its_check_use_the_file(phantom, untrained, tmp_path, capsys):
    _, thick = phantom
    for name, spacing in (("a", 5.0), ("thin", 2.0)):
        save(tmp_path / "scans" / f"{name}.nii.gz", thick, spacing=(spacing, 10.0, 10.0))
    write_profile(tmp_path / "profile.csv", gaussian(6.5))
    words = ["--checkpoint", str(untrained), "--device", "cpu", "--check", "--profile"]
    words = ["predict", str(tmp_path / "scans"), str(tmp_path / "x"), *words]
    assert main([*words, str(tmp_path / "profile.csv")]) == 1
    found = {
        record["file"]: record
        for record in map(json.loads, (tmp_path / "x" / "manifest.jsonl").read_text().splitlines())
    }
    assert "too wide for data consistency" in found["thin.nii.gz"]["reason"]
    thin = read_volume(tmp_path / "x" / "a.nii.gz").slab
    measured = consistency(thin, thick, profile=gaussian(6.5), spacing=5.0)
    assert found["a.nii.gz"]["consistency"]["mae"] == pytest.approx(measured.mae, abs=6e-4)
    assert found["a.nii.gz"]["profile"] == read_profile(tmp_path / "profile.csv").sha256
    capsys.readouterr()
    assert main(words[:-1]) == 0
    assert "1 of the skipped volumes were made with another" in capsys.readouterr().out
    capsys.readouterr()
    (tmp_path / "profile.csv").write_text("mm;weight")
    assert main([*words, str(tmp_path / "profile.csv")]) == 2
    assert "profile.csv, line 1: expected a CSV file with the columns mm" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "none.csv")]) == 2
    assert "none.csv" in capsys.readouterr().err
