"""Thick files simulated from thin ones: positions, values, headers; the command on folders."""

import nibabel as nib
import numpy as np
import pytest
from helpers import nifti, position_slab, positions, save

from mpunet.cli.simulate import run
from mpunet.geometry import grid_spacing
from mpunet.io.scan_file import read_volume
from mpunet.io.thick_file import thick_count, write_thick
from mpunet.slices.sampled_profile import SampledProfile, read_profile, write_profile
from mpunet.slices.simulate import profile_weights, thick_slices, thicken, thickening_matrix

SHAPE = (19, 8, 10)


@pytest.mark.parametrize("codes", ["LPS", "LPI", "RAS", "SLP", "ARI"])
@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_thick_slices_stand_where_they_show(tmp_path, codes, start, suffix):
    """Positions encoded in voxels, which symmetric profiles preserve, agree with the affine."""
    source = nifti(position_slab(SHAPE), codes=codes, start=-30.0)
    nib.save(source, tmp_path / "thin.nii")
    write_thick(
        tmp_path / f"thick{suffix}",
        tmp_path / "thin.nii",
        3,
        start=start,
        weights=np.array([0.25, 0.5, 0.25]),
    )

    image = nib.load(tmp_path / f"thick{suffix}")
    assert image.get_data_dtype() == np.int16
    assert nib.aff2axcodes(image.affine) == tuple(codes)
    thick = read_volume(tmp_path / f"thick{suffix}")
    count = (19 - 1 - start) // 3 + 1
    assert thick.slab.shape == (count, 8, 10)
    thin = read_volume(tmp_path / "thin.nii")
    inner = slice(
        0 if start else 1, count if start else count - 1
    )  # at the ends the profile is cut
    for k in range(count)[inner]:
        assert (positions(thick.slab[k], SHAPE)[..., 0] == start + 3 * k).all()
        world = thick.slab_affine @ (k, 1, 2, 1)
        np.testing.assert_allclose(world, thin.slab_affine @ (start + 3 * k, 1, 2, 1), atol=1e-4)


def test_values_are_those_of_thicken_rounded(tmp_path):
    slab = np.random.default_rng(0).normal(0, 400, (26, 6, 7)).clip(-1024, 3071).astype(np.int16)
    save(tmp_path / "thin.nii.gz", slab, codes="LPI")
    write_thick(tmp_path / "thick.nii.gz", tmp_path / "thin.nii.gz", 5)
    np.testing.assert_array_equal(
        read_volume(tmp_path / "thick.nii.gz").slab, np.rint(thicken(slab, 5)).astype(np.int16)
    )


def test_both_transforms_of_the_header_and_the_rest_are_kept(tmp_path):
    image = nifti(position_slab(SHAPE))
    moved = image.affine.copy()
    moved[:3, 3] += 5
    image.set_qform(moved, code=2)
    image.header["descrip"] = b"chest"
    nib.save(image, tmp_path / "thin.nii")
    write_thick(tmp_path / "thick.nii", tmp_path / "thin.nii", 3, start=1)
    header = nib.load(tmp_path / "thick.nii").header
    assert header["descrip"] == b"chest"
    np.testing.assert_allclose(header.get_zooms(), (0.7, 0.7, 3.0), rtol=1e-6)
    np.testing.assert_allclose(header.get_qform()[:3, 3] - header.get_sform()[:3, 3], 5, atol=1e-4)
    assert header.get_qform(coded=True)[1] == 2


def test_streamed_slices_from_either_end_are_a_matrix_product():
    thin = np.random.default_rng(1).normal(size=(23, 3, 4))
    # A zero in the middle, and one that lets a slice begin before the one below it.
    for weights in (
        profile_weights(4),
        np.array([0.2, 0.0, 0.3, 0.0, 0.3, 0.0, 0.2]),
        np.array([0, 0, 1.0, 0, 0]),
    ):
        matrix = thickening_matrix(23, 4, weights, start=1)
        expected = np.tensordot(matrix, thin, axes=1)
        np.testing.assert_allclose(np.stack(list(thick_slices(thin, matrix))), expected, atol=1e-5)
        backwards = list(thick_slices(thin[::-1], matrix[::-1, ::-1]))
        np.testing.assert_allclose(np.stack(backwards[::-1]), expected, atol=1e-5)


