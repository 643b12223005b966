"""Feature matching, Eq. 3, with a replacement for VGG-16's weights: seeded random first layers."""

from __future__ import annotations

import io
import urllib.error
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mpunet.losses import FeatureMatching, VGG16Features, VGGLayer, feature_matching_loss
from mpunet.losses.feature_matching import _INDEX, _truncated_vgg16

LAYERS: tuple[VGGLayer, ...] = ("relu1_2", "relu2_1")
SHAPE = (2, 1, 3, 8, 10)


def torchvision_features() -> nn.Sequential:
    """torchvision's own vgg16().features, without memory for its 138 million weights."""
    from torchvision.models import vgg16  # type: ignore[import-untyped]

    with torch.device("meta"):
        features: nn.Sequential = vgg16(weights=None).features
    return features


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Weights of vgg16().features up to relu2_1."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: value.shape for name, value in torchvision_features()[:7].state_dict().items()}
    return {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def weights(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(
        {f"features.{name}": value for name, value in state.items()}
        | {"classifier.0.bias": torch.zeros(3)},
        path,
    )
    return path


def images(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    prediction, target = torch.rand(
        2, *SHAPE, dtype=dtype, generator=torch.Generator().manual_seed(1)
    )
    return prediction, target


def two_layers(slices: Tensor) -> list[Tensor]:
    return [slices**2, torch.nn.functional.avg_pool2d(slices.sin(), 2)]


def test_layer_names_point_to_the_right_relus() -> None:
    block, place, found = 1, 0, {}
    for index, layer in enumerate(torchvision_features()):
        if isinstance(layer, nn.MaxPool2d):
            block, place = block + 1, 0
        elif isinstance(layer, nn.ReLU):
            place += 1
            found[f"relu{block}_{place}"] = index
    assert found == _INDEX
    assert tuple(found) == get_args(VGGLayer)


def test_layers_are_torchvisions() -> None:
    assert repr(_truncated_vgg16(31)) == repr(torchvision_features())


def test_features_are_torchvisions_on_normalised_replicated_slices(
    state: dict[str, Tensor], weights: Path
) -> None:
    reference = torchvision_features()[:7]
    reference.load_state_dict(state, assign=True)
    slices = torch.rand(2, 1, 8, 10, generator=torch.Generator().manual_seed(2))
    mean, std = (
        torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1),
        torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1),
    )
    x = (torch.cat([slices, slices, slices], dim=1) - mean) / std
    maps = VGG16Features(("relu2_1", "relu1_2"), weights)(slices)  # given from deep to shallow
    torch.testing.assert_close(maps[0], reference[:4](x))
    torch.testing.assert_close(maps[1], reference(x))
    assert [tuple(m.shape) for m in maps] == [(2, 64, 8, 10), (2, 128, 4, 5)]


def test_loss_literal() -> None:
    # Features 1 x and 3 x: (0.5 - 0.1)**2 and (1.5 - 0.3)**2, in one slice of two.
    prediction, target = torch.full((1, 1, 2, 4, 4), 0.5), torch.full((1, 1, 2, 4, 4), 0.5)
    target[:, :, 1] = 0.1
    loss = feature_matching_loss(prediction, target, lambda slices: [slices, 3 * slices])
    assert loss.item() == pytest.approx((0.16 + 1.44) / 2, rel=1e-6)


def test_module_against_a_loop_over_slices(weights: Path) -> None:
    prediction, target = images()
    features = VGG16Features(LAYERS, weights)
    expected = 0.0
    for b in range(SHAPE[0]):
        for n in range(SHAPE[2]):
            for p, t in zip(
                features(prediction[b, None, :, n]), features(target[b, None, :, n]), strict=True
            ):
                expected += torch.nn.functional.mse_loss(p, t).item() / (SHAPE[0] * SHAPE[2])
    assert FeatureMatching(LAYERS, weights)(prediction, target).item() == pytest.approx(
        expected, rel=1e-5
    )
    assert FeatureMatching(LAYERS, weights)(target, target).item() == 0


def test_gradcheck_and_no_gradient_into_the_target() -> None:
    prediction, target = images(torch.float64)
    prediction.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda p: feature_matching_loss(p, target, two_layers, chunk=4), prediction
    )
    target.requires_grad_()
    feature_matching_loss(prediction, target, two_layers).backward()  # type: ignore[no-untyped-call]
    assert target.grad is None


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_chunks_change_neither_value_nor_gradient(weights: Path, chunk: int) -> None:
    features = VGG16Features(LAYERS, weights)
    prediction, target = images()
    prediction.requires_grad_()
    maps = zip(
        *(features(volume.flatten(0, 2)[:, None]) for volume in (prediction, target)), strict=True
    )
    expected = torch.stack([(p - t).square().mean() for p, t in maps]).sum()
    loss = feature_matching_loss(prediction, target, features, chunk=chunk)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, prediction), torch.autograd.grad(expected, prediction)
    )


