"""Networks as folders in the layout of the Hugging Face Hub."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_model

import mpunet
from mpunet.__main__ import main
from mpunet.models import SRCNN, Bicubic, SubpixelNet, ThickToThin, VNet
from mpunet.weights import load_network, read_weights

TINY = {"widths": (2, 2, 2)}
NETWORKS = [
    mpunet.MPUNet(consistency=0.8, **TINY),
    mpunet.MPUNet(4, 3, norm="batch", streams=["inner"], **TINY),
    SubpixelNet(**TINY),
    VNet(**TINY),
    SRCNN(4, 3, kernels=(3, 3), widths=(2,)),
    Bicubic(4, 3),
]


@pytest.fixture
def network() -> mpunet.MPUNet:
    torch.manual_seed(0)
    return mpunet.MPUNet(consistency=0.8, **TINY)


def image(network: torch.nn.Module) -> torch.Tensor:
    thick = torch.rand(1, 1, network.n_thick, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network.eval()(thick).image


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: type(network).__name__)
def test_a_saved_network_is_loaded(network: ThickToThin, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path / "new" / "folder")
    files = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert files == ["config.json", "model.safetensors"]
    for source in (tmp_path / "new" / "folder", tmp_path / "new" / "folder" / "model.safetensors"):
        back = type(network).from_pretrained(source)
        assert type(back) is type(network)
        assert not back.training
        assert back.init_args == network.init_args
        assert torch.equal(image(back), image(network))
        assert torch.equal(image(load_network(source)), image(network))


def test_the_layout_is_that_of_the_mixin(network: mpunet.MPUNet, tmp_path: Path) -> None:
    """Read as PyTorchModelHubMixin does: the arguments it finds by name, then all tensors."""
    network.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    names = inspect.signature(mpunet.MPUNet).parameters
    back = mpunet.MPUNet(**{name: config[name] for name in names if name in config})
    assert load_model(back, tmp_path / "model.safetensors", strict=True) == (set(), [])
    assert torch.equal(image(back), image(network))


def test_a_folder_of_the_mixin_is_loaded(network: mpunet.MPUNet, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(network.init_args))
    assert torch.equal(image(mpunet.MPUNet.from_pretrained(tmp_path)), image(network))
    with pytest.raises(ValueError, match="does not name the class"):
        read_weights(tmp_path)
    with pytest.raises(ValueError, match="do not fit VNet"):
        VNet.from_pretrained(tmp_path)


def test_saving_again_replaces_only_the_network(network: mpunet.MPUNet, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    mpunet.MPUNet(4, 2, **TINY).save_pretrained(tmp_path)
    network.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    assert mpunet.MPUNet.from_pretrained(tmp_path).ratio == 5


def test_the_command_keeps_the_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "packaged_r3", str(tmp_path / "r3"), "--format", "pretrained"]) == 0
    assert "from_pretrained" in capsys.readouterr().out
    before, after = read_weights("packaged_r3"), read_weights(tmp_path / "r3")
    assert after.record == before.record
    assert after.flips
    assert torch.equal(image(after.network()), image(before.network()))
    assert main(["info", str(tmp_path / "r3")]) == 0
    assert "3 to 3.75 mm apart" in capsys.readouterr().out


def test_weights_files_and_packaged_weights() -> None:
    expected = image(load_network("packaged_r3"))
    assert torch.equal(image(mpunet.MPUNet.from_pretrained("packaged_r3")), expected)
    file = read_weights("packaged_r3").source
    assert torch.equal(image(ThickToThin.from_pretrained(file)), expected)
    with pytest.raises(ValueError, match=r"weights of VNet in .*, got those of mpunet.*MPUNet"):
        VNet.from_pretrained(file)


def test_damage_is_noticed(network: mpunet.MPUNet, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path)
    tensors = tmp_path / "model.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: its weights have the SHA-256"):
        mpunet.MPUNet.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="its description cannot be read"):
        mpunet.MPUNet.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="no weights file of mpunet"):
        mpunet.MPUNet.from_pretrained(tmp_path)
    tensors.unlink()
    with pytest.raises(ValueError, match="No weights at"):
        mpunet.MPUNet.from_pretrained(tmp_path)


def test_the_hub_is_asked_for_two_files(
    network: mpunet.MPUNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The download itself is not part of the tests: they have no network."""
    network.save_pretrained(tmp_path / "cache")
    asked = []

    def snapshot_download(repo_id: str, **options: object) -> str:
        asked.append((repo_id, options))
        if repo_id == "some/other":
            raise OSError("404: not found\nmore")
        return str(tmp_path / "cache")

    hub = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.chdir(tmp_path)
    back = mpunet.MPUNet.from_pretrained("some/network", revision="v1")
    assert torch.equal(image(back), image(network))
    files = ["config.json", "model.safetensors"]
    assert asked == [("some/network", {"revision": "v1", "allow_patterns": files})]
    with pytest.raises(ValueError, match=r"cannot be downloaded .*: 404: not found\.$"):
        mpunet.MPUNet.from_pretrained("some/other")


def test_without_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"pip install 'mpunet\[hub\]'"):
        mpunet.MPUNet.from_pretrained("some/network")
    with pytest.raises(ValueError, match=r"expected a folder with config\.json"):
        mpunet.MPUNet.from_pretrained(tmp_path / "nowhere")
