"""Data consistency along depth: thin slices that, thickened by the slice profile, give the thick ones that went in (ours).

A thick slice is a weighted mean of thin ones, thick = A thin. Of all volumes that give the same thick slices a network has to find
one, but nothing makes its output give them: what it misses by can be taken back in closed form,
thin + P (thick - A thin) with P = Aᵀ (A Aᵀ + λ)⁻¹, the smallest change that does it (Irani and Peleg's back-projection, CVGIP 1991,
in one step; "data consistency" of MRI reconstruction, Schlemper et al., IEEE TMI 2018). It is linear, so that a network trained
through it learns only what thick slices do not tell.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mpunet.geometry import thin_depth

__all__ = ["DepthConsistency"]


class DepthConsistency(nn.Module):
    """Thin slices (B, C, N, H, W), moved to agree with the thick ones (B, C, n, H, W) of their window, in float32.

    The first and last thick slice are left out: half of what they are made of lies outside of the window.

    Args:
        n_thick: thick slices of a window, n, at least 3.
        ratio: thick spacing / thin spacing, r.
        fwhm: full width at half maximum of the Gaussian slice profile, in thick spacings.
        damping: λ in units of the sum of the profile's squares. Above 0, so that noise and a profile that is not quite the scanner's
            are not followed all the way.

    Raises:
        ValueError: if there are fewer than 3 slices, or ``fwhm`` or ``damping`` is out of its range.

    >>> thick = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])[None, None, :, None, None]
    >>> layer = DepthConsistency(5, 3, damping=0.0)
    >>> thin = layer(torch.zeros(1, 1, 13, 1, 1), thick)
    >>> torch.allclose(torch.einsum("kN,bcNhw->k", layer.thicken, thin), thick[0, 0, 1:-1, 0, 0], atol=1e-6)
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
                f"Expected windows of at least 3 thick slices, of which the inner ones are kept, got {n_thick}."
            )
        if not (0 < fwhm < math.inf and 0 <= damping < math.inf):
            raise ValueError(
                f"Expected fwhm > 0 (thick spacings) and damping >= 0, got fwhm = {fwhm}, damping = {damping}."
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
        """Thin (B, C, N, H, W) and thick (B, C, n, H, W) in the same unit to thin (B, C, N, H, W)."""
        with torch.autocast(thin.device.type, enabled=False):
            missing = thick[:, :, 1:-1].float() - torch.einsum(
                "kN,bcNhw->bckhw", self.thicken.float(), thin.float()
            )
            return thin.float() + torch.einsum("Nk,bckhw->bcNhw", self.spread.float(), missing)
