"""External programs as rows of `mpunet benchmark`: their grid, costs, logs, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from mpunet.benchmark import Benchmark, find_rows
from mpunet.benchmark.measure import FIDELITY, measure
from mpunet.benchmark.program import Program, last_line, unset_variables
from mpunet.benchmark.table import markdown, write_csv
from mpunet.data.volumes import VolumeCase
from mpunet.phantom.chest import phantom_image

# Linear interpolation. {edit} changes what it writes.
PROGRAM = """
import sys
from pathlib import Path
import nibabel as nib, numpy as np
thick, thin, ratio = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
print("interpolating")
for file in thick.rglob("*.nii.gz"):
    image = nib.load(file)
    voxels = image.get_fdata(dtype=np.float32)
    place = np.arange((voxels.shape[2] - 1) * ratio + 1) / ratio
    low = np.minimum(place.astype(int), voxels.shape[2] - 2)
    out = voxels[..., low] * (1 - (place - low)) + voxels[..., low + 1] * (place - low)
    affine = image.affine @ np.diag([1, 1, 1 / ratio, 1])
    target = thin / file.relative_to(thick)
    {edit}
    target.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(out.astype(np.float32), affine), target)
"""
COMMAND = "{python} %s {thick} {thin} {ratio}"


def program(folder: Path, edit: str = "") -> Program:
    script = folder / "linear program.py"
    script.write_text(PROGRAM.replace("{edit}", edit))
    return Program(COMMAND % f"'{script}'", 5, folder)


def cases() -> list[VolumeCase]:
    rng = np.random.default_rng(0)
    made = []
    for index, name in enumerate(("a", "part/b")):
        thick = torch.from_numpy(rng.normal(-500, 300, (4, 6, 7)).astype(np.float32))
        thin = torch.zeros(16, 6, 7)
        case = {"thick": thick, "thin": thin, "lung": thin > 0, "name": name, "index": index}
        made.append(VolumeCase(**case, spacing=(1.0, 0.7, 0.8)))  # type: ignore[typeddict-item]
    return made


class TestProgram:
    def test_slices_are_at_their_place(self, tmp_path: Path) -> None:
        ran = program(tmp_path)
        found = list(ran.reconstruct(cases()))
        assert [case["name"] for case, _, _ in found] == ["a", "part/b"]
        for case, image, seconds in found:
            thick = case["thick"].numpy()
            assert image.shape == (16, 6, 7)
            assert np.array_equal(image[::5], thick)
            assert image[6] == pytest.approx(0.8 * thick[1] + 0.2 * thick[2], abs=1e-3)
            assert 0 < seconds < 60
        assert 1e7 < ran.peak_bytes < 3e8  # not that of this process
        assert (tmp_path / "program.log").read_text().split() == ["interpolating"]

    def test_thick_scans_are_files_in_usual_orientation(self, tmp_path: Path) -> None:
        list(program(tmp_path).reconstruct(cases()))
        image = nib.load(tmp_path / "thick" / "part" / "b.nii.gz")
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
        assert image.shape == (7, 6, 4)
        assert image.header.get_zooms() == pytest.approx((0.8, 0.7, 5.0))

    def test_other_slices_around_are_left_out(self, tmp_path: Path) -> None:
        """A program that keeps the field of view writes slices before the first thick one."""
        edit = (
            "out = np.concatenate([out[..., :2] * 0, out], 2); "
            "affine = affine @ np.array([[1,0,0,0],[0,1,0,0],[0,0,1,-2],[0,0,0,1]])"
        )
        for case, image, _ in program(tmp_path, edit).reconstruct(cases()):
            assert np.array_equal(image[::5], case["thick"].numpy())

    def test_files_of_an_earlier_run_do_not_count(self, tmp_path: Path) -> None:
        list(program(tmp_path).reconstruct(cases()))
        again = program(tmp_path, "if 'a.nii' in target.name: continue")
        with pytest.raises(ValueError, match=r"the thin volume a.nii.gz in .*thin, found part/b"):
            list(again.reconstruct(cases()))

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            ("raise OSError('disk on fire')", "ended with 1: OSError: disk on fire .see .*program"),
            ("out = out[..., :-1]", "at all 16 positions .* got 0 to 14 in .*nii.gz"),
            ("affine = image.affine", "a.nii.gz: voxels of .* another grid"),
            ("affine[2, 3] += 0.4", "not a whole number of slices"),
        ],
    )
    def test_refused(self, tmp_path: Path, edit: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            list(program(tmp_path, edit).reconstruct(cases()))

    def test_commands_that_cannot_run(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"a command with \{thin\} for its folders"):
            Program("program {thick}", 5, tmp_path)
        with pytest.raises(ValueError, match=r"cannot be started: no command 'no-such-program'"):
            list(Program("no-such-program {thick} {thin}", 5, tmp_path).reconstruct(cases()))


def test_unset_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SET", "1")
    monkeypatch.setenv("EMPTY", "")
    assert unset_variables("$SET/x ${NOT_SET} $EMPTY $NOT_SET {thick}") == ["NOT_SET", "EMPTY"]


def test_last_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"one\n  two \xff \n\n")
    assert last_line(log) == f"two \N{REPLACEMENT CHARACTER} (see {log})"
    log.write_text("\n")
    assert last_line(log) == f"see {log}"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A network and a program that do the same, and rows that cannot be run."""
    folder = tmp_path / "rows"
    folder.mkdir()
    (tmp_path / "linear.py").write_text(PROGRAM.replace("{edit}", ""))
    linear = {"class_path": "mpunet.models.Bicubic", "init_args": {"kind": "linear"}}
    configs = {
        "base": {"data": {"cache_dir": str(tmp_path / "cache"), "fwhm": 0.7}},
        "1_network": {"model": {"net": linear}},
        "2_program": {"command": COMMAND % (tmp_path / "linear.py")},
        "3_variable": {"command": "$NO_SUCH_VARIABLE {thick} {thin}"},
        "4_peer": {"model": {"net": {"class_path": "peer.Missing"}}},
    }
    for name, config in configs.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "peer.py").write_text(
        "import torch\n"
        "class Missing(torch.nn.Module):\n"
        "    def __init__(self): raise FileNotFoundError('needs a clone')\n"
    )
    (tmp_path / "test").mkdir()
    image = phantom_image(0, shape=(56, 30, 32), spacing=(1.0, 10.0, 10.0))
    nib.save(image, tmp_path / "test" / "case.nii.gz")
    return folder


