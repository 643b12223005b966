"""MONAI bundles: MONAI's own loader runs them, with the results of `mpunet predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import nifti
from monai.bundle import ConfigWorkflow, load, run, verify_net_in_out
from monai.bundle.properties import InferProperties, MetaProperties
from torch.nn import functional as F

import mpunet
from mpunet.__main__ import main
from mpunet.config import to_config
from mpunet.export import FolderReconstruction, write_bundle
from mpunet.io.scan_file import read_volume
from mpunet.io.scans import find_scans
from mpunet.phantom.chest import chest_phantom
from mpunet.slices.simulate import thicken
from mpunet.weights import Weights, write_weights

# MONAI warns that configurations run code, whenever one is read.
pytestmark = pytest.mark.filterwarnings("ignore:.*(arbitrary|untrusted|_target_).*")

RECORD: Any = {
    "training": {"flips": True, "thick_spacing": [4.0, 6.0], "thin_spacing": [1.3, 2.0]},
    # Some of these characters begin expressions in MONAI's configurations.
    "notes": {"title": "$A", "authors": "@b <a@b.org>", "licence": "CC0", "data": ["one", "two"]},
}


@pytest.fixture(scope="module")
def weights() -> Weights:
    torch.manual_seed(0)
    net = mpunet.MPUNet(4, 3, widths=(2, 2, 2), consistency=0.8)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return Weights(Path("memory"), to_config(net), net.state_dict(), RECORD)


@pytest.fixture(scope="module")
def bundle(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "thin_ct"
    write_bundle(folder, weights)
    assert [path.name for path in folder.parent.iterdir()] == ["thin_ct"]
    return folder


def test_layout(bundle: Path, weights: Weights) -> None:
    files = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()}
    assert files == {
        "configs/inference.json",
        "configs/metadata.json",
        "docs/README.md",
        "models/model.pt",
    }
    readme = (bundle / "docs" / "README.md").read_text()
    for part in ("# $A", "a@b.org", "CC0", "  - two", weights.sha256, "monai.bundle run"):
        assert part in readme


def test_monai_reconstructs_as_predict_does(bundle: Path, weights: Weights, tmp_path: Path) -> None:
    thin = chest_phantom(0, shape=(22, 30, 42), spacing=(5 / 3, 8, 8)).thin
    (tmp_path / "scans" / "sub").mkdir(parents=True)
    thick = nifti(thicken(thin, 3).round().astype(np.int16), spacing=(5.0, 8.0, 8.0), codes="RAS")
    nib.save(thick, tmp_path / "scans" / "sub" / "a.nii.gz")
    run(
        config_file=str(bundle / "configs" / "inference.json"),
        bundle_root=str(bundle),
        dataset_dir=str(tmp_path / "scans"),
        output_dir=str(tmp_path / "monai"),
        device="cpu",
    )
    write_weights(tmp_path / "net.safetensors", weights, dtype=torch.float32)
    words = ["predict", str(tmp_path / "scans"), str(tmp_path / "thin")]
    assert main([*words, "--checkpoint", str(tmp_path / "net.safetensors"), "--device", "cpu"]) == 0
    result, expected = (
        nib.load(tmp_path / name / "sub" / "a.nii.gz") for name in ("monai", "thin")
    )
    assert result.shape == (42, 30, 22)
    np.testing.assert_array_equal(result.dataobj, expected.dataobj)
    np.testing.assert_array_equal(result.affine, expected.affine)
    assert np.asarray(result.dataobj).std() > 100


def test_series_become_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pydicom")
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "io" / "dicom")
    from made import voxels, write_series

    def network(windows: torch.Tensor) -> torch.Tensor:
        size = (5, *windows.shape[3:])
        return F.interpolate(windows, size, mode="trilinear", align_corners=True)

    for seed, suffix in enumerate((".dcm", ".ima")):  # two series in one folder
        write_series(tmp_path / "scans" / "ct", voxels(seed), uid=f"1.2.{seed}", suffix=suffix)
    (tmp_path / "scans" / "sub").mkdir()
    image = nifti(voxels(2), spacing=(5.0, 0.7, 0.8))
    nib.save(image, tmp_path / "scans" / "sub" / "a.nii")
    scans = find_scans(tmp_path / "scans")
    reconstruct = mpunet.Reconstructor(network, n_thick=3, ratio=2, multiple=1, device="cpu")
    written = FolderReconstruction(scans, reconstruct, tmp_path / "thin").run()
    names = ["ct/1.2.0.nii.gz", "ct/1.2.1.nii.gz", "sub/a.nii"]
    assert [path.relative_to(tmp_path / "thin").as_posix() for path in written] == names
    for seed, path in enumerate(written):
        np.testing.assert_array_equal(read_volume(path).slab[::2], voxels(seed))
    broken = scans[0]._replace(problem="slices are missing")
    with pytest.raises(ValueError, match=r"1\.2\.0: slices are missing"):
        FolderReconstruction([broken], reconstruct, tmp_path / "thin").run()


def test_monai_knows_all_properties(bundle: Path, tmp_path: Path) -> None:
    nib.save(nifti(np.full((4, 8, 8), -900, np.int16)), tmp_path / "a.nii")
    workflow = ConfigWorkflow(
        str(bundle / "configs" / "inference.json"),
        workflow_type="inference",
        bundle_root=str(bundle),
        dataset_dir=str(tmp_path),
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    required = [name for name, about in InferProperties.items() if about["required"]]
    assert all(getattr(workflow, name) is not None for name in required)


def test_metadata(bundle: Path) -> None:
    """The keys and types that MONAI's schema of 2024-07-25 requires."""
    metadata: dict[str, Any] = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert {name for name, about in MetaProperties.items() if about["required"]} <= set(metadata)
    texts = "schema version monai_version pytorch_version numpy_version task description authors"
    for name in (*texts.split(), "copyright", "data_source"):
        assert isinstance(metadata[name], str), name
    assert metadata["required_packages_version"]["mpunet"] == mpunet.__version__
    assert metadata["data_source"] == "one; two"
    assert metadata["mpunet_record"] == RECORD
    windows = metadata["network_data_format"]
    for which, name, depth in (("inputs", "image", 4), ("outputs", "pred", 10)):
        tensor = windows[which][name]
        assert tensor["spatial_shape"] == [depth, "4*n", "4*n"]
        assert tensor["num_channels"] == 1
        assert all(isinstance(value, int) for value in tensor["value_range"])


