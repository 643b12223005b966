"""What every thick-to-thin network here shares: its geometry and its output."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from mpunet.config import Configurable
from mpunet.geometry import thin_depth

__all__ = ["Geometry", "ThickToThin", "ThickToThinOutput", "as_output", "geometry_of"]


class ThickToThinOutput(NamedTuple):
    """What a network returns; each tensor (B, 1, N, H, W), N = (n - 1) * r + 1.

    Attributes:
        image: the thin slices, intensity in [0, 1] (not clipped).
        mask_logits: logits of the lung mask; None where the network has no such stream.
        inner: inner-lung voxels X_i; None likewise.
        outer: outer-lung voxels X_o; None likewise.
    """

    image: Tensor
    mask_logits: Tensor | None = None
    inner: Tensor | None = None
    outer: Tensor | None = None


class Geometry(NamedTuple):
    """What a network states about its windows; see :class:`ThickToThin`."""

    n_thick: int
    ratio: int
    multiple: int


def geometry_of(network: Any) -> Geometry:
    """The attributes ``n_thick``, ``ratio`` and ``multiple`` (1 if it has none) of any network, ours or not.

    Raises:
        ValueError: if it does not state the first two.
    """
    n_thick, ratio = getattr(network, "n_thick", None), getattr(network, "ratio", None)
    if not (isinstance(n_thick, int) and isinstance(ratio, int)):
        raise ValueError(
            f"Expected {type(network).__name__} to have the attributes n_thick (thick slices that go in) and ratio (thick spacing / thin "
            f"spacing), got {n_thick} and {ratio}; set them in its class or constructor."
        )
    return Geometry(n_thick, ratio, int(getattr(network, "multiple", 1)))


def as_output(output: Any) -> Any:
    """A network's output with an attribute ``image``: itself, or a bare tensor (B, 1, N, H, W) taken as the image."""
    return ThickToThinOutput(output) if isinstance(output, Tensor) else output


class ThickToThin(Configurable, nn.Module):
    """Base of the networks: (B, 1, n, H, W) in [0, 1] to a :class:`ThickToThinOutput`.

    A subclass takes plain values only, so that checkpoints and YAML files can hold its arguments.

    Attributes:
        n_thick: thick slices that go in.
        ratio: thick spacing / thin spacing.
        multiple: H and W must be multiples of this.
    """

    n_thick: int
    ratio: int
    multiple: int = 1

    def check_input(self, thick: Tensor) -> None:
        """Raise ValueError unless ``thick`` is (B, 1, n, H, W) with H and W multiples of ``multiple``."""
        window = thick.ndim == 5 and tuple(thick.shape[1:3]) == (1, self.n_thick)
        if not window or any(size % self.multiple for size in thick.shape[3:]):
            raise ValueError(
                f"Expected thick slices of shape (B, 1, {self.n_thick}, H, W) with H and W multiples of {self.multiple}, "
                f"got {tuple(thick.shape)}. Whole volumes of any size go through mpunet.Reconstructor."
            )

    @property
    def n_thin(self) -> int:
        """Thin slices that come out."""
        return thin_depth(self.n_thick, self.ratio)
