"""examples/calibrate.py on phantoms, and what its weights file gives."""

import nibabel as nib
import numpy as np
import pytest
from helpers import example

from mpunet.__main__ import main
from mpunet.inference import Reconstructor
from mpunet.phantom.chest import phantom_image
from mpunet.weights import read_weights


@pytest.fixture(scope="module")
def script():
    return example("calibrate")


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("thin")
    for seed, spacing in enumerate((1.25, 0.8)):  # the second is too thin for the network
        image = phantom_image(seed, shape=(61, 48, 64), spacing=(spacing, 5.0, 5.0))
        nib.save(image, folder / f"p{seed}.nii.gz")
    return folder


def test_a_weights_file_with_an_error_model(script, scans, tmp_path, capsys):
    output = tmp_path / "network.safetensors"
    files = [str(path) for path in sorted(scans.iterdir())]
    options = ["--slices", "8", "--plane", "32", "--steps", "20"]
    assert script.main([*files, "--judge", files[0], "--output", str(output), *options]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines() if line.startswith("p0  ")]
    assert [len(line) for line in lines] == [8, 8]
    # By a model without p0, and by one that knows it; single features are the same.
    assert lines[0][2:5] == lines[1][2:5]
    assert lines[0][5:] != lines[1][5:]
    assert "p0 " in out
    assert "p1 at 1 mm" in out
    assert "p1 at 1.25 mm" in out
    assert "with a probability of at least 67%" in out
    before, after = read_weights(), read_weights(output)
    assert after.sha256 == before.sha256
    known = after.record["consistency"]
    assert 0 < known["low"] <= known["high"] < 50
    assert (known["cases"], known["fwhm"]) == (3, 0.9)
    assert after.record["error"]["cases"] == ["p0", "p1 at 1 mm", "p1 at 1.25 mm"]
    thick = np.random.default_rng(0).normal(-800, 50, (8, 16, 16)).astype(np.float32)
    reconstructor = Reconstructor.from_checkpoint(output, error=True, device="cpu")
    found = reconstructor.with_error(thick)
    assert found.error.shape == (36, 16, 16)
    assert found.error.min() > 0


def test_scans_that_the_network_learned_from(script, scans, tmp_path, monkeypatch, capsys):
    asked = []
    real = script.measured

    def measured(case, patient, slab, spacing, reconstructor, fwhm, args):
        asked.append((case, reconstructor.engine.network.consistency is None))
        return real(case, patient, slab, spacing, reconstructor, fwhm, args)

    monkeypatch.setattr(script, "measured", measured)
    output = tmp_path / "network.safetensors"
    first, second = (str(path) for path in sorted(scans.iterdir()))
    options = ["--output", str(output), "--slices", "8", "--plane", "32", "--steps", "2"]
    assert script.main([first, *options, "--learned", "packaged_r5_wide", second]) == 0
    # The wide network has no data consistency.
    assert asked == [("p0", False), ("p1 at 1 mm", True), ("p1 at 1.25 mm", True)]
    assert read_weights(output).sha256 == read_weights().sha256
    with pytest.raises(SystemExit):
        script.main([first, *options, "--learned", "packaged_r3", second])
    assert "got ratios 5 and 3, and 1 scans" in capsys.readouterr().err


def test_predict_needs_a_network_with_an_error_model(scans, tmp_path, capsys):
    from mpunet.io.thick_file import write_thick
    from mpunet.weights import write_weights

    (tmp_path / "thick").mkdir()
    write_thick(tmp_path / "thick" / "p0.nii.gz", scans / "p0.nii.gz", 5)
    weights = read_weights()
    weights.record.pop("error", None)
    write_weights(tmp_path / "without.safetensors", weights)
    words = ["predict", str(tmp_path / "thick"), str(tmp_path / "thin"), "--error_map"]
    assert main([*words, "--checkpoint", str(tmp_path / "without.safetensors")]) == 2
    assert "no error model, which estimates how far off" in capsys.readouterr().err
