"""Depth schedule of the network: the depth at each level and the deconvolutions between levels.

The paper says that depth grows step by step from the bottleneck to N = (n - 1) * r + 1, but not by
which steps. The steps are our choice.

Every feature map lies on a *grid*: slices 0, s, 2s, ... within the window, where the spacing s is
in units of thin slices. All grids start at the first slice of the window, so features and image
share positions at every level. A deconvolution that only produces the right number of slices (for
example 10 slices from 8 by a larger kernel) would shift features against each other by up to
several mm, depending on the position. No convolution can undo that.

A step from spacing a to spacing b, with a / b = stride / keep, is a transposed convolution of that
stride of which every ``keep``-th slice is kept: an exact rational resampling with learnt weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import prod

from mpunet.geometry import thin_depth

__all__ = ["DepthSchedule", "DepthStep", "plan_depths"]

MAX_STRIDE = 16


@dataclass(frozen=True)
class DepthStep:
    """Deconvolution along depth from ``in_depth`` to ``out_depth`` slices; slice 0 does not move.

    Attributes:
        in_depth: input slices.
        out_depth: output slices.
        stride: stride of the transposed convolution.
        keep: only every ``keep``-th slice of the transposed convolution's result is kept.
    """

    in_depth: int
    out_depth: int
    stride: int
    keep: int = 1

    @property
    def kernel(self) -> int:
        """Kernel size: 2 * stride - 1, at least 3; every new slice depends on both neighbours."""
        return max(3, 2 * self.stride - 1)

    @property
    def padding(self) -> int:
        """Half the kernel: aligns input slice j with slice j * stride of the result."""
        return self.kernel // 2

    @property
    def output_padding(self) -> int:
        """Slices beyond the last input slice, if the finer grid extends beyond the coarser."""
        return max(0, (self.out_depth - 1) * self.keep - (self.in_depth - 1) * self.stride)

    def polyphase(self) -> tuple[int, list[list[int]]]:
        """Express the step as a convolution of stride ``keep`` that computes the kept slices only.

        The convolution has ``stride`` phases. Output slice stride * m + p is the sum over tap of
        input slice keep * m + first + tap, weighted by entry taps[p][tap] of the deconvolution's
        kernel. Index ``kernel``, one past the last entry, means a weight of 0.

        Returns:
            first and taps.

        >>> DepthStep(8, 36, 5).polyphase()
        (0, [[4, 9], [5, 0], [6, 1], [7, 2], [8, 3]])
        """
        first = -(self.padding // self.stride)
        last = ((self.stride - 1) * self.keep + self.padding) // self.stride
        entries = [
            [
                phase * self.keep + self.padding - self.stride * offset
                for offset in range(first, last + 1)
            ]
            for phase in range(self.stride)
        ]
        return first, [
            [entry if 0 <= entry < self.kernel else self.kernel for entry in row] for row in entries
        ]


@dataclass(frozen=True)
class DepthSchedule:
    """Depths and depth steps of a U-Net for one pair (n, r); see :func:`plan_depths`.

    Attributes:
        n_thick: number of thick slices in a window, n.
        ratio: thick spacing / thin spacing, r.
        halved: for each down-sampling stage, from first to deepest, whether it halves depth.
        encoder_depths: depth at each level, from full resolution (level 0) to the bottleneck.
        up: depth step of each in-plane doubling, from the bottleneck up to full resolution.
        shortcuts: depth step from the encoder's features to the decoder's depth at the same level,
            in the order of the decoder (deepest shortcut first, level 0 last).
    """

    n_thick: int
    ratio: int
    halved: tuple[bool, ...]
    encoder_depths: tuple[int, ...]
    up: tuple[DepthStep, ...]
    shortcuts: tuple[DepthStep, ...]


def plan_depths(
    n_thick: int,
    ratio: int,
    *,
    stages: int = 5,
    halvings: int = 1,
    spacings: Sequence[float] | None = None,
) -> DepthSchedule:
    """Plan all changes of depth in a U-Net from n_thick to (n_thick - 1) * ratio + 1 slices.

    Args:
        n_thick: number of thick slices in a window, at least 2.
        ratio: thick spacing / thin spacing, at least 2.
        stages: number of in-plane halvings.
        halvings: number of stages that halve depth too; these are the deepest ones. The paper
            halves depth once.
        spacings: grid spacing, in thin slices, after each up-sampling from the deepest to full
            resolution: ``stages`` numbers that do not increase and end with 1. Default: depth first
            returns to n; the last steps then double it, and the very last step applies the
            remaining factor of the ratio (5 = 2 * 2.5).

    Raises:
        ValueError: if there is no such schedule for (n_thick, ratio); the message gives the reason.

    >>> plan = plan_depths(8, 5)
    >>> plan.encoder_depths, [step.out_depth for step in plan.up]
    ((8, 8, 8, 8, 8, 4), [8, 8, 8, 15, 36])
    >>> plan.up[-1]
    DepthStep(in_depth=15, out_depth=36, stride=5, keep=2)
    """
    if n_thick < 2 or ratio < 2:
        raise ValueError(
            f"Expected n_thick and ratio of at least 2, got n_thick={n_thick}, ratio={ratio}."
        )
    if stages < 1:
        raise ValueError(f"Expected at least 1 stage (one more width than stages), got {stages}.")
    if not 0 <= halvings <= stages:
        raise ValueError(
            f"Expected 0 to {stages} depth halvings (one a stage at most), got {halvings}."
        )
    span = thin_depth(n_thick, ratio) - 1
    encoder = [Fraction(ratio)] * (stages - halvings + 1) + [
        Fraction(ratio * 2**i) for i in range(1, halvings + 1)
    ]
    if halvings and encoder[-1] > 2 * span:
        raise ValueError(
            f"{n_thick} slices cannot be halved {halvings} times: one slice is left before the "
            "last halving; use fewer halvings."
        )
    decoder = (
        [Fraction(s).limit_denominator(64) for s in spacings]
        if spacings
        else _default_spacings(ratio, stages, halvings)
    )
    if not spacings and halvings == stages:
        raise ValueError(
            f"Expected fewer depth halvings than stages ({stages}), got {halvings}: up-sampling "
            f"only undoes them and no stage is left to multiply depth by the ratio {ratio}. Add a "
            "stage (a width), use fewer halvings, or give the spacings."
        )
    if (
        len(decoder) != stages
        or decoder[-1] != 1
        or any(a < b for a, b in pairwise([encoder[-1], *decoder]))
    ):
        raise ValueError(
            f"Expected {stages} grid spacings that start at {encoder[-1]} or less, do not increase "
            f"and end with 1, got {[float(s) for s in decoder]}."
        )
    coarser = [encoder[-1], *decoder[:-1]]
    return DepthSchedule(
        n_thick,
        ratio,
        halved=tuple(b > a for a, b in pairwise(encoder)),
        encoder_depths=tuple(_depth(span, s) for s in encoder),
        up=tuple(_step(span, a, b) for a, b in zip(coarser, decoder, strict=True)),
        shortcuts=tuple(_step(span, a, b) for a, b in zip(encoder[-2::-1], decoder, strict=True)),
    )


def _default_spacings(ratio: int, stages: int, halvings: int) -> list[Fraction]:
    growth = [Fraction(2)] * halvings
    rest = Fraction(ratio)
    steps: list[Fraction] = []
    while rest > Fraction(5, 2) and len(steps) < stages - halvings - 1:
        steps.append(Fraction(2))
        rest /= 2
    if stages > halvings:
        steps.append(rest)
    factors = growth + [Fraction(1)] * (stages - halvings - len(steps)) + steps
    coarsest = Fraction(ratio * 2**halvings)
    return [coarsest / prod(factors[: i + 1], start=Fraction(1)) for i in range(stages)]


def _depth(span: int, spacing: Fraction) -> int:
    return span // spacing + 1


def _step(span: int, coarse: Fraction, fine: Fraction) -> DepthStep:
    if coarse < fine:
        raise ValueError(
            f"A shortcut with a spacing of {float(coarse)} thin slices cannot be resampled to the "
            f"larger spacing of {float(fine)}; choose smaller spacings for the decoder."
        )
    factor = coarse / fine
    if factor.numerator > MAX_STRIDE:
        raise ValueError(
            f"The step from a spacing of {float(coarse):g} to {float(fine):g} thin slices is "
            f"{factor.numerator}/{factor.denominator}: a deconvolution of stride "
            f"{factor.numerator} (the limit is {MAX_STRIDE}). Choose spacings with simpler ratios."
        )
    return DepthStep(_depth(span, coarse), _depth(span, fine), factor.numerator, factor.denominator)
