"""A network as other programs expect it: one tensor in, one tensor out."""

from __future__ import annotations

from torch import Tensor, nn

from mpunet.models.base import as_output, geometry_of

__all__ = ["ImageNetwork"]


class ImageNetwork(nn.Module):
    """Return only the image of a thick-to-thin network, without its other streams.

    Args:
        network: the network, with its geometry as attributes.

    Attributes:
        n_thick: number of thick input slices, n.
        ratio: thick spacing / thin spacing, r.
        multiple: H and W must be multiples of this.

    >>> import torch, mpunet
    >>> network = ImageNetwork(mpunet.MPUNet(widths=(2, 2, 2)))
    >>> network(torch.rand(1, 1, 8, 4, 8)).shape
    torch.Size([1, 1, 36, 4, 8])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.n_thick, self.ratio, self.multiple = geometry_of(network)

    def forward(self, thick: Tensor) -> Tensor:
        """Map windows (B, 1, n, H, W), intensity in [0, 1], to thin slices (B, 1, N, H, W)."""
        image: Tensor = as_output(self.network(thick)).image
        return image