def in_process(words: list[str], log: Path) -> None:
    task = json.loads(Path(words[-1]).read_text())
    (Path(task["output"]) / "result.json").write_text(json.dumps(measure(task)))


def test_a_program_is_judged_like_a_network(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(Benchmark, "_python", staticmethod(in_process))
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    scans = str(tmp_path / "test")
    benchmark = Benchmark(str(rows), scans, scans, str(tmp_path / "out"), steps=1)
    network, ran, variable, peer = benchmark.run()
    assert network.result is not None
    assert ran.result is not None, ran.reason
    for key, value in network.result["metrics"].items():
        assert ran.result["metrics"][key] == pytest.approx(value, rel=1e-4, nan_ok=True), key
    assert ran.result["cases"].keys() == {"case"}
    assert (ran.result["parameters"], ran.result["gflops"]) == (None, None)
    assert ran.result["peak_mb"] < network.result["peak_mb"]  # it does not import torch
    assert (variable.status, variable.reason) == (
        "not run",
        f"needs $NO_SUCH_VARIABLE, see {rows / '3_variable.yaml'}",
    )
    assert (peer.status, peer.reason) == ("not run", "needs a clone")

    table = markdown([network, ran, variable, peer])
    costs = table.split("| cost |")[1]
    assert "| program |  |  | " in costs
    bias, distance, laa950, sharp, noise, truth_laa950, truth_sharp, truth_noise = (
        network.result["metrics"][k] for k in FIDELITY
    )
    # Without vgg_weights, and in lungs too small for the texture.
    assert all(map(math.isnan, (distance, sharp, noise, truth_sharp, truth_noise)))
    assert f"| program | {bias:+.2f} | {laa950:.2f} | - | - | - |" in table
    assert f"| truth | | {truth_laa950:.2f} | - | - | |" in table
    write_csv([network, ran], tmp_path / "t.csv")
    head, *lines = (tmp_path / "t.csv").read_text().splitlines()
    assert head.endswith("truth_noise,parameters,gflops,seconds,peak_mb")
    assert len(lines) == 2


def test_a_row_with_a_command_has_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("{command: x, model: {lr: 1}}")
    with pytest.raises(ValueError, match="a command line and perhaps a ratio, nothing else, got c"):
        _ = find_rows([tmp_path])[0].command
    (tmp_path / "a.yaml").write_text("{command: x, ratio: 3}")
    assert find_rows([tmp_path])[0].command == "x"
