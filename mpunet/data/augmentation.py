"""Random augmentation of training crops: its settings, correlated noise and slice-wise rotation.

The last two replace transforms of MONAI that do not fit:

- ``RandGaussianNoised`` adds the same noise to all keys, but thick and thin differ in depth, and a
  thick slice has less noise.
- ``RandRotated`` also interpolates along depth. It is eight times slower than slice-wise rotation,
  does not support cubic interpolation, and repeats the edge in the corners. MONAI's ``Rotate`` does
  the rotation here, with depth as the channel axis.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.transforms import MapTransform, RandomizableTransform, Rotate

from mpunet.slices.simulate import thickening_matrix

__all__ = [
    "NO_AUGMENTATION",
    "Augmentation",
    "RandCTNoised",
    "ct_noise",
    "rotated",
    "rotation_borders",
]


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training crops; all are off by default.

    Each change is applied with its own probability, and its size is drawn uniformly up to a limit.
    Thick and thin slices are changed in the same way. The default limits are our choice.

    Attributes:
        rotate_prob: probability of an in-plane rotation, by the same angle for thick slices, thin
            slices and lung mask.
        rotate_degrees: largest rotation angle in degrees, in both directions. Together with flips
            and transposition, 45 degrees cover every orientation.
        shift_prob: probability of adding a constant to all HU.
        shift_hu: largest constant that is added, in HU, in both directions.
        scale_prob: probability of scaling HU about 0. Water stays at 0 HU while air and bone
            change, as with another tube voltage.
        scale: largest relative change of HU by scaling, in both directions.
        noise_prob: probability of adding noise to the thin slices. Thick slices get the mean of
            this noise over the slice profile.
        noise_hu: largest standard deviation of the noise of a thin slice, in HU.

    >>> Augmentation(rotate_prob=0.5).rotate_degrees
    45.0
    """

    rotate_prob: float = 0.0
    rotate_degrees: float = 45.0
    shift_prob: float = 0.0
    shift_hu: float = 20.0
    scale_prob: float = 0.0
    scale: float = 0.02
    noise_prob: float = 0.0
    noise_hu: float = 20.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_prob") and not 0 <= value <= 1:
                raise ValueError(f"Expected a probability from 0 to 1, got {field.name} = {value}.")
            if not 0 <= value < float("inf"):
                raise ValueError(
                    f"Expected the largest change, 0 or more, got {field.name} = {value}; "
                    "it is drawn in both directions."
                )


NO_AUGMENTATION = Augmentation()


def ct_noise(
    shape: tuple[int, int, int], std: float, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Draw random noise of shape (depth, height, width) with standard deviation ``std`` in HU.

    The noise is correlated between in-plane neighbours (binomial weights 1, 2, 1 along height and
    width), like noise after a reconstruction kernel, and independent between slices. This is our
    choice, a simple substitute for a scanner's noise spectrum.

    >>> round(float(ct_noise((2, 64, 64), 10.0, np.random.default_rng(0)).std()))
    10
    """
    depth, height, width = shape
    white = rng.standard_normal((depth, height + 2, width + 2), dtype=np.float32)
    rows = white[:, :-2] + 2 * white[:, 1:-1] + white[:, 2:]
    noise: npt.NDArray[np.float32] = rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]
    noise *= np.float32(std / 6)  # each of the two sums has the variance 1 + 4 + 1
    return noise


class RandCTNoised(RandomizableTransform, MapTransform):  # type: ignore[misc]  # MONAI has no types
    """Add noise to thin slices, and its mean over the slice profile to genuine thick slices.

    If thick slices are simulated, apply this transform before the simulation: the noise then passes
    through the same slice profile as the image. A genuine thick series gets the mean of the same
    noise over a profile. This gives the right variance (for the default Gaussian at ratio 5 about a
    sixth of the variance of the thin slices) and the correlation of two reconstructions of one
    measurement.

    Args:
        n_thick: number of thick slices in the crop.
        ratio: thick spacing / thin spacing.
        weights: slice profile of genuine thick series, from
            :func:`mpunet.slices.simulate.profile_weights`.
        prob: fraction of the crops to which noise is added.
        max_hu: largest standard deviation of the noise of a thin slice, in HU.
    """

    def __init__(
        self,
        n_thick: int,
        ratio: int,
        weights: npt.NDArray[np.float64],
        *,
        prob: float,
        max_hu: float,
    ) -> None:
        MapTransform.__init__(self, ("thick", "thin"), allow_missing_keys=True)
        RandomizableTransform.__init__(self, prob)
        self.n_thick = n_thick
        self.ratio = ratio
        self.weights = weights
        self.max_hu = max_hu

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the crop, with noise added if it was drawn for this crop."""
        self.randomize(None)
        if not self._do_transform:
            return dict(data)
        out, thin = dict(data), data["thin"]
        margin = len(self.weights) // 2 if "thick" in data else 0
        depth = thin.shape[1] + 2 * margin
        random = np.random.default_rng(self.R.randint(2**32, dtype=np.uint64))
        noise = ct_noise((depth, *thin.shape[2:]), self.R.uniform(0, self.max_hu), random)
        out["thin"] = thin + noise[margin : margin + thin.shape[1]]
        if "thick" in data:
            matrix = thickening_matrix(
                depth, self.ratio, self.weights, start=margin, count=self.n_thick
            )
            out["thick"] = data["thick"] + np.tensordot(matrix, noise, axes=1)
        return out


def rotated(
    block: npt.NDArray[np.float32], angle: float, *, nearest: bool = False
) -> npt.NDArray[np.float32]:
    """Rotate each slice of a block (depth, height, width) about its centre by an angle in radians.

    Interpolation is bicubic, or nearest-neighbour if ``nearest`` is true. Bilinear interpolation
    would remove more than half of the variance of white noise, bicubic removes a quarter. Corners
    are filled by repeating the edge.
    """
    mode = "nearest" if nearest else "bicubic"
    return np.asarray(Rotate(angle, mode=mode, padding_mode="border", dtype=np.float32)(block))


def rotation_borders(size: Sequence[int], angle: float) -> tuple[int, int]:
    """Return the border, in pixels along (height, width), that a patch needs to be rotated.

    With this border on each side of a patch of the given size, no pixel of the rotated patch is
    missing. It includes two pixels for interpolation.

    >>> rotation_borders((256, 256), np.pi / 4)
    (56, 56)
    """
    height, width = size
    cos, sin = abs(np.cos(angle)), abs(np.sin(angle))
    reach = height * cos + width * sin - height, width * cos + height * sin - width
    return max(0, int(np.ceil(reach[0] / 2)) + 2), max(0, int(np.ceil(reach[1] / 2)) + 2)
