"""Feature matching (Eq. 3 of the paper): thin slices are compared by what VGG-16, trained on ImageNet, sees in them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mpunet.losses.region import checked_floats

__all__ = ["FeatureMatching", "VGG16Features", "VGGLayer", "feature_matching_loss"]

VGGLayer = Literal[
    "relu1_1", "relu1_2",
    "relu2_1", "relu2_2",
    "relu3_1", "relu3_2", "relu3_3",
    "relu4_1", "relu4_2", "relu4_3",
    "relu5_1", "relu5_2", "relu5_3",
]  # fmt: skip
"""Where features are read: after the ReLU of convolution j of block i."""

# Their places in torchvision.models.vgg16().features: convolution and ReLU alternate, a pooling ends each block.
_INDEX = dict(
    zip(get_args(VGGLayer), (1, 3, 6, 8, 11, 13, 15, 18, 20, 22, 25, 27, 29), strict=True)
)

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


def feature_matching_loss(
    prediction: Tensor,
    target: Tensor,
    features: Callable[[Tensor], Sequence[Tensor]],
    *,
    chunk: int = 4,
) -> Tensor:
    """Feature matching, Eq. 3: mean squared difference of feature maps, summed over layers, averaged over thin slices.

    Slices are taken ``chunk`` at a time and their feature maps computed again in the backward pass, so that memory is that of one
    chunk however many slices there are; value and gradient do not depend on ``chunk``.

    Args:
        prediction: (B, 1, N, H, W), intensity in [0, 1]; the composed image.
        target: (B, 1, N, H, W), intensity in [0, 1]; no gradient flows into it.
        features: from slices (S, 1, H, W) to one map (S, C, h, w) per layer, such as :class:`VGG16Features`.
        chunk: slices at a time, at least 1.

    Returns:
        Scalar; differences are squared in float32, the features keep the precision of autocast.

    Raises:
        ValueError: if shapes differ or ``chunk`` is below 1.

    >>> feature_matching_loss(torch.zeros(1, 1, 3, 4, 4), torch.full((1, 1, 3, 4, 4), 0.5), lambda slices: [slices, 2 * slices])
    tensor(1.2500)
    """
    if chunk < 1:
        raise ValueError(f"Expected a chunk of at least 1 slice, got {chunk}.")
    prediction, target = checked_floats(prediction, target.detach())

    def chunk_loss(predicted: Tensor, wanted: Tensor) -> Tensor:
        with torch.no_grad():
            wanted_maps = features(wanted)
        layers = [
            checked_floats(*maps) for maps in zip(features(predicted), wanted_maps, strict=True)
        ]
        return torch.stack([(p - w).square().flatten(1).mean(1).sum() for p, w in layers]).sum()

    slices = [volume.flatten(0, 2).unsqueeze(1) for volume in (prediction, target)]
    chunks = zip(*(torch.split(volume, chunk) for volume in slices), strict=True)
    sums = [
        checkpoint(chunk_loss, p, w, use_reentrant=False, preserve_rng_state=False)
        for p, w in chunks
    ]
    return torch.stack(sums).sum() / len(slices[0])


class FeatureMatching(nn.Module):
    """:func:`feature_matching_loss` with VGG-16, as a module. Its weights are loaded at construction, to fail before training.

    ``layers`` and ``weights`` are those of :class:`VGG16Features`.
    """

    def __init__(
        self,
        layers: Sequence[VGGLayer] = ("relu2_2", "relu3_3"),
        weights: str | os.PathLike[str] | None = None,
        *,
        chunk: int = 4,
    ) -> None:
        super().__init__()
        self.features = VGG16Features(layers, weights)
        self.chunk = chunk

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Scalar; see :func:`feature_matching_loss`."""
        return feature_matching_loss(prediction, target, self.features, chunk=self.chunk)


