"""`mpunet reader-study` from files to files."""

from __future__ import annotations

import builtins
import csv
import json
from pathlib import Path

import numpy as np
import pytest
from helpers import save
from PIL import Image

from mpunet.__main__ import main
from mpunet.reader_study.findings import Reading, read_findings

EXAMPLE = Path(__file__).parents[2] / "examples" / "reader_study"
STANDARD = "case,x,y,z,diameter\na,0,0,0,5\nb,10,0,0,7\nc,,,,\n"
FINDINGS = (
    "reader,condition,case,x,y,z,diameter\nanna,thick,a,,,,\nanna,thick,b,11,0,0,6\n"
    "anna,thin,a,0,1,0,5\nanna,thin,b,10,0,1,7\n"
)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "findings.csv").write_text(FINDINGS)
    (tmp_path / "standard.csv").write_text(STANDARD)
    return [
        str(tmp_path / "findings.csv"),
        str(tmp_path / "standard.csv"),
        "--output",
        str(tmp_path / "out"),
    ]


def test_the_simulated_example_from_end_to_end(tmp_path, capsys):
    words = [
        "reader-study",
        str(EXAMPLE / "findings.csv"),
        str(EXAMPLE / "standard.csv"),
        "--output",
        str(tmp_path),
    ]
    assert main([*words, "--reference", "thin"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "rates.csv",
        "differences.csv",
        "study.json",
        "study.md",
        "study.png",
    }
    screen = capsys.readouterr().out
    assert (tmp_path / "study.md").read_text() in screen
    assert "30 cases, 87 nodules in the standard" in screen
    with (tmp_path / "rates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 3 * 2  # three readers and all, three conditions, two thresholds
    for row in rows:
        assert float(row["sensitivity"]) == pytest.approx(int(row["hits"]) / int(row["nodules"]))
        assert (
            float(row["sensitivity_low"])
            <= float(row["sensitivity"])
            <= float(row["sensitivity_high"])
        )
    pixels = np.asarray(Image.open(tmp_path / "study.png").convert("L"))
    assert pixels.std() > 10
    # Everything in it, names included, is said to be simulated.
    lines = (EXAMPLE / "findings.csv").read_text().splitlines()[1:]
    assert all(line.startswith("simulated reader ") and ",simulated_" in line for line in lines)


def test_thresholds_radius_and_coordinates_reach_the_study(files, tmp_path):
    assert (
        main(
            [
                "reader-study",
                *files,
                "--thresholds",
                "6",
                "--radius",
                "0.5",
                "--coordinates",
                "LPS",
                "--figure",
                "false",
            ]
        )
        == 0
    )
    study = json.loads((tmp_path / "out" / "study.json").read_text())
    assert (study["thresholds"], study["radius"], study["reference"]) == ([6], 0.5, "thick")
    assert [(r["condition"], r["nodules"], r["hits"]) for r in study["rates"]] == [
        ("thick", 1, 1),
        ("thin", 1, 1),
    ]
    assert not (tmp_path / "out" / "study.png").exists()


def test_several_files_make_one_study(files, tmp_path):
    other = tmp_path / "berta=1.csv"
    other.write_text(FINDINGS.replace("anna", "berta"))
    assert main(["reader-study", files[0], str(other), *files[1:], "--figure", "false"]) == 0
    rates = json.loads((tmp_path / "out" / "study.json").read_text())["rates"]
    assert {r["reader"] for r in rates} == {"anna", "berta", "all readers"}


def test_volumes_are_read_by_the_automatic_reader(tmp_path, files, capsys):
    z, y, x = np.ogrid[:60, :60, :60]
    body = np.full((60, 60, 60), 40, np.int16)
    body[:, 8:52, 8:52] = -850
    nodule = body.copy()
    nodule[(z - 30) ** 2 + (y - 25) ** 2 + (x - 35) ** 2 <= 16] = 30
    save(tmp_path / "thin" / "b.nii.gz", nodule, spacing=(1, 1, 1))
    save(tmp_path / "thin" / "c.nii.gz", body, spacing=(1, 1, 1))
    # Slab (30, 25, 35) lies at x = 80 - 35, y = 60 - 25 (helpers.nifti).
    Path(files[1]).write_text("case,x,y,z,diameter\na,0,0,0,5\nb,45,35,30,8\nc,,,,\n")
    words = ["reader-study", f"thin={tmp_path / 'thin'}", *files[1:], "--figure", "false"]
    assert main(words) == 0
    assert "automatic reader, thin: 1 of 3 cases have no row" in capsys.readouterr().out
    found = read_findings(tmp_path / "out" / "findings.csv", cases="abc")
    assert [len(found[Reading("automatic reader", "thin", case)]) for case in "bc"] == [1, 0]
    (rate,) = (
        r
        for r in json.loads((tmp_path / "out" / "study.json").read_text())["rates"]
        if r["threshold"] == 6
    )
    assert (rate["reader"], rate["nodules"], rate["hits"], rate["false_positive_count"]) == (
        "automatic reader",
        1,
        1,
        0,
    )

    (tmp_path / "thin" / "a.nii.gz").write_bytes(b"broken")
    assert main(words) == 1
    assert (
        "1 volumes could not be read and count as unread:\n  thin, a: a.nii.gz: not a NIfTI file"
        in capsys.readouterr().out
    )
    assert read_findings(tmp_path / "out" / "findings.csv", cases="abc") == found
    for case in "bc":
        (tmp_path / "thin" / f"{case}.nii.gz").unlink()
    assert main(words) == 2
    assert "No volume of" in capsys.readouterr().err


def test_bad_input_is_one_line_and_status_2(files, tmp_path, capsys):
    def error(*words):
        assert main(["reader-study", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "among the conditions thick, thin, got 'medium'" in error(
        *files, "--reference", "medium"
    )
    assert "Expected thresholds in mm with commas between" in error(*files, "--thresholds", "4;6")
    assert "anna, thick, a was read before" in error(files[0], *files)
    assert "Expected CONDITION=FOLDER" in error(f"={tmp_path}", *files[1:])
    save(tmp_path / "scans" / "z.nii.gz", np.full((4, 8, 8), -1000, np.int16))
    assert "case 'z' is not in the standard" in error(f"thin={tmp_path / 'scans'}", *files[1:])
    assert "nothing at" in error(f"thin={tmp_path / 'nowhere'}", *files[1:])
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit) as exit_:
        main(["reader-study", files[0]])
    assert exit_.value.code == 2


def test_without_matplotlib_the_tables_are_written_and_the_way_out_is_told(
    files, tmp_path, monkeypatch, capsys
):
    true_import = builtins.__import__

    def no_matplotlib(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return true_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    assert main(["reader-study", *files]) == 2
    assert "pip install 'mpunet[demo]', or pass --figure false" in capsys.readouterr().err
    assert (tmp_path / "out" / "rates.csv").exists()
