"""How depth shrinks and grows through the network: grids, and the deconvolution that leads from one to the next.

The paper says that depth grows step by step from the bottleneck up to N = (n - 1) * r + 1 and leaves the steps open; these are
our choice. Every feature map here stands on a *grid*: slices 0, s, 2s, ... in units of thin slices, s its spacing, as far as the
window reaches. All grids begin at the window's first slice, so that a feature and the slice it describes share one position at
every level. Deconvolutions that merely hit the right number of slices (say 8 -> 10 by a larger kernel) would shear the features
against each other by up to several mm, position by position, which no convolution can undo.

A step from spacing a to b with a / b = stride / keep is a transposed convolution of that stride of which every ``keep``-th slice
is kept: an exact rational resampling with learnt weights.
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
    """A deconvolution along depth: ``in_depth`` slices to ``out_depth``, keeping slice 0 in its place.

    Attributes:
        in_depth: slices that come in.
        out_depth: slices that go out.
        stride: stride of the transposed convolution.
        keep: every ``keep``-th slice of its result is kept.
    """

    in_depth: int
    out_depth: int
    stride: int
    keep: int = 1

    @property
    def kernel(self) -> int:
        """Odd, and wide enough for every new slice to see both its neighbours (2 * stride - 1), at least 3."""
        return max(3, 2 * self.stride - 1)

    @property
    def padding(self) -> int:
        """Half the kernel: slice j of the input stands at slice j * stride of the transposed convolution's result."""
        return self.kernel // 2

    @property
    def output_padding(self) -> int:
        """Slices past the last one that came in, where the finer grid reaches further than the coarser one."""
        return max(0, (self.out_depth - 1) * self.keep - (self.in_depth - 1) * self.stride)

    def polyphase(self) -> tuple[int, list[list[int]]]:
        """The kept slices as a convolution of stride ``keep`` with ``stride`` phases: output slice stride * m + p is the sum over taps
        of input slice keep * m + first + tap, weighted by the kernel's entry taps[p][tap]; entry ``kernel``, past the last, is 0.

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
    """Depths of a whole U-Net for one (n, r); see :func:`plan_depths`.

    Attributes:
        halved: for each down-sampling stage, from the first to the deepest, whether it halves the depth.
        encoder_depths: depth at each level, from full resolution (level 0) to the bottleneck.
        up: the step of each in-plane doubling, from the bottleneck up to full resolution.
        shortcuts: the step that brings the encoder's features to the depth that the decoder has at the same level, in the
            decoder's order (deepest shortcut first, level 0 last).
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
    """Plan every change of depth in a U-Net that maps ``n_thick`` slices to (n_thick - 1) * ratio + 1.

    Args:
        n_thick: thick slices of a window, at least 2.
        ratio: thick spacing / thin spacing, at least 2.
        stages: in-plane halvings.
        halvings: how many of the deepest stages halve depth too (the paper: depth shrinks by 2 in all).
        spacings: grid spacing in thin slices after each up-sampling, from the deepest to full resolution: ``stages`` numbers that do
            not increase and end with 1. By default depth is first brought back to n, and then doubled by the last steps,
            the last of them taking what remains of the ratio: 5 becomes 2 * 2.5.

    Raises:
        ValueError: if (n_thick, ratio) cannot be planned so, with the reason.

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
            f"{n_thick} slices cannot be halved {halvings} times: one slice is left before the last; use fewer halvings."
        )
    decoder = (
        [Fraction(s).limit_denominator(64) for s in spacings]
        if spacings
        else _default_spacings(ratio, stages, halvings)
    )
    if not spacings and halvings == stages:
        raise ValueError(
            f"Expected fewer depth halvings than stages ({stages}), got {halvings}: up-sampling only undoes them and no stage is left "
            f"to multiply depth by the ratio {ratio}. Add a stage (a width), use fewer halvings, or give the spacings."
        )
    if (
        len(decoder) != stages
        or decoder[-1] != 1
        or any(a < b for a, b in pairwise([encoder[-1], *decoder]))
    ):
        raise ValueError(
            f"Expected {stages} grid spacings that start at {encoder[-1]} or less, do not increase and end with 1, "
            f"got {[float(s) for s in decoder]}."
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
            f"A shortcut on a grid of {float(coarse)} thin slices cannot feed a coarser one of {float(fine)}."
        )
    factor = coarse / fine
    if factor.numerator > MAX_STRIDE:
        raise ValueError(
            f"The step from a spacing of {float(coarse):g} to {float(fine):g} thin slices is {factor.numerator}/{factor.denominator}: "
            f"a deconvolution of stride {factor.numerator} (the limit is {MAX_STRIDE}). Choose spacings with simpler ratios."
        )
    return DepthStep(_depth(span, coarse), _depth(span, fine), factor.numerator, factor.denominator)
