"""``mpunet simulate``: one scan's failure does not stop the others."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from mpunet.__main__ import main
from mpunet.cli import simulate as command


def test_other_scans_go_on_whatever_one_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    voxels = np.linspace(-1000, 500, 16 * 16 * 21).reshape(16, 16, 21).astype(np.int16)
    for name in ("a", "b", "c"):
        path = tmp_path / "thin" / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(voxels, np.diag([-1, -1, 1, 1])), path)
    write = command.write_thick

    def failing(path: Path, *args: Any, **options: Any) -> None:
        if path.name == "b.nii.gz":
            raise struct.error("unpack requires 4 bytes")
        write(path, *args, **options)

    monkeypatch.setattr(command, "write_thick", failing)
    thick = tmp_path / "thick"
    assert main(["simulate", str(tmp_path / "thin"), str(thick), "--ratio", "5"]) == 1
    assert sorted(path.name for path in thick.iterdir()) == ["a.nii.gz", "c.nii.gz"]
    printed = capsys.readouterr()
    assert "error: unpack requires 4 bytes" in printed.out + printed.err
    assert f"2 written to {thick}, 1 failed" in printed.out
