"""Which cases are found in each layout that data come in, and what is refused."""

from pathlib import Path

import pytest

from mpunet.data.case import Case
from mpunet.data.layouts import files_by_name, find_cases


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


class TestThinAlone:
    def test_at_any_depth(self, tmp_path):
        touch(tmp_path, "b.nii.gz", "a.NII", "sub/c.d.nii.gz", "notes.txt")
        cases = find_cases(str(tmp_path))
        assert cases == [
            Case(n, n, tmp_path / f)
            for n, f in (("a", "a.NII"), ("b", "b.nii.gz"), ("sub/c.d", "sub/c.d.nii.gz"))
        ]

    @pytest.mark.parametrize("name", ["thin", "1mm"])
    def test_in_its_subfolder(self, tmp_path, name):
        touch(tmp_path, f"{name}/1.nii", "report/1.nii")
        assert find_cases(tmp_path) == [Case("1", "1", tmp_path / name / "1.nii")]

    def test_a_folder_named_test_is_no_split(self, tmp_path):
        touch(tmp_path, "test/1.nii", "2.nii")
        assert [(case.name, case.part) for case in find_cases(tmp_path)] == [
            ("2", None),
            ("test/1", None),
        ]


class TestPairs:
    @pytest.mark.parametrize(("thin", "thick"), [("thin", "thick"), ("1mm", "5mm")])
    def test_in_subfolders(self, tmp_path, thin, thick):
        # The two of a pair need not be compressed alike.
        touch(
            tmp_path, f"{thin}/x/1.nii.gz", f"{thin}/2.nii", f"{thick}/x/1.nii", f"{thick}/2.nii.gz"
        )
        touch(tmp_path, "lung/x/1.nii.gz", "lung/2.nii.gz")
        cases = find_cases(tmp_path)
        assert [case.name for case in cases] == ["2", "x/1"]
        assert cases[1] == Case(
            "x/1",
            "x/1",
            tmp_path / thin / "x/1.nii.gz",
            tmp_path / thick / "x/1.nii",
            tmp_path / "lung/x/1.nii.gz",
        )

    def test_in_folders_anywhere(self, tmp_path):
        touch(tmp_path, "pacs/iso/1.nii", "disk/old/axial/1.nii.gz", "masks/1.nii")
        folders = {"thin": str(tmp_path / "pacs/iso"), "thick": str(tmp_path / "disk/old/axial")}
        thin, thick = tmp_path / "pacs/iso/1.nii", tmp_path / "disk/old/axial/1.nii.gz"
        assert find_cases(folders) == [Case("1", "1", thin, thick)]
        folders["lung"] = str(tmp_path / "masks")
        assert find_cases(folders) == [Case("1", "1", thin, thick, tmp_path / "masks/1.nii")]
        assert find_cases({"thin": folders["thin"]}) == [Case("1", "1", thin)]

    @pytest.mark.parametrize("folders", [{"thick": "a"}, {"thin": "a", "thik": "b"}, {}])
    def test_of_other_kinds(self, folders):
        with pytest.raises(
            ValueError,
            match="'thin' and perhaps 'thick' and 'lung', "
            f"got {', '.join(map(repr, folders)) or 'none'}.",
        ):
            find_cases(folders)


class TestOwnSplit:
    def test_as_rplhr_is_published(self, tmp_path):
        for part, names in {"train": "ab", "val": "c", "test": "de"}.items():
            touch(
                tmp_path,
                *(f"{part}/{kind}/{name}.nii.gz" for kind in ("1mm", "5mm") for name in names),
            )
        touch(tmp_path, "readme.md", "tiny/1mm/f.nii.gz")
        expected = [("train", "a"), ("train", "b"), ("val", "c"), ("test", "d"), ("test", "e")]
        assert find_cases(tmp_path) == [
            Case(
                f"{p}/{n}",
                n,
                tmp_path / p / "1mm" / f"{n}.nii.gz",
                tmp_path / p / "5mm" / f"{n}.nii.gz",
                None,
                p,
            )
            for p, n in expected
        ]
        assert find_cases(tmp_path / "test") == [
            Case(n, n, tmp_path / "test/1mm" / f"{n}.nii.gz", tmp_path / "test/5mm" / f"{n}.nii.gz")
            for n in "de"
        ]
        assert find_cases(tmp_path / "test" / "1mm")[0] == Case(
            "d", "d", tmp_path / "test/1mm/d.nii.gz"
        )

    def test_each_part_in_a_layout_of_its_own(self, tmp_path):
        touch(tmp_path, "train/sub/1.nii", "test/thin/2.nii", "test/thick/2.nii", "thick/3.nii")
        found = [(case.name, case.part, case.thick is not None) for case in find_cases(tmp_path)]
        assert found == [("train/sub/1", "train", False), ("test/2", "test", True)]

    def test_one_part_is_enough_if_it_has_pairs(self, tmp_path):
        touch(tmp_path, "test/1mm/1.nii", "test/5mm/1.nii")
        assert [(case.name, case.part) for case in find_cases(tmp_path)] == [("test/1", "test")]

    def test_real_ct(self, shared_ct):
        cases = find_cases(shared_ct)
        files = sorted(
            f"{part}/{path.name}"
            for part in ("train", "val", "test")
            for path in (shared_ct / part).glob("*.nii.gz")
        )
        assert sorted(f"{case.name}.nii.gz" for case in cases) == files
        assert all(case.part == case.name.split("/")[0] for case in cases)


