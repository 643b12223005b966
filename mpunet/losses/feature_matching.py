"""Feature matching (Eq. 3 of the paper).

Thin slices are compared by their feature maps in VGG-16 trained on ImageNet.
"""

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
"""Layer of the features: relu{i}_{j} is the output of the ReLU after convolution j of block i."""

# Index of each layer in torchvision.models.vgg16().features, where convolution and ReLU alternate
# and each block ends with a pooling layer.
_INDEX = dict(
    zip(get_args(VGGLayer), (1, 3, 6, 8, 11, 13, 15, 18, 20, 22, 25, 27, 29), strict=True)
)

# Channels of the convolutions in each block, "VGG D" of Simonyan and Zisserman (2015).
_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_WEIGHTS_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


def feature_matching_loss(
    prediction: Tensor,
    target: Tensor,
    features: Callable[[Tensor], Sequence[Tensor]],
    *,
    chunk: int = 4,
) -> Tensor:
    """Compute the feature matching loss of Eq. 3.

    It is the mean squared difference of feature maps, summed over layers and averaged over thin
    slices. Slices are processed in chunks, and their feature maps are computed again in the
    backward pass. Memory therefore depends on ``chunk`` but not on the number of slices. Value and
    gradient do not depend on ``chunk``.

    Args:
        prediction: composed image (B, 1, N, H, W), intensity in [0, 1].
        target: (B, 1, N, H, W), intensity in [0, 1]; it receives no gradient.
        features: function from slices (S, 1, H, W) to one map (S, C, h, w) per layer, for example
            :class:`VGG16Features`.
        chunk: number of slices processed at a time, at least 1.

    Returns:
        Scalar. Differences are squared in float32; features have the precision of autocast.

    Raises:
        ValueError: if shapes differ or ``chunk`` is below 1.

    >>> zeros = torch.zeros(1, 1, 3, 4, 4)
    >>> feature_matching_loss(zeros, zeros + 0.5, lambda slices: [slices, 2 * slices])
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
    """:func:`feature_matching_loss` with VGG-16 as a module.

    The weights are loaded at construction, so that a missing file is reported before training.

    Args:
        layers: VGG-16 layers to compare; see :class:`VGG16Features`.
        weights: file with the weights of VGG-16; None: torchvision's ImageNet weights.
        chunk: number of slices processed at a time, at least 1.
        slices: number of thin slices of a batch that are compared, drawn at random in each training
            step (our choice: VGG-16 costs several times as much as the networks here, and the
            expected gradient is the same); None: all. In evaluation mode all are compared.

    Raises:
        ValueError: if ``chunk`` or ``slices`` is below 1; see :class:`VGG16Features` for the rest.
    """

    def __init__(
        self,
        layers: Sequence[VGGLayer] = ("relu2_2", "relu3_3"),
        weights: str | os.PathLike[str] | None = None,
        *,
        chunk: int = 4,
        slices: int | None = None,
    ) -> None:
        super().__init__()
        if slices is not None and slices < 1:
            raise ValueError(f"Expected at least 1 slice for feature matching, got {slices}.")
        self.features = VGG16Features(layers, weights)
        self.chunk = chunk
        self.slices = slices

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute the loss, a scalar; see :func:`feature_matching_loss`."""
        batch, _, depth = target.shape[:3]
        if self.training and self.slices is not None and self.slices < batch * depth:
            drawn = torch.randperm(batch * depth)[: self.slices].to(target.device)
            prediction, target = (
                volume.flatten(0, 2)[drawn][None, None] for volume in (prediction, target)
            )
        return feature_matching_loss(prediction, target, self.features, chunk=self.chunk)


class VGG16Features(nn.Module):
    """Feature maps of torchvision's VGG-16, frozen and truncated after the deepest requested layer.

    The network follows ``.to(device)``, but the module has no registered parameters: they are not
    saved in checkpoints, not visible to optimisers and not synchronised in distributed training.

    Args:
        layers: layer names from relu1_1 to relu5_3. The paper does not name its layers; relu2_2 and
            relu3_3 are our choice.
        weights: file (.pth or .safetensors) with the state dict of torchvision's ``vgg16`` or of
            its ``features``; layers deeper than the deepest requested one may be missing. None:
            torchvision's ImageNet weights, which are read from the cache of torch hub or downloaded
            (528 MB).

    Raises:
        FileNotFoundError: if the file does not exist, or if torchvision's weights are not in the
            cache and cannot be downloaded.
        ValueError: if a layer is unknown or repeated, or the file does not contain the weights of
            VGG-16.
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
        # A tuple hides the network from nn.Module, so its parameters are not registered.
        self._network = (network.requires_grad_(False).eval(),)

    def forward(self, slices: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps of slices (S, 1, H, W) with intensity in [0, 1].

        Returns:
            One map (S, C, h, w) per layer, from shallow to deep.
        """
        (network,) = self._network
        weight = next(network.parameters())
        mean, std = (
            weight.new_tensor(channels).view(1, 3, 1, 1)
            for channels in (_IMAGENET_MEAN, _IMAGENET_STD)
        )
        # Broadcasting replicates the single channel to three.
        x = (slices.to(weight.dtype) - mean) / std
        wanted = {_INDEX[name] for name in self.layers}
        maps = []
        for index, layer in enumerate(network):
            x = layer(x)
            if index in wanted:
                maps.append(x)
        return tuple(maps)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VGG16Features:
        """Apply ``.to()``, ``.cuda()`` or ``.double()`` to the unregistered network too."""
        self._network[0]._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return cast(VGG16Features, super()._apply(fn, recurse))  # type: ignore[no-untyped-call]


def _truncated_vgg16(length: int) -> nn.Sequential:
    """Create the first ``length`` layers of VGG-16, as torchvision numbers them, without memory.

    Our own, as torchvision would bind users to the one release of torch that it was built for.
    """
    layers: list[nn.Module] = []
    channels = 3
    with torch.device("meta"):
        for block in _BLOCKS:
            for width in block:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers[:length])


def _read_weights(weights: str | os.PathLike[str] | None) -> Any:
    if weights is None:
        return _torchvision_weights()
    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"No file {path} with weights of VGG-16. {_WEIGHTS_HINT}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise many types of errors
        raise ValueError(
            f"{path} cannot be read as a state dict ({type(error).__name__}). {_WEIGHTS_HINT}"
        ) from error


def _torchvision_weights() -> Any:
    try:
        return torch.hub.load_state_dict_from_url(
            _WEIGHTS_URL, map_location="cpu", check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        cached = Path(torch.hub.get_dir(), "checkpoints", Path(_WEIGHTS_URL).name)
        raise FileNotFoundError(
            f"ImageNet weights of VGG-16 are not in {cached} and could not be downloaded from "
            f"{_WEIGHTS_URL} ({error}). {_WEIGHTS_HINT}"
        ) from error


_WEIGHTS_HINT = (
    "Download vgg16-397923af.pth from https://download.pytorch.org/models/ on a machine with "
    "internet and pass its path as the weights of feature matching, or set the weight of the "
    "feature loss to 0."
)


def _load(network: nn.Sequential, state: Any, *, source: str) -> None:
    """Load the state dict of a vgg16 or its ``features`` into ``network``; skip deeper layers."""
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise ValueError(f"{source} does not hold a state dict (tensors by name). {_WEIGHTS_HINT}")
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
            f"{source} does not hold the weights of VGG-16: {'; '.join(problems)}. {_WEIGHTS_HINT}"
        )
    network.load_state_dict({name: given[name].float() for name in wanted}, assign=True)
