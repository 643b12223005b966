"""Lists of pairs: what each line means, and which line is wrong."""

import os

import pytest

from mpunet.data.case import Case
from mpunet.data.layouts import find_cases
from mpunet.data.pair_list import read_pair_list


@pytest.fixture
def listed(tmp_path):
    """Writes a CSV beside the files that it may name."""
    for name in ("a/1mm.nii.gz", "a/5mm.nii", "a/lung.nii", "b.nii", "c.NII.GZ"):
        path = tmp_path / "scans" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def write(text, encoding="utf-8"):
        (tmp_path / "scans" / "pairs.csv").write_bytes(text.encode(encoding))
        return tmp_path / "scans" / "pairs.csv"

    return write


def test_all_columns(listed):
    path = listed(
        "thin,thick,lung,patient,split\n"
        "a/1mm.nii.gz,a/5mm.nii,a/lung.nii,Ann,train\n"
        "\n"
        "b.nii,,,Ben,val\n"
        " c.NII.GZ , a/5mm.nii ,, Cat , test \n"
    )
    root = path.parent
    assert read_pair_list(path) == [
        Case(
            "a/1mm", "Ann", root / "a/1mm.nii.gz", root / "a/5mm.nii", root / "a/lung.nii", "train"
        ),
        Case("b", "Ben", root / "b.nii", None, None, "val"),
        Case("c", "Cat", root / "c.NII.GZ", root / "a/5mm.nii", None, "test"),
    ]
    assert find_cases(path, patient_pattern="nothing that matches") == read_pair_list(path)


def test_thin_alone_in_the_lists_order(listed):
    path = listed("thin\nc.NII.GZ\nb.nii\n")
    assert find_cases(str(path)) == [
        Case(n, n, path.parent / f) for n, f in (("c", "c.NII.GZ"), ("b", "b.nii"))
    ]


def test_patients_from_names_where_the_list_has_none(listed):
    path = listed("patient,thin\n,a/1mm.nii.gz\nBen,b.nii\n")
    assert [case.patient for case in find_cases(path)] == ["a/1mm", "Ben"]
    assert [case.patient for case in find_cases(path, patient_pattern="^a")] == ["a", "Ben"]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (
            'Thin;"Thick"\r\na/1mm.nii.gz;a/5mm.nii\r\n',
            "utf-8-sig",
        ),  # as a spreadsheet in Europe writes it
        ("THICK\tTHIN\na/5mm.nii\ta/1mm.nii.gz", "utf-8"),
    ],
)
def test_what_spreadsheets_write(listed, text, encoding):
    path = listed(text, encoding)
    assert read_pair_list(path) == [
        Case("a/1mm", "", path.parent / "a/1mm.nii.gz", path.parent / "a/5mm.nii")
    ]


def test_files_outside_of_the_lists_folder(listed, tmp_path):
    for name in ("other/b.nii", "d.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    absolute = tmp_path / "d.nii"
    cases = read_pair_list(listed(f"thin,thick\n../other/b.nii,b.nii\n{absolute},\n"))
    assert [case.name for case in cases] == [
        "other/b",
        os.path.splitext(absolute.as_posix())[0].lstrip("/"),
    ]
    assert [case.thin.resolve() for case in cases] == [tmp_path / "other/b.nii", absolute]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "line 1: expected the columns thin and perhaps thick, .* got nothing"),
        ("b.nii,a/5mm.nii\n", "line 1: expected the columns thin .* got 'b.nii', 'a/5mm.nii'"),
        ("thick,patient\n", "line 1: .* got 'thick', 'patient'"),
        ("thin,patient_id\n", "line 1: .* got 'thin', 'patient_id'"),
        ("thin,thin\n", "line 1: .* each once, got 'thin', 'thin'"),
        ("thin,thick\n", "expected a line for each case below the first, found none"),
        ("thin,thick\nb.nii\n", "line 2: expected 2 values, got 1"),
        ("thin,thick\nb.nii,\nc.NII.GZ,,\n", "line 3: expected 2 values, got 3"),
        ("thin,thick\n,a/5mm.nii\n", "line 2: expected a thin volume, got none"),
        (
            "thin,thick\nb.nii,\n\nc.NII.GZ,gone.nii\n",
            "line 4: no thick file at .*scans/gone.nii; paths start from the list's folder",
        ),
        ("thin\nd\n", r"line 2: expected a thin file ending in .nii .* DICOM series, got 'd'"),
        (
            "thin,lung\nb.nii,mask.png\n",
            r"line 2: expected a lung file ending in .nii .* DICOM series, got 'mask.png'",
        ),
        ("thin\nb.nii\nc.NII.GZ\n./b.nii\n", "line 4: the thin volume 'b' is in line 2 too"),
        (
            "thin,split\nb.nii,training\n",
            "line 2: expected a split of train, val or test, got 'training'",
        ),
        (
            "thin,split\nb.nii,train\nc.NII.GZ,\n",
            "line 3: expected a split as in other lines, got none",
        ),
        (
            "thin,patient,split\nb.nii,Ann,train\nc.NII.GZ,Ann,test\n",
            "line 3: the patient 'Ann' is in test here and in train in line 2",
        ),
    ],
)
def test_refused(listed, text, reason):
    with pytest.raises(ValueError, match=f"scans/pairs.csv.*{reason}"):
        read_pair_list(listed(text))


def test_unreadable(listed, tmp_path):
    with pytest.raises(
        ValueError, match=r"gone.csv: cannot be read as a list of pairs: No such file"
    ):
        find_cases(tmp_path / "gone.csv")
    path = listed("")
    path.write_bytes(b"thin\n\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"pairs.csv: cannot be read as a list of pairs: .*decode"):
        read_pair_list(path)
