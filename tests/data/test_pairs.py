"""The split by patient or by the data set, and the alignment of thick and thin series."""

import itertools
import random
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import nifti, position_slab, save, volume

from mpunet.data.case import Case
from mpunet.data.pairs import align_pair, check_alignment, split_by_patient, split_cases
from mpunet.io.scan_file import read_volume
from mpunet.io.volume import volume_from_image


def cases_of(patients, scans=1):
    return [Case(f"{p}_{s}", p, Path(f"{p}_{s}.nii")) for p in patients for s in range(scans)]


class TestSplit:
    def test_fractions_of_the_paper(self):
        parts = split_by_patient(
            cases_of(f"p{i}" for i in range(880)), (600 / 880, 104 / 880, 176 / 880)
        )
        assert [len(part) for part in parts] == [600, 104, 176]

    @pytest.mark.parametrize(
        ("patients", "sizes"),
        [(3, [1, 1, 1]), (4, [2, 1, 1]), (10, [7, 1, 2]), (100, [68, 12, 20])],
    )
    def test_every_part_gets_a_patient(self, patients, sizes):
        assert [
            len(part)
            for part in split_by_patient(cases_of(map(str, range(patients))), (0.68, 0.12, 0.2))
        ] == sizes

    @pytest.mark.parametrize(
        "fractions", [(0.5, 0.3, 0.2), (0, 0.5, 0.5), (1, 0, 0), (0.01, 0.98, 0.01), (0.5, 0, 0.5)]
    )
    def test_disjoint_complete_and_kept_together(self, fractions):
        for patients, seed in itertools.product((3, 5, 17), range(5)):
            cases = cases_of((f"p{i}" for i in range(patients)), scans=2)
            parts = split_by_patient(cases, fractions, seed=seed)
            assert sorted(case for part in parts for case in part) == sorted(cases)
            people = [{case.patient for case in part} for part in parts]
            assert sum(map(len, people)) == patients
            assert [bool(p) for p in people] == [f > 0 for f in fractions]

    def test_same_for_any_order_another_for_another_seed(self):
        cases = cases_of((f"p{i}" for i in range(30)), scans=2)
        shuffled = cases.copy()
        random.Random(0).shuffle(shuffled)
        fractions = (0.5, 0.25, 0.25)
        first, again = (split_by_patient(c, fractions, seed=3) for c in (cases, shuffled))
        assert [set(part) for part in first] == [set(part) for part in again]
        assert first != split_by_patient(cases, fractions, seed=4)

    def test_literal(self):
        """A split that changes from version to version would mix test cases into training."""
        parts = split_by_patient(cases_of("abcdef"), (0.5, 0.25, 0.25))
        assert [[case.patient for case in part] for part in parts] == [
            ["b", "c", "f"],
            ["e"],
            ["a", "d"],
        ]

    @pytest.mark.parametrize(
        ("fractions", "reason"),
        [
            ((0.5, 0.5, 0.5), "fractions of at least 0 with sum 1"),
            ((1.5, -0.5), "fractions of at least 0 with sum 1"),
            ((0.4, 0.3, 0.3), "at least 3 patients to split into 3 parts, got 2.*train_dir"),
        ],
    )
    def test_refused(self, fractions, reason):
        with pytest.raises(ValueError, match=reason):
            split_by_patient(cases_of("ab", scans=2), fractions)


class TestOwnSplit:
    def test_the_datas_own_comes_first(self):
        cases = [
            case._replace(part=part)
            for case, part in zip(cases_of("abcd"), ("val", "train", "val", "test"), strict=True)
        ]
        found = split_cases(cases, (0.4, 0.3, 0.3))
        assert {part: [case.patient for case in members] for part, members in found.items()} == {
            "train": ["b"],
            "val": ["a", "c"],
            "test": ["d"],
        }
        assert split_cases(cases[:1], (1, 0, 0)) == {"train": [], "val": cases[:1], "test": []}

    def test_at_random_without_one(self):
        cases = cases_of("abcdef")
        assert list(split_cases(cases, (0.5, 0.25, 0.25), seed=5).values()) == split_by_patient(
            cases, (0.5, 0.25, 0.25), seed=5
        )

    def test_a_patient_in_two_parts(self):
        first, second = cases_of("a", scans=2)
        with pytest.raises(
            ValueError, match=r"patient 'a' is both in train \(a_0.nii\) and in test \(a_1.nii\)"
        ):
            split_cases([first._replace(part="train"), second._replace(part="test")], (1, 0, 0))