def test_monai_verifies_and_loads_the_network(bundle: Path, weights: Weights) -> None:
    config, meta = (str(bundle / "configs" / f"{name}.json") for name in ("inference", "metadata"))
    words = {"bundle_root": str(bundle), "config_file": config, "meta_file": meta, "device": "cpu"}
    verify_net_in_out("network_def", n=3, **words)
    verify_net_in_out("network", n=2, **words)
    network = load(bundle.name, bundle_dir=str(bundle.parent), workflow_type="inference")
    thick = torch.rand(1, 1, 4, 8, 12)
    with torch.no_grad():
        expected = weights.network()(thick).image
        torch.testing.assert_close(network.cpu().eval()(thick), expected, rtol=0, atol=1e-6)


def test_only_bundles_are_replaced(
    bundle: Path, weights: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    words = ["export", "packaged_r3", str(tmp_path / "mine"), "--format", "bundle"]
    assert main(words) == 2
    assert "Expected a new folder or an existing bundle to replace" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years"
    write_bundle(tmp_path / "old", weights)
    assert main([*words[:2], str(tmp_path / "old"), *words[3:]]) == 0
    assert "MONAI bundle" in capsys.readouterr().out
    metadata = json.loads((tmp_path / "old" / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["outputs"]["pred"]["spatial_shape"][0] > 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "old"]