def test_maps_of_one_chunk_only_are_kept() -> None:
    alive, most = 0, 0

    class Probe(torch.autograd.Function):
        """Identity that counts how many of its results the graph holds for the backward pass."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            nonlocal alive
            alive -= 1
            return grad

    def features(slices: Tensor) -> list[Tensor]:
        return (
            [Probe.apply(slices)] if slices.requires_grad and torch.is_grad_enabled() else [slices]
        )

    prediction, target = images()
    loss = feature_matching_loss(prediction.requires_grad_(), target, features, chunk=1)
    alive = most = 0  # what the forward pass made has been let go
    loss.backward()  # type: ignore[no-untyped-call]
    assert most == 1


def test_autocast_squares_differences_in_float32(weights: Path) -> None:
    prediction, target = images()
    module = FeatureMatching(LAYERS, weights)
    with torch.autocast("cpu", torch.bfloat16):
        loss = module(prediction.requires_grad_(), target)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(module(prediction, target).item(), rel=0.02)
    assert torch.autograd.grad(loss, prediction)[0].isfinite().all()


def test_the_network_is_hidden_but_moves(weights: Path) -> None:
    module = FeatureMatching(LAYERS, weights)
    assert list(module.parameters()) == []
    assert module.state_dict() == {}
    module.load_state_dict({}, strict=True)
    (network,) = module.train().features._network
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    slices = torch.rand(1, 1, 8, 8)
    assert module.double().features(slices)[0].dtype == torch.float64
    assert module.to("meta").features(slices.to("meta"))[0].device.type == "meta"


def test_files_of_each_kind_give_the_same_features(
    state: dict[str, Tensor], weights: Path, tmp_path: Path
) -> None:
    save_file(state, tmp_path / "features.safetensors")
    torch.save({name: value.double() for name, value in state.items()}, tmp_path / "features.pth")
    slices = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    expected = VGG16Features(LAYERS, weights)(slices)
    for name in ("features.safetensors", "features.pth"):
        for one, other in zip(
            VGG16Features(LAYERS, str(tmp_path / name))(slices), expected, strict=True
        ):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_torch_hubs_cache_is_used(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    (cache / "vgg16-397923af.pth").write_bytes(weights.read_bytes())
    slices = torch.rand(1, 1, 8, 8)
    assert torch.equal(VGG16Features(LAYERS)(slices)[1], VGG16Features(LAYERS, weights)(slices)[1])


def test_offline_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    pattern = (
        r"vgg16-397923af\.pth and could not be downloaded from https://"
        r".*no route to host.*machine with internet"
    )
    with pytest.raises(FileNotFoundError, match=pattern) as info:
        VGG16Features()
    assert str(tmp_path) in str(info.value)


def test_wrong_files(state: dict[str, Tensor], tmp_path: Path) -> None:
    def save(content: Any) -> Path:
        torch.save(content, tmp_path / "wrong.pth")
        return tmp_path / "wrong.pth"

    with pytest.raises(FileNotFoundError, match=r"No file .*absent\.pth"):
        VGG16Features(LAYERS, tmp_path / "absent.pth")
    with pytest.raises(ValueError, match=r"missing are 5\.weight, 5\.bias\."):
        VGG16Features(
            LAYERS, save({name: value for name, value in state.items() if not name.startswith("5")})
        )
    with pytest.raises(ValueError, match=r"2\.bias has \(3,\) instead of \(64,\)"):
        VGG16Features(LAYERS, save(state | {"2.bias": torch.zeros(3)}))
    with pytest.raises(ValueError, match=r"wrong\.pth does not hold a state dict"):
        VGG16Features(LAYERS, save({"state_dict": state, "epoch": 3}))
    with pytest.raises(ValueError, match=r"cannot be read as a state dict \(UnpicklingError\)"):
        VGG16Features(LAYERS, save(io.StringIO("an object, which safe loading refuses")))
    (tmp_path / "wrong.safetensors").write_bytes(b"not one")
    with pytest.raises(ValueError, match=r"wrong\.safetensors cannot be read"):
        VGG16Features(LAYERS, tmp_path / "wrong.safetensors")


@pytest.mark.parametrize("layers", [(), ("relu6_1",), ("relu1_1", "relu1_1")])
def test_wrong_layers(layers: tuple[Any, ...], weights: Path) -> None:
    with pytest.raises(ValueError, match=r"different layers of relu1_1, .*relu5_3; got"):
        VGG16Features(layers, weights)


def test_wrong_chunk() -> None:
    with pytest.raises(ValueError, match="at least 1 slice, got 0"):
        feature_matching_loss(*images(), two_layers, chunk=0)


def test_drawn_slices_have_the_expected_gradient_of_all(weights: Path) -> None:
    prediction, target = images()
    every, drawn = (FeatureMatching(LAYERS, weights, slices=slices) for slices in (None, 2))
    torch.manual_seed(0)
    losses = torch.stack([drawn(prediction, target) for _ in range(300)])
    assert len(losses.unique()) == 15  # pairs of 6 slices
    assert losses.mean().item() == pytest.approx(every(prediction, target).item(), rel=0.05)
    assert drawn.eval()(prediction, target) == every(prediction, target)
    with pytest.raises(ValueError, match="at least 1 slice for feature matching, got 0"):
        FeatureMatching(LAYERS, weights, slices=0)
