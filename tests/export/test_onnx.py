"""ONNX files: the same image as the network, for every size that they accept, or no file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from helpers import nifti
from torch import Tensor, nn
from torch.nn import functional

import mpunet
from mpunet import Reconstructor
from mpunet.__main__ import main
from mpunet.config import to_config
from mpunet.export import OnnxNetwork, onnx_file, write_onnx
from mpunet.io.scan_file import read_volume
from mpunet.models import Bicubic
from mpunet.slices.simulate import thicken
from mpunet.weights import Weights, write_weights

HU = 4095
RECORD = {
    "training": {"flips": True, "thick_spacing": [4.0, 6.0], "thin_spacing": [2.0, 3.0]},
    "notes": {"title": "A test's network", "licence": "CC0"},
}
LESION = Path(__file__).parents[2] / "examples" / "data" / "lesion_1.25mm.nii.gz"


class Sized(nn.Module):
    """A network whose graph depends on the in-plane size."""

    n_thick, ratio = 3, 2

    def forward(self, thick: Tensor) -> Tensor:
        factor = 0.5 if thick.shape[3] > 40 else 1.0
        return factor * functional.interpolate(thick, (5, *thick.shape[3:]), mode="nearest")


class Branching(Sized):
    """A network whose graph depends on the values of its input."""

    def forward(self, thick: Tensor) -> Tensor:
        return super().forward(thick) if thick.mean() > 0.5 else super().forward(1 - thick)


def weights_of(net: nn.Module, record: Any = RECORD) -> Weights:
    config = {"class_path": f"test_onnx.{type(net).__name__}"}
    return Weights(
        Path("memory"),
        to_config(net) if isinstance(net, mpunet.models.ThickToThin) else config,
        net.state_dict(),
        record,
    )


@pytest.fixture(scope="module")
def weights() -> Weights:
    """A small network with data consistency and random weights."""
    torch.manual_seed(0)
    net = mpunet.MPUNet(4, 2, widths=(2, 2), layers=1, depth_halvings=0, consistency=0.8)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return weights_of(net)


@pytest.fixture(scope="module")
def file(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as an ONNX file. Export of a dynamic size takes 7 s, so all tests share it."""
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    written = write_onnx(path, weights)
    assert written.size is None
    assert written.difference < 0.01
    assert [each.name for each in path.parent.iterdir()] == ["net.onnx"]
    return path


@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 34, 6), (3, 20, 26)])
def test_the_image_is_that_of_the_network(
    weights: Weights, file: Path, shape: tuple[int, int, int]
) -> None:
    batch, height, width = shape
    thick = torch.rand(batch, 1, 4, height, width)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["thick"]
    assert [value.name for value in session.get_outputs()] == ["thin"]
    thin = torch.from_numpy(session.run(None, {"thick": thick.numpy()})[0])
    network = weights.network()
    with torch.no_grad():
        expected = network(thick).image
    assert float((thin - expected).abs().max()) * HU < 0.01
    torch.testing.assert_close(OnnxNetwork(file)(thick), thin, rtol=0, atol=0)
    # Data consistency is part of the file: without it, the image differs.
    network.consistency = None
    with torch.no_grad():
        assert float((network(thick).image - expected).abs().max()) * HU > 1


def test_metadata(weights: Weights, file: Path) -> None:
    network = OnnxNetwork(file)
    assert (network.n_thick, network.ratio, network.multiple, network.size) == (4, 2, 2, None)
    assert network.record == RECORD
    metadata = network.metadata
    assert json.loads(metadata["network"]) == weights.net
    assert metadata["hu_window"] == "-1024 3071"
    assert metadata["weights_sha256"] == weights.sha256
    assert metadata["mpunet_version"] == mpunet.__version__
    assert str(Path(mpunet.__file__).parent).encode() not in file.read_bytes()


def test_reconstructor_of_a_real_crop(weights: Weights, file: Path, tmp_path: Path) -> None:
    slab = thicken(read_volume(LESION).slab, 4)
    write_weights(tmp_path / "net.safetensors", weights, dtype=torch.float32)
    expected = Reconstructor.from_checkpoint(
        tmp_path / "net.safetensors", precision="float32", device="cpu"
    )
    onnx = Reconstructor.from_onnx(file)
    assert onnx.engine.flips
    assert onnx.spacing == expected.spacing == (4.0, 6.0)
    np.testing.assert_allclose(onnx(slab), expected(slab), rtol=0, atol=0.01)
    thick = nifti(slab.round().astype(np.int16), spacing=(5.0, 0.7, 0.7))
    thin, same = (np.asarray(each(thick).dataobj, int) for each in (onnx, expected))
    assert np.abs(thin - same).max() <= 1  # ties of the rounding
    assert (thin != same).mean() < 1e-3


