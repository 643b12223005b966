"""Matching of files, common slices of two grids, and voxels whose header position is wrong."""

import numpy as np
import pytest
from helpers import position_slab, save, volume

from mpunet.evaluation.cases import common_slices, match_cases, misplaced
from mpunet.phantom.chest import chest_phantom

SHAPE = (19, 8, 10)
SLAB = position_slab(SHAPE)


class TestMatching:
    def test_by_name_below_each_folder(self, tmp_path):
        for path in (
            "ours/a.nii.gz",
            "ours/x/b.nii",
            "ours/c.nii.gz",
            "theirs/a.nii",
            "theirs/x/b.nii.gz",
            "theirs/d.nii.gz",
        ):
            save(tmp_path / path, SLAB)
        pairs, missing, extra = match_cases(tmp_path / "ours", tmp_path / "theirs")
        assert [(case.name, case.thin.name, path.name) for case, path in pairs] == [
            ("a", "a.nii", "a.nii.gz"),
            ("x/b", "b.nii.gz", "b.nii"),
        ]
        assert (missing, extra) == (["d"], ["c"])

    def test_references_as_pairs_bring_thick_and_lung(self, pair_folder):
        (case, path), _ = match_cases(pair_folder / "thin", pair_folder).pairs
        assert (case.name, case.thick, path) == (
            "p0",
            pair_folder / "thick" / "p0.nii.gz",
            pair_folder / "thin" / "p0.nii.gz",
        )

    def test_two_files_are_a_pair_whatever_their_names(self, tmp_path):
        ours, theirs = (
            save(tmp_path / "a" / "mine.nii.gz", SLAB),
            save(tmp_path / "b" / "truth.nii", SLAB),
        )
        ((case, path),), missing, extra = match_cases(ours, theirs)
        assert (case.name, path, missing, extra) == ("truth", ours, [], [])

    def test_no_name_in_common(self, tmp_path):
        save(tmp_path / "a" / "x.nii.gz", SLAB)
        save(tmp_path / "b" / "y.nii.gz", SLAB)
        with pytest.raises(
            ValueError,
            match=r"No file in .*a has the same name as a file in .*b: predictions include 'x', "
            "references include 'y'",
        ):
            match_cases(tmp_path / "a", tmp_path / "b")


class TestGrids:
    @pytest.mark.parametrize("codes", ["LPS", "RAS", "SPL", "ASR"])
    def test_stored_otherwise_is_the_same_grid(self, codes):
        assert common_slices(volume(SLAB, codes=codes), volume(SLAB)) == (
            slice(0, 19),
            slice(0, 19),
        )

    @pytest.mark.parametrize(
        ("first", "count", "mine", "used"),
        [
            (
                0,
                16,
                slice(0, 16),
                slice(0, 16),
            ),  # the usual case: the last thick slice stands before the last thin one
            (3, 10, slice(0, 10), slice(3, 13)),
            (-2, 30, slice(2, 21), slice(0, 19)),
            (-4, 9, slice(4, 9), slice(0, 5)),
            (15, 9, slice(0, 4), slice(15, 19)),
        ],
    )
    def test_what_both_have(self, first, count, mine, used):
        part = volume(position_slab((count, 8, 10)), start=float(first))
        assert common_slices(part, volume(SLAB)) == (mine, used)

    @pytest.mark.parametrize(
        ("slab", "options", "reason"),
        [
            (
                SLAB,
                {"start": 0.5},
                r"first voxel is \(0.00, 0.00, 0.50\) mm from the reference's in x, y, z",
            ),
            (SLAB, {"start": 19.0}, "no slice in common"),
            (SLAB, {"start": -30.0}, "no slice in common"),
            (SLAB[:, :-1], {}, "19 x 7 x 10 voxels against the reference's 19 x 8 x 10"),
            (
                SLAB,
                {"spacing": (1.01, 0.7, 0.7)},
                "voxels of 1.01 x 0.7 x 0.7 mm "
                "against the reference's 1 x 0.7 x 0.7 mm: another grid",
            ),
            (SLAB, {"spacing": (1.0, 0.75, 0.7)}, "voxels of 1 x 0.75 x 0.7 mm"),
            (SLAB[::5], {"spacing": (5.0, 0.7, 0.7)}, "voxels of 5 x 0.7 x 0.7 mm"),
        ],
    )
    def test_refused(self, slab, options, reason):
        with pytest.raises(ValueError, match=reason):
            common_slices(volume(slab, **options), volume(SLAB))

    def test_a_rotated_grid_is_refused(self):
        turned = volume(SLAB)
        angle = np.deg2rad(2)
        rotation = np.eye(4)
        rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        turned.affine = rotation @ turned.affine
        with pytest.raises(ValueError, match="in other directions: another grid"):
            common_slices(turned, volume(SLAB))

    def test_in_plane_shift_is_refused(self):
        moved = volume(SLAB)
        moved.affine = moved.affine.copy()
        moved.affine[0, 3] += 0.7
        with pytest.raises(
            ValueError, match=r"\(0.70, 0.00, 0.00\) mm from the reference's in x, y, z"
        ):
            common_slices(moved, volume(SLAB))


@pytest.fixture(scope="module")
def chest():
    return chest_phantom(7, shape=(46, 72, 92), spacing=(2, 3.5, 3.5)).thin


class TestMisplaced:
    def test_in_its_place(self, chest):
        rng = np.random.default_rng(0)
        assert misplaced(chest, chest) is None
        assert misplaced(chest + rng.normal(0, 60, chest.shape), chest) is None
        blurred = (chest[np.r_[0, 0:45]].astype(float) + chest + chest[np.r_[1:46, 45]]) / 3
        assert misplaced(blurred, chest) is None

    @pytest.mark.parametrize("shift", [-2, -1, 1, 3])
    def test_shifted(self, chest, shift):
        found = misplaced(np.roll(chest, -shift, axis=0), chest)
        assert found == f"shifted by {shift} slice{'s' if abs(shift) > 1 else ''}"

    @pytest.mark.parametrize(
        ("axis", "name"), [(0, "upside down"), (1, "front to back"), (2, "left to right")]
    )
    def test_turned(self, chest, axis, name):
        assert misplaced(np.flip(chest, axis), chest) == f"turned {name}"

    def test_constant_and_tiny_volumes(self):
        flat = np.zeros((2, 3, 3), np.int16)
        assert misplaced(flat, flat) is None
        assert misplaced(flat[:1], flat[:1]) is None


def test_docstring_direction():
    """Slice k of the prediction shows what slice k + shift of the reference shows."""
    slab = np.arange(30)[:, None, None] ** 2 * np.ones((1, 5, 5))
    assert misplaced(slab[1:], slab[:-1]) == "shifted by 1 slice"