SHAPE = (26, 6, 7)
SLAB = position_slab(SHAPE)
THIN = {"spacing": (1.0, 0.7, 0.7)}
THICK = {"spacing": (5.0, 0.7, 0.7)}


class TestAlign:
    def test_exact(self):
        # 26 = 5 * 5 + 1: both series end together.
        assert align_pair(volume(SLAB[::5], **THICK), volume(SLAB, **THIN), 5) == (
            slice(0, 6),
            slice(0, 26),
        )

    @pytest.mark.parametrize(
        ("first", "count", "expected"),
        [
            (2, 5, (slice(0, 5), slice(2, 23))),  # starts after the thin series
            (4, 3, (slice(0, 3), slice(4, 15))),
            (-5, 7, (slice(1, 7), slice(0, 26))),  # starts before it
            (-7, 6, (slice(2, 6), slice(3, 19))),
            (0, 9, (slice(0, 6), slice(0, 26))),  # ends after it
            (-3, 9, (slice(1, 5 + 1), slice(2, 23))),  # and both
        ],
    )
    def test_offsets(self, first, count, expected):
        at = first + 5 * np.arange(count)
        thick = np.take(SLAB, at, axis=0, mode="clip")
        used_thick, used_thin = align_pair(
            volume(thick, start=float(first), **THICK), volume(SLAB, **THIN), 5
        )
        assert (used_thick, used_thin) == expected
        # The contract: thick slice k on thin slice 5 k, by the positions in the voxels.
        np.testing.assert_array_equal(thick[used_thick], SLAB[used_thin][::5])

    @pytest.mark.parametrize(
        ("thick_codes", "thin_codes"),
        [("LPI", "LPS"), ("LPS", "RAI"), ("RAS", "SPL"), ("PIR", "ASR")],
    )
    def test_storage_of_either_does_not_matter(self, thick_codes, thin_codes):
        thick = volume(SLAB[2:23:5], start=2.0, codes=thick_codes, **THICK)
        thin = volume(SLAB, codes=thin_codes, **THIN)
        used_thick, used_thin = align_pair(thick, thin, 5)
        assert (used_thick, used_thin) == (slice(0, 5), slice(2, 23))
        np.testing.assert_array_equal(thick.slab[used_thick], thin.slab[used_thin][::5])

    def test_oblique_scans(self):
        c, s = np.cos(0.3), np.sin(0.3)
        turn = np.array([[1, 0, 0, 3], [0, c, -s, 5], [0, s, c, 7], [0, 0, 0, 1]])
        thick, thin = nifti(SLAB[2:23:5], start=2.0, **THICK), nifti(SLAB, **THIN)
        turned = [
            volume_from_image(type(i)(np.asarray(i.dataobj), turn @ i.affine), path="a.nii")
            for i in (thick, thin)
        ]
        assert align_pair(*turned, 5) == (slice(0, 5), slice(2, 23))

    def test_a_scanners_pair(self, shared_ct):
        thick, thin = (
            read_volume(shared_ct / "pair" / f"head_{kind}.nii.gz") for kind in ("thick", "thin")
        )
        assert (len(thick.slab), len(thin.slab)) == (28, 140)
        assert align_pair(thick, thin, 5) == (
            slice(0, 28),
            slice(2, 138),
        )  # thick slice k on thin slice 5 k + 2

    @pytest.mark.parametrize(
        ("slab", "options", "ratio", "reason"),
        [
            (
                SLAB[::5, :, :-1],
                THICK,
                5,
                r"\(6, 6\) against \(6, 7\) voxels in plane.*field of view",
            ),
            (
                SLAB[::5],
                THICK,
                4,
                r"slices 5 and 1 mm apart have the ratio 5.000, expected 4, the network's",
            ),
            (SLAB, THIN, 5, r"slices 1 and 1 mm apart have the ratio 1.000, expected 5"),
            (SLAB[::5], {"spacing": (5.1, 0.7, 0.7)}, 5, "ratio 5.100, expected 5"),
            (
                SLAB[::5],
                {"spacing": (5.0, 0.7, 0.75)},
                5,
                "differ in direction or in-plane spacing",
            ),
            (
                SLAB[::5],
                {"start": 0.5} | THICK,
                5,
                r"first thick slice is at thin voxel \(0.50, ",
            ),
            (
                SLAB[::5],
                {"start": 22.0} | THICK,
                5,
                "share 1 thick slice positions, expected at least 2",
            ),
            (SLAB[::5], {"start": 100.0} | THICK, 5, "share 0 thick slice positions"),
            (SLAB[::5], {"start": -100.0} | THICK, 5, "share 0 thick slice positions"),
        ],
    )
    def test_mismatches(self, slab, options, ratio, reason):
        with pytest.raises(
            ValueError, match=rf"scan.nii.gz and scan.nii.gz do not match.*{reason}"
        ):
            align_pair(volume(slab, **options), volume(SLAB, **THIN), ratio)

    def test_shift_in_plane_and_tilt(self):
        thin = volume(SLAB, **THIN)
        thick = nifti(SLAB[::5], **THICK)
        for row, column, value, reason in (
            (0, 3, 1.0, "thin voxel"),
            (1, 2, 0.5, "differ in direction"),
        ):
            affine = thick.affine.copy()
            affine[row, column] += value
            with pytest.raises(ValueError, match=reason):
                align_pair(
                    volume_from_image(type(thick)(np.asarray(thick.dataobj), affine), path="a.nii"),
                    thin,
                    5,
                )

    def test_small_differences_that_add_up(self):
        thin = position_slab((151, 3, 4))
        # 5.03 for 5 mm is a rounded header over six slices and 0.9 mm over thirty-one.
        align_pair(volume(thin[:26:5], spacing=(5.03, 0.7, 0.7)), volume(thin, **THIN), 5)
        with pytest.raises(ValueError, match=r"drift apart by up to 0.9 thin voxels"):
            align_pair(volume(thin[::5], spacing=(5.03, 0.7, 0.7)), volume(thin, **THIN), 5)