@pytest.mark.slow
def test_packaged_network_of_a_real_crop(tmp_path: Path) -> None:
    assert main(["export", "packaged", str(tmp_path / "net.onnx")]) == 0
    slab = thicken(read_volume(LESION).slab, 5)
    expected = Reconstructor.from_checkpoint(precision="float32", device="cpu")(slab)
    onnx = Reconstructor.from_onnx(tmp_path / "net.onnx")(slab)
    np.testing.assert_allclose(onnx, expected, rtol=0, atol=0.01)


def test_fixed_size(tmp_path: Path) -> None:
    network = Bicubic(4, 2)
    assert write_onnx(tmp_path / "net.onnx", weights_of(network), size=16).size == 16
    onnx = Reconstructor.from_onnx(tmp_path / "net.onnx", batch_size=3, flips=False, spacing=None)
    assert (onnx.engine.multiple, onnx.engine.tile) == (16, (16, 16))
    slab = np.random.default_rng(0).uniform(-1000, 500, (7, 21, 9)).astype(np.float32)
    expected = Reconstructor.from_network(network, tile=16, precision="float32", device="cpu")
    np.testing.assert_allclose(onnx(slab), expected(slab), rtol=0, atol=0.01)


def test_a_size_that_does_not_fit(weights: Weights, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"multiple of 2, .* got 7; 8 is one"):
        write_onnx(tmp_path / "odd.onnx", weights, size=7)


def test_a_size_that_cannot_be_dynamic_is_fixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx_file, "CT_PLANE", 32)
    write_weights(tmp_path / "sized.safetensors", weights_of(Sized()))
    assert main(["export", str(tmp_path / "sized.safetensors"), str(tmp_path / "a.onnx")]) == 0
    out = capsys.readouterr().out
    assert "planes of 32 x 32 pixels" in out
    assert "in-plane size is fixed: the network computes sizes of 0 to 40 in a way of" in out
    assert OnnxNetwork(tmp_path / "a.onnx").size == 32


def test_a_network_that_torch_cannot_export(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"test_onnx\.Branching cannot be exported to ONNX by"):
        write_onnx(tmp_path / "net.onnx", weights_of(Branching()), size=16)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [1e-5, float("nan")])
def test_another_image_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float
) -> None:
    (tmp_path / "net.onnx").write_text("before")
    run = OnnxNetwork.__call__
    monkeypatch.setattr(OnnxNetwork, "__call__", lambda self, thick: run(self, thick) + error)
    with pytest.raises(ValueError, match=r"another image than torch, .*allowed: 0\.01 HU"):
        write_onnx(tmp_path / "net.onnx", weights_of(Bicubic(3, 2)), size=8)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert (tmp_path / "net.onnx").read_text() == "before"


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"need {name}, .*pip install 'mpunet\[onnx\]'"):
        write_onnx(tmp_path / "net.onnx", weights_of(Bicubic(3, 2)))


def test_other_files_are_refused(file: Path, tmp_path: Path) -> None:
    import onnx

    with pytest.raises(ValueError, match="No ONNX file at"):
        OnnxNetwork(tmp_path / "nowhere.onnx")
    (tmp_path / "text.onnx").write_text("nothing of the kind")
    with pytest.raises(ValueError, match="cannot be loaded by ONNX Runtime"):
        OnnxNetwork(tmp_path / "text.onnx")
    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match="not written by `mpunet export`"):
        OnnxNetwork(tmp_path / "foreign.onnx")


def test_lack_of_memory_is_known_to_the_engine(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine then continues with smaller batches and tiles."""
    network = OnnxNetwork(file)
    run = network._session.run
    sizes = []

    class Session:
        def get_inputs(self) -> Any:
            return onnxruntime.InferenceSession(file).get_inputs()

        def run(self, names: Any, inputs: dict[str, Any]) -> Any:
            sizes.append(inputs["thick"].shape[3])
            if sizes[-1] > 8:
                raise Exception("Failed to allocate memory for requested buffer")
            return run(names, inputs)

    monkeypatch.setattr(network, "_session", Session())
    reconstructor = Reconstructor.from_network(network, device="cpu", precision="float32")
    thin = reconstructor(np.linspace(-1000, 0, 1024, dtype=np.float32).reshape(4, 16, 16))
    assert thin.shape == (7, 16, 16)
    assert sizes[0] == 16
    assert sizes[-1] == 8


def test_names_and_options_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "packaged", str(tmp_path / "net.pt")]) == 2
    assert "Expected a file ending in .safetensors or .onnx" in capsys.readouterr().err
    assert main(["export", "packaged", str(tmp_path / "net"), "--format", "onnx"]) == 2
    assert "Expected an ONNX file ending in .onnx" in capsys.readouterr().err
    words = ["export", "packaged", str(tmp_path / "net.safetensors"), "--size", "64"]
    assert main(words) == 2
    assert "--size is for ONNX files only" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
