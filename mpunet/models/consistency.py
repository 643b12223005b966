"""Data consistency along depth: correct thin slices so that they reproduce the thick input slices.

A thick slice is a weighted mean of thin slices: thick = A thin, where A is the slice profile. A
network's output does not have to reproduce its input. The smallest correction that makes it do so
has a closed form: thin + P (thick - A thin) with P = Aᵀ (A Aᵀ + λ)⁻¹, exact for λ = 0.

This layer is our addition to the paper. Sources: back-projection (Irani and Peleg, CVGIP 1991),
here in one step, and "data consistency" in MRI reconstruction (Schlemper et al., IEEE TMI 2018).
The correction is linear, so a network trained through it learns only what the thick slices do not
determine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mpunet.geometry import thin_depth

__all__ = ["DepthConsistency"]

# Largest part of a profile that may lie beyond a neighbouring thick slice, on one side. In the
# outermost corrected slices of a window it lies outside. Our choice: it allows Gaussians of up to 2
# thick spacings; at 1.3, 2 % lie there.
OUTSIDE = 0.1


class DepthConsistency(nn.Module):
    """Correct thin slices (B, C, N, H, W) to agree with thick slices (B, C, n, H, W) of a window.

    Computed in float32. The first and last thick slice are ignored, because half of their slice
    profile lies outside the window.

    Args:
        n_thick: number of thick slices in a window, n; at least 3.
        ratio: thick spacing / thin spacing, r.
        profile: slice profile: the full width at half maximum of a Gaussian in thick spacings, or
            the weights of the thin slices around the centre of a thick one (an odd number; their
            sum is scaled to 1).
        damping: regularisation λ, as a fraction of the mean over slices of the profile's sum of
            squares; at least 0. A value above 0 limits the effect of noise and of an inexact
            profile.

    Raises:
        ValueError: if ``n_thick`` is below 3, ``profile`` or ``damping`` is out of range, or the
            profile is so wide that a tenth of it lies outside of the window.

    >>> thick = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])[None, None, :, None, None]
    >>> layer = DepthConsistency(5, 3, damping=0.0)
    >>> thin = layer(torch.zeros(1, 1, 13, 1, 1), thick)
    >>> again = torch.einsum("kN,bcNhw->k", layer.thicken, thin)
    >>> torch.allclose(again, thick[0, 0, 1:-1, 0, 0], atol=1e-6)
    True
    """

    thicken: Tensor
    spread: Tensor

    def __init__(
        self,
        n_thick: int,
        ratio: int,
        profile: float | Sequence[float] = 0.9,
        *,
        damping: float = 0.1,
    ) -> None:
        super().__init__()
        if n_thick < 3:
            raise ValueError(
                "Expected windows of at least 3 thick slices, because data consistency ignores the "
                f"first and the last, got {n_thick}."
            )
        if not 0 <= damping < math.inf:
            raise ValueError(f"Expected damping >= 0, got {damping}.")
        weights = _weights(profile, ratio, reach=ratio * (n_thick - 1))
        middle = len(weights) // 2
        outside = max(
            float(weights[: max(0, middle - ratio)].sum()),
            float(weights[middle + ratio + 1 :].sum()),
        )
        if outside > OUTSIDE:
            raise ValueError(
                f"Expected a slice profile with at most {OUTSIDE:.0%} of its weight beyond one thick "
                f"spacing on either side, got {outside:.1%}: it is too wide for data consistency; leave it out."
            )
        # Thin slices from the centres of thick slices 1 ... n - 2.
        offset = (
            torch.arange(thin_depth(n_thick, ratio)) - ratio * torch.arange(1, n_thick - 1)[:, None]
        )
        index = offset + middle
        known = (index >= 0) & (index < len(weights))
        rows = torch.where(known, weights[index.clamp(0, len(weights) - 1)], 0.0)
        matrix = rows / rows.sum(dim=1, keepdim=True)
        gram = matrix @ matrix.T
        spread = torch.linalg.solve(
            gram + damping * gram.diagonal().mean() * torch.eye(len(gram)), matrix
        ).T
        self.register_buffer("thicken", matrix.float(), persistent=False)
        self.register_buffer("spread", spread.float(), persistent=False)

    def forward(self, thin: Tensor, thick: Tensor) -> Tensor:
        """Correct ``thin`` (B, C, N, H, W) by ``thick`` (B, C, n, H, W) of the same unit."""
        with torch.autocast(thin.device.type, enabled=False):
            missing = thick[:, :, 1:-1].float() - torch.einsum(
                "kN,bcNhw->bckhw", self.thicken.float(), thin.float()
            )
            return thin.float() + torch.einsum("Nk,bckhw->bcNhw", self.spread.float(), missing)


def _weights(profile: float | Sequence[float], ratio: int, reach: int) -> Tensor:
    """Return the weights of thin slices around the centre of a thick one: odd number, sum 1."""
    if isinstance(profile, (int, float)):
        if not 0 < profile < math.inf:
            raise ValueError(f"Expected fwhm > 0 (thick spacings), got fwhm = {profile}.")
        sigma = profile * ratio / math.sqrt(8 * math.log(2))
        distance = torch.arange(-reach, reach + 1, dtype=torch.float64)
        weights = torch.exp(-0.5 * (distance / sigma) ** 2)
    else:
        weights = torch.tensor([float(weight) for weight in profile], dtype=torch.float64)
        valid = len(weights) % 2 == 1 and bool(weights.isfinite().all() and weights.min() >= 0)
        if not (valid and weights[len(weights) // 2] > 0):
            raise ValueError(
                "Expected an odd number of weights >= 0 of a slice profile, above 0 in the middle, "
                f"got {list(profile)}."
            )
    return weights / weights.sum()
