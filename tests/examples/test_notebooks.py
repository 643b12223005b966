"""The notebooks, each run in a kernel of its own as a reader runs it.

Starting a kernel and importing torch take some seconds each.
"""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

nbclient = pytest.importorskip("nbclient", reason="needs nbclient, of the test extra")
nbformat = pytest.importorskip("nbformat")

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def outputs_of(name):
    """What the cells print, and the pictures that they draw."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    place = {"metadata": {"path": str(FOLDER)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=place).execute()
    outputs = [x for cell in notebook.cells if cell.cell_type == "code" for x in cell.outputs]
    printed = "".join(x.text for x in outputs if x.get("name") == "stdout")
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(x.data["image/png"]))).convert("L"))
        for x in outputs
        if "image/png" in x.get("data", {})
    ]
    assert all(picture.std() > 20 for picture in pictures)  # not empty
    return printed, len(pictures)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_without_outputs_and_listed(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [cell for cell in code if cell.outputs or cell.execution_count]
    page = FOLDER.parents[1] / "docs" / "notebooks.md"
    assert f"(../examples/notebooks/{path.name})" in page.read_text(encoding="utf-8")


def test_reconstruct():
    printed, pictures = outputs_of("01_reconstruct")
    assert re.search(r"thin: +\(97, 101, 56\) voxels, 1\.25 mm", printed)
    assert pictures == 1


def test_train():
    printed, pictures = outputs_of("02_train")
    first, last = map(float, re.findall(r"ten(?: steps)? (\d\.\d+)", printed))
    assert last < first
    assert pictures == 2


def test_judge():
    printed, pictures = outputs_of("03_judge")
    rmse = dict(re.findall(r"^(\w+) +\d+\.\d +(\d+\.\d) +\d+\.\d +0\.\d+$", printed, re.MULTILINE))
    assert float(rmse["mpunet"]) < 0.9 * float(rmse["cubic"])
    mae = dict(re.findall(r"^(\w+) +MAE +(\d+\.\d) HU", printed, re.MULTILINE))
    assert float(mae["mpunet"]) < float(mae["cubic"])
    assert float(re.search(r"true errors: (0\.\d+)", printed)[1]) > 0.2
    assert pictures == 2


def test_own_network():
    printed, pictures = outputs_of("04_own_network")
    assert "(64, 48, 46) voxels, slices 1.0 mm apart" in printed
    mae = dict(re.findall(r"^\| (\w+) \| (\d+\.\d+) \|", printed, re.MULTILINE))
    assert {"bicubic", "mynet"} <= set(mae)
    assert pictures == 0