def test_counts():
    assert thick_count(6, 5) == 2
    for depth, ratio, start, message in (
        (5, 5, 0, "at least 6 thin slices"),
        (7, 5, 2, "at least 8"),
        (9, 1, 0, "ratio of at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            thick_count(depth, ratio, start)


class TestSampledProfile:
    def test_weights_at_other_spacings(self):
        triangle = SampledProfile(np.array([-3.0, 0, 3]), np.array([0.0, 7, 0]))
        np.testing.assert_allclose(triangle.weights(1.0), np.array([0, 1, 2, 3, 2, 1, 0]) / 9)
        np.testing.assert_allclose(triangle.weights(1.5), [0, 0.25, 0.5, 0.25, 0])
        np.testing.assert_allclose(triangle.weights(4.0), [1.0])

    def test_round_trip_with_a_comment(self, tmp_path):
        profile = SampledProfile(np.array([-1.25, 0, 1.25]), np.array([0.25, 0.5, 0.25]))
        write_profile(tmp_path / "p.csv", profile, "two\nlines")
        assert (tmp_path / "p.csv").read_text().splitlines()[:3] == [
            "# two",
            "# lines",
            "mm,weight",
        ]
        for got, expected in zip(read_profile(tmp_path / "p.csv"), profile, strict=True):
            np.testing.assert_allclose(got, expected)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("1,2\n", r"p.csv, line 1: expected a CSV file with the columns mm,weight"),
            ("mm,weight\n0,1\nx,2\n", r"line 3: .* got 'x,2'"),
            ("mm,weight\n0,1\n1,2,3\n", "line 3"),
            ("mm,weight\n0,1\n", "at least 2 different distances"),
            ("mm,weight\n0,1\n0,2\n", "at least 2 different distances"),
            ("mm,weight\n0,1\n1,-2\n", "weights of at least 0"),
            ("mm,weight\n0,1\n1,nan\n", "weights of at least 0"),
        ],
    )
    def test_refused(self, tmp_path, text, message):
        (tmp_path / "p.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_profile(tmp_path / "p.csv")

    def test_zero_at_every_slice(self):
        with pytest.raises(ValueError, match="0 at every thin slice 2 mm apart"):
            SampledProfile(np.array([0.5, 1.0, 1.5]), np.array([1.0, 1, 1])).weights(2.0)


class TestCommand:
    def test_a_folder_with_a_broken_file(self, tmp_path, capsys):
        slab = position_slab(SHAPE)
        save(tmp_path / "in" / "a.nii.gz", slab)
        save(tmp_path / "in" / "sub" / "b.nii", slab)
        (tmp_path / "in" / "c.nii").write_bytes(b"no volume")
        assert (
            run(
                [
                    str(tmp_path / "in"),
                    str(tmp_path / "out"),
                    "--ratio",
                    "3",
                    "--profile",
                    "box",
                    "--offset",
                    "1",
                ]
            )
            == 1
        )
        out, err = capsys.readouterr()
        assert sorted(
            p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.nii*")
        ) == [
            "a.nii.gz",
            "sub/b.nii",
        ]
        assert "2 written" in out
        assert "1 failed" in out
        assert "2/3 c.nii: failed: not a NIfTI file" in err
        thick = read_volume(tmp_path / "out" / "a.nii.gz")
        np.testing.assert_array_equal(
            thick.slab, slab[1::3]
        )  # the mean of three on a ramp is the middle one; none is cut here
        np.testing.assert_allclose(thick.slab_affine[2, 3], 1.0)
        np.testing.assert_allclose(grid_spacing(thick.slab_affine), (3, 0.7, 0.7), rtol=1e-6)

    def test_a_file_and_a_profile_from_a_file(self, tmp_path):
        save(tmp_path / "thin.nii.gz", position_slab(SHAPE))
        (tmp_path / "p.csv").write_text("mm,weight\n-1,1\n0,2\n1,1\n")
        assert (
            run(
                [
                    str(tmp_path / "thin.nii.gz"),
                    str(tmp_path / "x.nii"),
                    "--ratio",
                    "3",
                    "--profile",
                    str(tmp_path / "p.csv"),
                ]
            )
            == 0
        )
        matrix = thickening_matrix(19, 3, np.array([0.25, 0.5, 0.25]))
        expected = np.rint(np.tensordot(matrix, position_slab(SHAPE).astype(float), axes=1))
        np.testing.assert_array_equal(read_volume(tmp_path / "x.nii").slab, expected)

    def test_existing(self, tmp_path, capsys):
        save(tmp_path / "in" / "a.nii.gz", position_slab(SHAPE))
        args = [str(tmp_path / "in"), str(tmp_path / "out"), "--ratio"]
        assert run([*args, "3"]) == 0
        first = (tmp_path / "out" / "a.nii.gz").read_bytes()
        assert run([*args, "2"]) == 0
        assert "1 skipped (file exists)" in capsys.readouterr().out
        assert (tmp_path / "out" / "a.nii.gz").read_bytes() == first
        with pytest.raises(ValueError, match="1 of 1 files exist"):
            run([*args, "2", "--existing", "error"])
        assert run([*args, "2", "--existing", "overwrite"]) == 0
        assert (tmp_path / "out" / "a.nii.gz").read_bytes() != first

    def test_refused(self, tmp_path, capsys):
        thin = save(tmp_path / "in" / "a.nii.gz", position_slab(SHAPE))
        before = thin.read_bytes()
        args = [str(tmp_path / "in"), str(tmp_path / "out"), "--ratio"]
        with pytest.raises(
            ValueError,
            match="profile among gaussian, box, triangle, or a CSV file of one, got sinc",
        ):
            run([*args, "3", "--profile", "sinc"])
        with pytest.raises(ValueError, match="positive width"):
            run([*args, "3", "--fwhm", "0"])
        with pytest.raises(ValueError, match="would be overwritten"):
            run([str(tmp_path / "in"), str(tmp_path / "in"), "--ratio", "3"])
        assert run([*args, "19"]) == 1
        assert (
            "at least 20 thin slices to make two thick ones at ratio 19" in capsys.readouterr().err
        )
        assert not list((tmp_path / "out").iterdir())
        assert thin.read_bytes() == before
