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

import torch
from torch import Tensor, nn

from mpunet.geometry import thin_depth

__all__ = ["DepthConsistency"]


class DepthConsistency(nn.Module):
    """Correct thin slices (B, C, N, H, W) to agree with thick slices (B, C, n, H, W) of a window.

    Computed in float32. The first and last thick slice are ignored, because half of their slice
    profile lies outside the window.

    Args:
        n_thick: number of thick slices in a window, n; at least 3.
        ratio: thick spacing / thin spacing, r.
        fwhm: full width at half maximum of the Gaussian slice profile, in thick spacings; above 0.
        damping: regularisation λ, as a fraction of the mean over slices of the profile's sum of
            squares; at least 0. A value above 0 limits the effect of noise and of an inexact
            profile.

    Raises:
        ValueError: if ``n_thick`` is below 3, or ``fwhm`` or ``damping`` is out of range.

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
        self, n_thick: int, ratio: int, fwhm: float = 0.9, *, damping: float = 0.1
    ) -> None:
        super().__init__()
        if n_thick < 3:
            raise ValueError(
                "Expected windows of at least 3 thick slices, because data consistency ignores the "
                f"first and the last, got {n_thick}."
            )
        if not (0 < fwhm < math.inf and 0 <= damping < math.inf):
            raise ValueError(
                "Expected fwhm > 0 (thick spacings) and damping >= 0, got "
                f"fwhm = {fwhm}, damping = {damping}."
            )
        sigma = fwhm * ratio / math.sqrt(8 * math.log(2))
        centres = ratio * torch.arange(1, n_thick - 1, dtype=torch.float64)
        profile = torch.exp(
            -0.5 * ((torch.arange(thin_depth(n_thick, ratio)) - centres[:, None]) / sigma) ** 2
        )
        matrix = profile / profile.sum(dim=1, keepdim=True)
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