class TestCheckAlignment:
    def test_from_headers_alone(self, tmp_path):
        thin, thick = (
            save(tmp_path / "thin.nii", SLAB),
            save(tmp_path / "thick.nii", SLAB[::5], **THICK),
        )
        cases = [Case("0", "0", tmp_path / "gone.nii"), Case("1", "1", thin, thick)]
        check_alignment(cases, ratio=5)
        for path in (thin, thick):  # what stands where the voxels stood is not looked at
            raw = path.read_bytes()
            path.write_bytes(raw[:352] + bytes(len(raw) - 352))
        check_alignment(cases, ratio=5)
        with pytest.raises(
            ValueError, match=r"thick.nii and .*thin.nii do not match: .* ratio 5.000, expected 4"
        ):
            check_alignment(cases, ratio=4)
        thick.write_bytes(b"no scan")
        with pytest.raises(ValueError, match=r"thick.nii: not a NIfTI file"):
            check_alignment(cases, ratio=5)


def test_helpers_write_what_they_say(tmp_path):
    for codes in ("LPS", "RAI", "SRP"):
        path = save(tmp_path / f"{codes}.nii.gz", SLAB, codes=codes, start=-3.0)
        assert nib.aff2axcodes(nib.load(path).affine) == tuple(codes)
        found = read_volume(path)
        np.testing.assert_array_equal(found.slab, SLAB)
        np.testing.assert_allclose(found.slab_affine[:3, 3], [80.0, 60.0, -3.0], rtol=1e-6)
