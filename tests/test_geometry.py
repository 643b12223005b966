"""Windows, slice positions and orientations, checked against world coordinates."""

import itertools

import nibabel as nib
import numpy as np
import pytest

from mpunet.geometry import (
    SlabFrame,
    find_slice_axis,
    gantry_tilt,
    grid_spacing,
    reflect_indices,
    slice_positions,
    thick_affine,
    thin_affine,
    thin_depth,
    thin_window,
    window_starts,
)

# All ways to store an axial scan: 6 orders of the axes times 8 flips.
ORIENTATIONS = [
    "".join(codes)
    for order in itertools.permutations(("LR", "PA", "IS"))
    for codes in itertools.product(*order)
]
SPACING = {"L": 0.7, "R": 0.7, "P": 0.8, "A": 0.8, "I": 5.0, "S": 5.0}


def affine_of(codes, origin=(11.0, -23.0, 170.0)):
    """Affine of a grid whose axes run towards ``codes``."""
    directions = {
        "R": (1, 0, 0),
        "A": (0, 1, 0),
        "S": (0, 0, 1),
        "L": (-1, 0, 0),
        "P": (0, -1, 0),
        "I": (0, 0, -1),
    }
    affine = np.eye(4)
    affine[:3, :3] = np.transpose([np.multiply(directions[code], SPACING[code]) for code in codes])
    affine[:3, 3] = origin
    return affine


def rotation(x=0.0, y=0.0, z=0.0):
    """4 x 4 rotation by angles in degrees."""
    out = np.eye(4)
    for angle, (i, j) in zip(np.radians((x, y, z)), ((1, 2), (0, 2), (0, 1)), strict=True):
        turn = np.eye(4)
        turn[[i, j, i, j], [i, j, j, i]] = (
            np.cos(angle),
            np.cos(angle),
            -np.sin(angle),
            np.sin(angle),
        )
        out = turn @ out
    return out


def world(affine, shape):
    """RAS+ position of every voxel, (*shape, 3)."""
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


class TestWindows:
    def test_thin_depth_is_end_aligned(self):
        # The paper's 8 -> 36 of Section 4.1, and a scan of 64 slices of 5 mm.
        assert [thin_depth(*case) for case in ((8, 5), (64, 5), (2, 2), (2, 1))] == [36, 316, 3, 2]

    @pytest.mark.parametrize("n_thick", range(2, 17))
    def test_windows_cover_every_thin_slice_and_stay_inside(self, n_thick):
        ratio = 3
        for depth, stride in itertools.product(range(n_thick, 3 * n_thick + 3), range(1, n_thick)):
            starts = window_starts(depth, n_thick, stride)
            covered = np.zeros(thin_depth(depth, ratio), int)
            for start in starts:
                covered[thin_window(start, n_thick, ratio)] += 1
            assert covered.min() >= 1, (depth, stride)
            # Inside: the window's slice ran its full length everywhere.
            assert covered.sum() == len(starts) * thin_depth(n_thick, ratio)
            assert starts == sorted(set(starts))
            assert np.diff(starts).max(initial=0) <= stride

    def test_literals(self):
        assert window_starts(8, 8) == [0]
        assert window_starts(10, 8) == [0, 1, 2]
        assert window_starts(17, 8, stride=7) == [0, 7, 9]
        assert window_starts(3, 2) == [0, 1]
        # Thick slice k stands at thin slice r * k, the first and the last of a window included.
        assert thin_window(3, 8, 5) == slice(3 * 5, 10 * 5 + 1)

    @pytest.mark.parametrize(("depth", "length"), [(2, 2), (2, 8), (3, 8), (5, 16), (7, 8), (9, 4)])
    def test_reflection_keeps_slices_and_neighbours(self, depth, length):
        indices = reflect_indices(depth, length)
        assert len(indices) == max(depth, length)
        assert indices[:depth].tolist() == list(range(depth))
        # Every neighbour is a true neighbour, so that no slice is doubled.
        assert set(np.abs(np.diff(indices))) == {1}

    def test_refused(self):
        with pytest.raises(ValueError, match="at least 2 slices along depth, got 1"):
            thin_depth(1, 5)
        with pytest.raises(ValueError, match=r"ratio of at least 1 .* got 0"):
            thin_depth(8, 0)
        with pytest.raises(ValueError, match="windows of at least 2 thick slices, got 1"):
            window_starts(8, 1)
        for stride in (0, 8):
            with pytest.raises(ValueError, match=f"stride of 1 to 7 .* got {stride}"):
                window_starts(20, 8, stride)
        with pytest.raises(ValueError, match="at least n_thick = 8, got 7; pad"):
            window_starts(7, 8)
        with pytest.raises(ValueError, match="at least 2 slices along depth, got 1"):
            reflect_indices(1, 8)


