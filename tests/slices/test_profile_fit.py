"""Recovery of known profiles and offsets; those of the genuine pair agree with docs/data.md."""

import numpy as np
import pytest
from helpers import save

from mpunet.cli.fit_profile import fit_pair, run
from mpunet.io.scan_file import read_volume
from mpunet.phantom.chest import chest_phantom
from mpunet.slices.profile_fit import fit_free, fit_profile, gather
from mpunet.slices.sampled_profile import read_profile
from mpunet.slices.simulate import profile_density

RATIO = 5


@pytest.fixture(scope="module")
def thin():
    return chest_phantom(1, shape=(91, 48, 60), spacing=(1.8, 5.5, 5.5)).thin


def thickened(thin, start, kind, fwhm):
    centres = np.arange(start, len(thin), RATIO)
    weights = profile_density(np.arange(len(thin)) - centres[:, None], kind, fwhm * RATIO)
    return np.tensordot(
        weights / weights.sum(axis=1, keepdims=True), thin.astype(np.float32), axes=1
    )


@pytest.mark.parametrize(
    ("kind", "fwhm"),
    [("gaussian", 0.9), ("gaussian", 0.6), ("box", 1.0), ("box", 1.24), ("triangle", 0.9)],
)
@pytest.mark.parametrize("start", [2, 2.3])
def test_what_was_planted_is_found(thin, kind, fwhm, start):
    moments = gather(thickened(thin, start, kind, fwhm), thin, RATIO, start=2)
    fit = fit_profile(kind, moments, RATIO, 1.0, start=2)
    assert fit.fwhm == pytest.approx(fwhm, abs=0.02)
    assert fit.offset == pytest.approx(start, abs=0.03)
    assert fit.rmse < 1
    for other in {"gaussian", "box", "triangle"} - {kind}:
        assert fit_profile(other, moments, RATIO, 1.0, start=2).rmse > 2 * fit.rmse


def test_rmse_is_that_of_the_voxels(thin):
    """The quadratic form against the difference itself, everywhere and at edges."""
    thick = thickened(thin, 2, "triangle", 0.8) + np.random.default_rng(0).normal(
        0, 9, (18, 48, 60)
    )
    everywhere, edges = gather(thick, thin, RATIO, start=2, reach=6)
    weights = np.full(13, 1 / 13)
    used = np.arange(1, 17)
    made = np.stack([thin[2 + 5 * k - 6 : 2 + 5 * k + 7].mean(axis=0) for k in used])
    assert everywhere.slices == len(used)
    assert everywhere.rmse(weights) == pytest.approx(
        np.sqrt(((made - thick[used]) ** 2).mean()), rel=1e-6
    )
    edge = np.abs(thick[used + 1].astype(np.float32) - thick[used - 1].astype(np.float32)) >= 100
    assert edges.voxels == edge.sum()
    assert edges.rmse(weights) == pytest.approx(
        np.sqrt(((made - thick[used])[edge] ** 2).mean()), rel=1e-6
    )


def test_free_profile_of_a_box(thin):
    fit = fit_free(
        gather(thickened(thin, 2, "box", 1.0), thin, RATIO, start=2), RATIO, 1.25, start=2
    )
    np.testing.assert_allclose(fit.profile.weight[8:13], 0.2, atol=1e-3)
    np.testing.assert_allclose(fit.profile.weight.sum(), 1)
    np.testing.assert_allclose(fit.profile.mm, 1.25 * np.arange(-10, 11))
    assert fit.rmse < 0.5


def test_width_that_is_given_is_kept(thin):
    moments = gather(thickened(thin, 2, "gaussian", 0.9), thin, RATIO, start=2)
    fit = fit_profile("gaussian", moments, RATIO, 1.0, start=2, fwhm=0.5)
    assert fit.fwhm == 0.5
    assert fit.rmse > 10


def test_too_short(thin):
    with pytest.raises(
        ValueError, match="with 10 thin ones on each side to fit a profile, got 3 thick and 16 thin"
    ):
        gather(thickened(thin[:16], 2, "box", 1.0), thin[:16], RATIO, start=2)


class TestCommand:
    @pytest.fixture
    def files(self, tmp_path, thin):
        thick = np.rint(thickened(thin, 2, "triangle", 0.9)).astype(np.int16)
        return [
            str(save(tmp_path / "thin.nii.gz", thin)),
            str(save(tmp_path / "thick.nii.gz", thick, spacing=(5.0, 0.7, 0.7), start=2.0)),
        ]

    def test_table_and_file(self, files, tmp_path, capsys):
        assert run([*files, "--output", str(tmp_path / "p.csv"), "--kind", "triangle"]) == 0
        out = capsys.readouterr().out
        assert out.startswith("Thick slice k is at thin slice 5 k + 2.00 by the headers, 5 k + 2.0")
        profile = read_profile(tmp_path / "p.csv")
        np.testing.assert_allclose(
            profile.weights(1.0)[6:15],
            np.array([0.5, 1.5, 2.5, 3.5, 4.5, 3.5, 2.5, 1.5, 0.5]) / 20.5,
            atol=5e-3,
        )

    def test_headers_lost(self, tmp_path, thin, files):
        """Nothing but the ratio is needed to be told."""
        lost = [
            str(save(tmp_path / f"lost{i}.nii", read_volume(path).slab))
            for i, path in enumerate(files)
        ]
        with pytest.raises(
            ValueError,
            match=r"at least twice as far apart as thin ones, "
            r"got 1\.000 by the headers; give --ratio",
        ):
            run(lost)
        found = fit_pair(*(read_volume(path) for path in lost), ratio=5)
        assert found.by_header == 0
        assert found.by_voxels.offset == pytest.approx(2, abs=0.05)
        assert {fit.kind: fit.fwhm for fit in found.fits[::2]}["triangle"] == pytest.approx(
            0.9, abs=0.02
        )

    def test_two_scans(self, tmp_path, thin, files):
        turned = save(
            tmp_path / "turned.nii", np.flip(read_volume(files[1]).slab, 0), spacing=(5.0, 0.7, 0.7)
        )
        with pytest.raises(
            ValueError,
            match=r"agree only turned upside down .* expected two reconstructions of one scan",
        ):
            run([files[0], str(turned)])


def test_the_genuine_pair(shared_ct):
    found = fit_pair(
        *(read_volume(shared_ct / "pair" / f"head_{kind}.nii.gz") for kind in ("thin", "thick"))
    )
    assert (found.ratio, found.slices) == (5, 24)
    assert found.by_header == pytest.approx(2, abs=0.01)
    assert found.by_voxels.offset == pytest.approx(2, abs=0.05)
    numbers = {
        (fit.kind, index % 2): (fit.fwhm, fit.rmse, fit.edges)
        for index, fit in enumerate(found.fits)
    }
    for key, expected in {
        ("gaussian", 0): (0.891, 6.7, 9.2),
        ("box", 0): (1.176, 12.6, 17.3),
        ("box", 1): (1.0, 33.7, 46.4),
        ("triangle", 0): (0.893, 5.4, 7.3),
    }.items():
        np.testing.assert_allclose(numbers[key], expected, atol=0.06)