class VGG16Features(nn.Module):
    """Feature maps of torchvision's VGG-16, frozen, cut off after the deepest layer asked for.

    It follows ``.to(device)`` but has no parameters of its own to anybody who asks: checkpoints do not hold them, optimisers do
    not see them, and distributed training does not send them around.

    Args:
        layers: names from relu1_1 to relu5_3. The paper does not name its layers; relu2_2 and relu3_3 are our choice.
        weights: a file with the state dict of torchvision's ``vgg16`` or of its ``features`` (.pth or .safetensors; it may
            stop at the deepest layer asked for). None = torchvision's ImageNet weights, from torch hub's cache or else
            downloaded (528 MB).

    Raises:
        FileNotFoundError: no such file, or torchvision's weights are neither in the cache nor to be had.
        ValueError: an unknown layer, or a file that is not VGG-16's weights.
    """

    def __init__(
        self,
        layers: Sequence[VGGLayer] = ("relu2_2", "relu3_3"),
        weights: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        unknown = [name for name in layers if name not in _INDEX]
        if unknown or not layers or len(set(layers)) < len(layers):
            raise ValueError(
                f"Expected one or more different layers of {', '.join(_INDEX)}; got {list(layers)}."
            )
        self.layers = tuple(sorted(layers, key=_INDEX.__getitem__))
        network = _truncated_vgg16(_INDEX[self.layers[-1]] + 1)
        _load(
            network,
            _read_weights(weights),
            source="torchvision" if weights is None else os.fspath(weights),
        )
        # In a tuple, so that nn.Module does not register it: see the class docstring.
        self._network = (network.requires_grad_(False).eval(),)

    def forward(self, slices: Tensor) -> tuple[Tensor, ...]:
        """Maps (S, C, h, w) of slices (S, 1, H, W) with intensity in [0, 1], one for each layer, from shallow to deep."""
        (network,) = self._network
        weight = next(network.parameters())
        mean, std = (
            weight.new_tensor(channels).view(1, 3, 1, 1)
            for channels in (_IMAGENET_MEAN, _IMAGENET_STD)
        )
        x = (
            slices.to(weight.dtype) - mean
        ) / std  # broadcasting replicates the one channel to three
        wanted = {_INDEX[name] for name in self.layers}
        maps = []
        for index, layer in enumerate(network):
            x = layer(x)
            if index in wanted:
                maps.append(x)
        return tuple(maps)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VGG16Features:
        """What ``.to()``, ``.cuda()`` and ``.double()`` call, passed on to the network that nn.Module does not know."""
        self._network[0]._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return cast(VGG16Features, super()._apply(fn, recurse))  # type: ignore[no-untyped-call]


def _truncated_vgg16(length: int) -> nn.Sequential:
    """The first ``length`` layers of torchvision's vgg16, without memory for weights yet."""
    from torchvision.models import vgg16  # type: ignore[import-untyped]

    with torch.device("meta"):
        return cast(nn.Sequential, vgg16(weights=None).features[:length])


def _read_weights(weights: str | os.PathLike[str] | None) -> Any:
    if weights is None:
        return _torchvision_weights()
    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"No file {path} with weights of VGG-16. {_WAY_OUT}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in as many ways as there are libraries below
        raise ValueError(
            f"{path} cannot be read as a state dict ({type(error).__name__}). {_WAY_OUT}"
        ) from error


def _torchvision_weights() -> Any:
    from torchvision.models import VGG16_Weights

    weights = VGG16_Weights.IMAGENET1K_V1
    try:
        return weights.get_state_dict(map_location="cpu", progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        cached = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
        raise FileNotFoundError(
            f"ImageNet weights of VGG-16 are not in {cached} and could not be downloaded from {weights.url} ({error}). {_WAY_OUT}"
        ) from error


_WAY_OUT = (
    "Download vgg16-397923af.pth from https://download.pytorch.org/models/ on a machine with internet and pass its path as the "
    "weights of feature matching, or set the weight of the feature loss to 0."
)


def _load(network: nn.Sequential, state: Any, *, source: str) -> None:
    """Fill ``network`` from the state dict of a vgg16 or of its ``features``; what lies deeper is left out."""
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise ValueError(f"{source} does not hold a state dict (tensors by name). {_WAY_OUT}")
    given = {str(name).removeprefix("features."): value for name, value in state.items()}
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in given]
    wrong = [
        f"{name} has {tuple(given[name].shape)} instead of {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in given and given[name].shape != value.shape
    ]
    if missing or wrong:
        problems = ([f"missing are {', '.join(missing)}"] if missing else []) + wrong
        raise ValueError(
            f"{source} does not hold the weights of VGG-16: {'; '.join(problems)}. {_WAY_OUT}"
        )
    network.load_state_dict({name: given[name].float() for name in wanted}, assign=True)