class TestAffines:
    @pytest.mark.parametrize("axis", [0, 1, 2])
    @pytest.mark.parametrize("ratio", [2, 5])
    def test_thinning_keeps_the_first_and_the_last_position(self, axis, ratio):
        shear = np.eye(4)
        shear[0, 2] = 0.3  # a tilted gantry
        for codes, turn in itertools.product(
            ("LPS", "RAI", "SLP"), (np.eye(4), rotation(20, -35, 70), shear)
        ):
            affine, depth = turn @ affine_of(codes), 9
            thin = thin_affine(affine, axis, ratio)
            fine = slice_positions(thin, axis, thin_depth(depth, ratio))
            # Not only the ends: every thick slice stands where it was.
            np.testing.assert_allclose(
                fine[::ratio], slice_positions(affine, axis, depth), atol=1e-12
            )
            np.testing.assert_allclose(
                np.linalg.norm(np.diff(fine, axis=0), axis=1), grid_spacing(affine)[axis] / ratio
            )
            np.testing.assert_array_equal(
                np.delete(thin, axis, axis=1), np.delete(affine, axis, axis=1)
            )

    def test_thickening_undoes_thinning_and_shifts_the_origin(self):
        affine = rotation(10, 20, 30) @ affine_of("LAS")
        np.testing.assert_allclose(
            thick_affine(thin_affine(affine, 2, 5), 2, 5), affine, atol=1e-12
        )
        thin = slice_positions(affine, 1, 20)
        np.testing.assert_allclose(
            slice_positions(thick_affine(affine, 1, 4, start=3), 1, 5), thin[3::4], atol=1e-12
        )

    def test_arguments_are_not_changed(self):
        affine = affine_of("LPS")
        before = affine.copy()
        thin_affine(affine, 2, 5)
        thick_affine(affine, 2, 5, start=2)
        SlabFrame.from_affine(affine).slab_affine(affine, (3, 4, 5))
        np.testing.assert_array_equal(affine, before)

    def test_spacing_of_a_rotated_grid(self):
        np.testing.assert_allclose(
            grid_spacing(rotation(20, -35, 70) @ affine_of("PSR")), [0.8, 5.0, 0.7]
        )

    @pytest.mark.parametrize("degrees", [5, 18, 30])
    @pytest.mark.parametrize("codes", ["LPS", "RAI", "SRP", "AIL"])
    @pytest.mark.parametrize("turn", [np.eye(4), rotation(20, -35, 70)], ids=["straight", "turned"])
    def test_slice_spacing_of_a_tilted_grid_is_along_the_normal(self, degrees, codes, turn):
        affine = affine_of(codes)
        axis = find_slice_axis(affine)
        for other in {0, 1, 2} - {axis}:
            for sign in (-1, 1):
                # The planes are 5 mm apart, and each is shifted in its own plane.
                sheared = affine.copy()
                direction = affine[:3, other] / np.linalg.norm(affine[:3, other])
                sheared[:3, axis] += sign * 5 * np.tan(np.radians(degrees)) * direction
                sheared = turn @ sheared
                assert gantry_tilt(sheared, axis) == pytest.approx(degrees, abs=1e-9)
                np.testing.assert_allclose(
                    grid_spacing(sheared, axis), grid_spacing(affine), rtol=1e-12
                )
                np.testing.assert_allclose(
                    grid_spacing(sheared)[axis], 5 / np.cos(np.radians(degrees)), rtol=1e-12
                )
                thin = thin_affine(sheared, axis, 4)
                assert gantry_tilt(thin, axis) == pytest.approx(degrees, abs=1e-9)
                assert grid_spacing(thin, axis)[axis] == pytest.approx(1.25, abs=1e-12)

    def test_shear_in_both_directions_of_the_plane(self):
        affine = np.array([[0.7, 0, 1, 0], [0, 0.9, 2, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
        assert grid_spacing(affine)[2] == 3
        assert grid_spacing(affine, 2)[2] == pytest.approx(2)
        assert gantry_tilt(affine, 2) == pytest.approx(np.degrees(np.arccos(2 / 3)))

    @pytest.mark.parametrize("codes", ["LPS", "RAI", "SRP"])
    def test_an_orthogonal_grid_has_no_tilt(self, codes):
        for turn in (np.eye(4), rotation(20, -35, 70), rotation(-4, 81, 3)):
            affine = turn @ affine_of(codes)
            for axis in range(3):
                assert gantry_tilt(affine, axis) < 1e-6
                # float32 is what headers keep.
                assert gantry_tilt(affine.astype(np.float32), axis) < 1e-4
                np.testing.assert_allclose(grid_spacing(affine, axis), grid_spacing(affine))

    def test_refused(self):
        with pytest.raises(ValueError, match=r"finite 4 x 4 affine in mm, got shape \(3, 3\)"):
            grid_spacing(np.eye(3))
        with pytest.raises(ValueError, match="finite 4 x 4"):
            grid_spacing(np.full((4, 4), np.nan))
        with pytest.raises(ValueError, match="singular"):
            find_slice_axis(np.diag([1.0, 1.0, 0.0, 1.0]))


class TestSliceAxis:
    def test_axial_sagittal_and_coronal_scans(self):
        for codes in ORIENTATIONS:
            assert find_slice_axis(affine_of(codes)) == max(codes.find("I"), codes.find("S")), codes
        # Slices along x and along y.
        assert find_slice_axis(np.diag([3.0, 0.5, 0.5, 1])) == 0
        assert find_slice_axis(np.diag([0.5, 3.0, 0.5, 1])) == 1

    @pytest.mark.parametrize(
        ("spacing", "axis"),
        [
            ((1.1, 1.0, 1.0), 0),  # pixels are square: the axis that differs
            ((1.0, 1.1, 1.005), 1),
            ((0.7, 1.0, 1.0), 0),  # be it smaller
            ((1.04, 1.04, 0.7), 2),
            ((0.9, 2.0, 1.0), 1),  # no square pixels: the much larger spacing
            ((1.0, 1.0, 1.0), 2),  # nothing tells: superior-inferior
            ((1.0, 1.2, 1.1), 2),
            ((1.005, 1.0, 1.0), 2),
        ],
    )
    def test_spacings_that_tell_and_that_do_not(self, spacing, axis):
        assert find_slice_axis(np.diag([*spacing, 1])) == axis

    def test_tie_goes_to_the_axis_nearest_to_superior(self):
        affine = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
        assert find_slice_axis(affine) == 1
        assert find_slice_axis(rotation(x=30) @ affine) == 1
        assert find_slice_axis(rotation(x=60) @ affine) == 0


class TestSlabFrame:
    def test_there_are_48(self):
        assert len(set(ORIENTATIONS)) == 48

    @pytest.mark.parametrize("codes", ORIENTATIONS)
    def test_every_orientation_becomes_superior_posterior_left(self, codes):
        affine, shape = affine_of(codes), (3, 4, 5)
        frame = SlabFrame.from_affine(affine)
        stored = np.arange(60).reshape(shape)
        slab = frame.to_slab(stored)
        slab_affine = frame.slab_affine(affine, shape)
        assert nib.aff2axcodes(slab_affine) == ("S", "P", "L")
        np.testing.assert_allclose(grid_spacing(slab_affine), [5.0, 0.8, 0.7])
        np.testing.assert_array_equal(frame.to_stored(slab), stored)
        # The position of every voxel, with the voxel values as their names.
        positions = np.empty((60, 3))
        positions[stored.ravel()] = world(affine, shape).reshape(-1, 3)
        np.testing.assert_allclose(
            world(slab_affine, slab.shape).reshape(-1, 3), positions[slab.ravel()], atol=1e-12
        )

    @pytest.mark.parametrize("codes", ["LPS", "RAI", "SRA", "PIL"])
    def test_thin_slabs_go_back_to_where_the_thick_ones_stand(self, codes):
        affine, shape, ratio = affine_of(codes), (3, 4, 5), 3
        frame = SlabFrame.from_affine(affine)
        depth = thin_depth(shape[frame.axis], ratio)
        thick_slab = frame.to_slab(world(affine, shape)[..., 2])
        # z is linear in the slice index, so that its end-aligned interpolation is exact.
        z = np.linspace(thick_slab[0, 0, 0], thick_slab[-1, 0, 0], depth)
        stored = frame.to_stored(np.broadcast_to(z[:, None, None], (depth, *thick_slab.shape[1:])))
        thin = thin_affine(affine, frame.axis, ratio)
        np.testing.assert_allclose(stored, world(thin, stored.shape)[..., 2], atol=1e-9)

    @pytest.mark.parametrize("codes", ["LPS", "RAS", "IAL", "ASR"])
    @pytest.mark.parametrize("angles", [(12, -8, 17), (0, 25, 0), (-30, 5, 20)])
    def test_oblique(self, codes, angles):
        affine, shape = rotation(*angles) @ affine_of(codes), (3, 4, 5)
        frame = SlabFrame.from_affine(affine)
        slab_affine = frame.slab_affine(affine, shape)
        assert nib.aff2axcodes(slab_affine) == ("S", "P", "L")
        for coordinate in range(3):
            slab = frame.to_slab(world(affine, shape)[..., coordinate])
            np.testing.assert_allclose(
                slab, world(slab_affine, slab.shape)[..., coordinate], atol=1e-9
            )

    def test_two_axes_nearest_to_the_same_direction_are_told_apart(self):
        # In this rotated and sheared grid both in-plane axes are nearest to the same of y and z;
        # each must still get a different axis.
        affine = rotation(x=44) @ np.diag([0.7, 0.8, 5.0, 1])
        affine[:3, 1] = 0.8 * np.array([0, 0.6, 0.8])
        frame = SlabFrame.from_affine(affine)
        assert sorted(frame.order) == [0, 1, 2]

    @pytest.mark.parametrize(
        ("axis", "codes"), [(0, ("L", "S", "P")), (1, ("P", "S", "L")), (2, ("S", "P", "L"))]
    )
    def test_sagittal_and_coronal_scans(self, axis, codes):
        spacing = np.full(3, 0.5)
        spacing[axis] = 4.0
        affine = np.diag([*spacing, 1])
        frame = SlabFrame.from_affine(affine)
        assert frame.axis == axis
        assert nib.aff2axcodes(frame.slab_affine(affine, (6, 7, 8))) == codes

    def test_slice_axis_can_be_given(self):
        assert SlabFrame.from_affine(affine_of("LPS"), axis=1).order == (1, 2, 0)
