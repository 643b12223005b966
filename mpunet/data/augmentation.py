"""What may be varied at random in a training crop, and what MONAI lacks for it: noise, and rotation of slices.

MONAI's ``RandGaussianNoised`` adds one and the same noise to all keys, but thick and thin differ in depth, and a thick slice has less.
``RandRotated`` interpolates along depth too, eight times slower than slice by slice and never cubic, and repeats the edge in the
corners; its core ``Rotate`` serves, with depth as channels.
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
    """Random changes of a training crop, alike for thick and thin; each happens with its ``_prob`` and is drawn uniformly.

    All are off by default, and the sizes are ours: what helps is to be measured.

    Attributes:
        rotate_prob: rotation in plane, thick, thin and lung mask by the same angle.
        rotate_degrees: largest angle, either way; with flips and transposition 45 degrees reach every orientation.
        shift_prob: offset of all HU.
        shift_hu: largest offset, either way.
        scale_prob: scaling of HU about 0, so that water stays and air and bone move, as with another tube voltage.
        scale: largest relative change, either way.
        noise_prob: noise on the thin slices, whose mean through the slice profile goes to the thick ones.
        noise_hu: largest standard deviation in HU in a thin slice.

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
                    f"Expected the largest change, 0 or more, got {field.name} = {value}; it is drawn either way."
                )


NO_AUGMENTATION = Augmentation()


def ct_noise(
    shape: tuple[int, int, int], std: float, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Noise (depth, height, width) of this standard deviation, in HU if it is.

    Correlated over neighbours in plane (binomial weights 1, 2, 1 along height and width), as a reconstruction kernel leaves it, and
    not at all from slice to slice: our choice, a stand-in for the spectrum of a scanner.

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
    """Noise on thin slices, and on genuine thick ones what the slice profile leaves of it.

    For simulation the noise is there before thick slices are made, so that it goes through the same profile as the image. To a
    genuine thick series the mean of the very same noise through a profile is added: the right variance (for the default Gaussian at
    ratio 5 about a sixth of that of the thin slices), and the correlation of two reconstructions of one measurement.

    Args:
        n_thick: thick slices of the crop.
        ratio: thick spacing / thin spacing.
        weights: slice profile for genuine thick series, see :func:`mpunet.slices.simulate.profile_weights`.
        prob: share of the crops that get noise.
        max_hu: largest standard deviation in HU in a thin slice.
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
        """Crop to crop."""
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
    """Slices (depth, height, width) turned by an angle in radians about their centre, each for itself; corners repeat the edge.

    Bicubic, as linear interpolation takes away more than half of the variance of white noise (cubic: a quarter), or ``nearest``.
    """
    mode = "nearest" if nearest else "bicubic"
    return np.asarray(Rotate(angle, mode=mode, padding_mode="border", dtype=np.float32)(block))


def rotation_borders(size: Sequence[int], angle: float) -> tuple[int, int]:
    """Pixels to have on each side of a patch (height, width) so that none is missing when it is turned, two for interpolation among them.

    >>> rotation_borders((256, 256), np.pi / 4)
    (56, 56)
    """
    height, width = size
    cos, sin = abs(np.cos(angle)), abs(np.sin(angle))
    reach = height * cos + width * sin - height, width * cos + height * sin - width
    return max(0, int(np.ceil(reach[0] / 2)) + 2), max(0, int(np.ceil(reach[1] / 2)) + 2)
