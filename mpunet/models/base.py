"""Base class, output and window geometry of thick-to-thin networks."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from mpunet.geometry import thin_depth
from mpunet.pretrained import Pretrained

__all__ = ["Geometry", "ThickToThin", "ThickToThinOutput", "as_output", "geometry_of"]


class ThickToThinOutput(NamedTuple):
    """Output of a network; each tensor has shape (B, 1, N, H, W), N = (n - 1) * r + 1.

    Attributes:
        image: thin slices, intensity in [0, 1] (not clipped).
        mask_logits: logits of the lung mask; None if the network has no mask stream.
        inner: inner-lung voxels X_i; None if the network has no inner stream.
        outer: outer-lung voxels X_o; None if the network has no outer stream.
    """

    image: Tensor
    mask_logits: Tensor | None = None
    inner: Tensor | None = None
    outer: Tensor | None = None


class Geometry(NamedTuple):
    """Window geometry of a network; see :class:`ThickToThin` for the fields."""

    n_thick: int
    ratio: int
    multiple: int


def geometry_of(network: Any) -> Geometry:
    """Read the attributes ``n_thick``, ``ratio`` and ``multiple`` of a network of any class.

    ``multiple`` is optional and defaults to 1.

    Raises:
        ValueError: if ``n_thick`` or ``ratio`` is missing or not an integer.
    """
    n_thick, ratio = getattr(network, "n_thick", None), getattr(network, "ratio", None)
    if not (isinstance(n_thick, int) and isinstance(ratio, int)):
        raise ValueError(
            f"Expected {type(network).__name__} to have the integer attributes n_thick (input "
            f"slices) and ratio (thick spacing / thin spacing), got {n_thick} and {ratio}; set "
            "them in its class or constructor."
        )
    return Geometry(n_thick, ratio, int(getattr(network, "multiple", 1)))


def as_output(output: Any) -> Any:
    """Wrap a bare tensor (B, 1, N, H, W) in a :class:`ThickToThinOutput` as its image.

    Any other output is returned unchanged; it must have an attribute ``image``.
    """
    return ThickToThinOutput(output) if isinstance(output, Tensor) else output


class ThickToThin(Pretrained, nn.Module):
    """Base class of the networks: maps (B, 1, n, H, W) in [0, 1] to a :class:`ThickToThinOutput`.

    The constructor of a subclass must accept plain values only, so that its arguments can be stored
    in checkpoints and YAML files.

    Attributes:
        n_thick: number of thick input slices, n.
        ratio: thick spacing / thin spacing, r.
        multiple: H and W must be multiples of this; default 1.
    """

    n_thick: int
    ratio: int
    multiple: int = 1

    def check_input(self, thick: Tensor) -> None:
        """Check that ``thick`` is (B, 1, n, H, W) with H and W multiples of ``multiple``.

        Raises:
            ValueError: if it is not.
        """
        window = thick.ndim == 5 and tuple(thick.shape[1:3]) == (1, self.n_thick)
        if not window or any(size % self.multiple for size in thick.shape[3:]):
            raise ValueError(
                f"Expected thick slices of shape (B, 1, {self.n_thick}, H, W) with H and W "
                f"multiples of {self.multiple}, got {tuple(thick.shape)}. For whole volumes of any "
                "size use mpunet.Reconstructor."
            )

    @property
    def n_thin(self) -> int:
        """Number of output slices, N."""
        return thin_depth(self.n_thick, self.ratio)
