"""A network as a method: its reconstruction, and the cost of one thin slice."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy.typing as npt
import torch
from torch.utils.flop_counter import FlopCounterMode

from mpunet.config import from_config
from mpunet.data.volumes import VolumeCase
from mpunet.inference import Reconstructor
from mpunet.inference.options import Stride
from mpunet.memory import peak_memory
from mpunet.models.base import geometry_of
from mpunet.weights import read_weights

__all__ = ["Network", "Reconstructed", "flops_per_slice"]


class Reconstructed(NamedTuple):
    """A case as a method reconstructed it.

    Attributes:
        case: thick slices, true thin slices and lung mask.
        image: thin slices on the grid of the true ones, in HU.
        seconds: time that the method took.
    """

    case: VolumeCase
    image: npt.NDArray[Any]
    seconds: float


class Network:
    """Reconstruct cases with a network.

    Args:
        net: the network as ``{"class_path": ..., "init_args": ...}``; used without a checkpoint.
        checkpoint: checkpoint of the trained network; None for one without trained parameters.
        stride: thick slices between windows.
        tile: in-plane size in pixels above which planes are cut into overlapping tiles; None for
            whole planes.

    Attributes:
        n_thick: number of thick slices per window.
        ratio: thick spacing / thin spacing.
        parameters: number of parameters.
        gflops: see :func:`flops_per_slice`.
    """

    def __init__(
        self,
        net: dict[str, Any] | None,
        checkpoint: str | None = None,
        *,
        stride: Stride = "best",
        tile: int | None = None,
    ) -> None:
        if checkpoint is None:
            network, flips = from_config(net or {}), False
        else:
            weights = read_weights(checkpoint)
            network, flips = weights.network(), weights.flips
        self.n_thick, self.ratio, _ = geometry_of(network)
        self.parameters = sum(parameter.numel() for parameter in network.parameters())
        self.gflops = flops_per_slice(network)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._reconstruct = Reconstructor.from_network(
            network, stride=stride, tile=tile, device=self._device, check_hu=False, flips=flips
        )

    @property
    def peak_bytes(self) -> float:
        """Peak memory until now, of the GPU if there is one, else of the process."""
        return peak_memory(self._device)

    def reconstruct(self, cases: Iterable[VolumeCase]) -> Iterator[Reconstructed]:
        """Yield the cases with their thin slices, and the time of each."""
        for case in cases:
            start = time.perf_counter()
            image = self._reconstruct(case["thick"].numpy())
            yield Reconstructed(case, image, time.perf_counter() - start)


def flops_per_slice(network: Any, size: int = 128) -> float:
    """Count the GFLOPs for one more thin slice of 512 x 512 at stride 1.

    This is the cost of a window divided by the number of thin slices that each window adds. It is
    counted on windows of about ``size`` x ``size``, or on the smallest that the network accepts, and
    scaled to 512 x 512, because the cost of convolutions is proportional to the area.

    >>> from mpunet.models import MPUNet
    >>> round(flops_per_slice(MPUNet(widths=(2, 2, 2, 2, 2, 2))), 1)
    3.5
    """
    n_thick, ratio, multiple = geometry_of(network)
    size = max(multiple, size - size % multiple)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 1, n_thick, size, size))
    return float(counter.get_total_flops() / ratio / 1e9 * (512 / size) ** 2)