class TestPatients:
    @pytest.mark.parametrize(
        ("pattern", "patients"),
        [
            (None, ["LIDC-1_a", "LIDC-1_b", "LIDC-22_a"]),
            (r"\d+", ["1", "1", "22"]),
            ("(.*)_", ["LIDC-1", "LIDC-1", "LIDC-22"]),
        ],
    )
    def test_patients(self, tmp_path, pattern, patients):
        touch(tmp_path, "LIDC-1_a.nii", "LIDC-1_b.nii", "LIDC-22_a.nii")
        assert [case.patient for case in find_cases(tmp_path, patient_pattern=pattern)] == patients

    def test_the_folder_of_a_part_is_no_part_of_the_name(self, tmp_path):
        touch(tmp_path, "train/LIDC-1_a.nii", "val/LIDC-2_a.nii")
        cases = find_cases(tmp_path, patient_pattern=r"^(LIDC-\d+)_")
        assert [(case.name, case.patient) for case in cases] == [
            ("train/LIDC-1_a", "LIDC-1"),
            ("val/LIDC-2_a", "LIDC-2"),
        ]

    def test_pattern_that_does_not_match(self, tmp_path):
        touch(tmp_path, "a1.nii", "b.nii")
        with pytest.raises(
            ValueError, match=r"patient_pattern '\\\\d' does not match the case 'b'"
        ):
            find_cases(tmp_path, patient_pattern=r"\d")


def test_intensity_is_handed_on(tmp_path):
    touch(tmp_path, "a.nii")
    assert [
        find_cases(tmp_path, **given)[0].intensity for given in ({}, {"intensity": "rplhr"})
    ] == ["auto", "rplhr"]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ((), "found none"),
        (("thick/1.nii",), "'thick' but none named 'thin'"),
        (("5mm/1.nii",), "'5mm' but none named '1mm'"),
        (("train/5mm/1.nii", "val/1mm/1.nii"), "train has a subfolder '5mm' but none named '1mm'"),
        (
            ("thin/1.nii", "thin/2.nii", "thick/1.nii"),
            "1 cases are not both in .*/thin and in .*/thick, the first of them '2'",
        ),
        (
            ("thin/1.nii", "thick/1.nii", "thick/0.nii"),
            "/thick, the first of them '0'.*a CSV of pairs",
        ),
        (("thin/1.nii", "thin/2.nii", "lung/2.nii"), "/lung, the first of them '1'"),
        (
            ("train/1mm/1.nii", "train/5mm/2.nii"),
            "2 cases are not both in .*train/1mm and in .*train/5mm",
        ),
        (("thin/1.nii", "thin/1.nii.gz"), "Two files have the name '1'"),
    ],
)
def test_refused(tmp_path, files, reason):
    touch(tmp_path, *files)
    with pytest.raises(ValueError, match=reason):
        find_cases(tmp_path)


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(ValueError, match=r"found nothing at .*gone"):
        find_cases(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"found nothing at .*gone"):
        find_cases({"thin": str(tmp_path / "gone")})
    (tmp_path / "thin").mkdir()
    with pytest.raises(ValueError, match=r"in .*thin or its subfolders, found none"):
        find_cases(tmp_path)


def test_files_by_name_of_a_file(tmp_path):
    touch(tmp_path, "x.y.NII.GZ")
    assert files_by_name(tmp_path / "x.y.NII.GZ") == {"x.y": Path(tmp_path / "x.y.NII.GZ")}
