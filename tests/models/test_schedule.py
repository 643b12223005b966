"""Depth schedules: formula and positions of every step, against PyTorch's own layer."""

import itertools
from fractions import Fraction

import pytest
import torch
from torch import nn

from mpunet.models.schedule import DepthStep, plan_depths

RANGE = list(itertools.product(range(2, 17), range(2, 9), range(1, 6), range(3)))


def refusal(n_thick, stages, halvings):
    """Why a plan is impossible; None if it is not."""
    if halvings > stages:
        return f"Expected 0 to {stages} depth halvings"
    if halvings and 2**halvings > 2 * (n_thick - 1):
        return f"{n_thick} slices cannot be halved {halvings} times"
    if halvings == stages:
        return rf"fewer depth halvings than stages \({stages}\), got {halvings}"
    return None


def plans():
    for n_thick, ratio, stages, halvings in RANGE:
        if refusal(n_thick, stages, halvings) is None:
            yield plan_depths(n_thick, ratio, stages=stages, halvings=halvings)


def steps():
    return sorted({step for plan in plans() for step in (*plan.up, *plan.shortcuts)}, key=repr)


def deconvolve(step, signal, kernel):
    """Apply the step's deconvolution, the networks' own layer, to ``signal`` (in_depth,)."""
    deconv = nn.ConvTranspose1d(
        1,
        1,
        step.kernel,
        step.stride,
        step.padding,
        output_padding=step.output_padding,
        bias=False,
        dtype=torch.float64,
    )
    deconv.weight.data[0, 0] = kernel
    with torch.no_grad():
        return deconv(signal.double()[None, None])[0, 0, :: step.keep][: step.out_depth]


class TestAllPlans:
    def test_there_is_a_plan_or_a_reason(self):
        for n_thick, ratio, stages, halvings in RANGE:
            reason = refusal(n_thick, stages, halvings)
            if reason is not None:
                with pytest.raises(ValueError, match=reason):
                    plan_depths(n_thick, ratio, stages=stages, halvings=halvings)

    def test_the_default_network_is_planned_for_all_that_the_issue_asks(self):
        assert all(refusal(n_thick, 5, 1) is None for n_thick in range(2, 17))

    def test_depths_lead_from_n_to_the_last_thin_slice(self):
        for plan in plans():
            n, r = plan.n_thick, plan.ratio
            depths = [plan.encoder_depths[-1], *(step.out_depth for step in plan.up)]
            assert depths[-1] == (n - 1) * r + 1
            assert [step.in_depth for step in plan.up] == depths[:-1]
            # Each shortcut comes from its encoder level and meets the decoder there.
            assert [step.in_depth for step in plan.shortcuts] == list(plan.encoder_depths[-2::-1])
            assert [step.out_depth for step in plan.shortcuts] == depths[1:]
            assert depths[1:] == sorted(depths[1:])

    def test_encoder_depths_are_those_of_its_convolutions(self):
        for plan in plans():
            depth, found = plan.n_thick, [plan.n_thick]
            for halve in plan.halved:
                # Conv3d's formula for kernel 3, padding 1.
                depth = (depth + 2 - 3) // (2 if halve else 1) + 1
                found.append(depth)
            assert tuple(found) == plan.encoder_depths

    def test_every_step_is_what_a_transposed_convolution_computes(self):
        for step in steps():
            # The formula of torch.nn.ConvTranspose3d, then every keep-th slice.
            computed = (
                (step.in_depth - 1) * step.stride
                - 2 * step.padding
                + step.kernel
                + step.output_padding
            )
            kept = -(-computed // step.keep)
            assert kept >= step.out_depth, step
            assert step.output_padding < step.stride or step.output_padding == 0, step
            assert (
                len(deconvolve(step, torch.ones(step.in_depth), torch.zeros(step.kernel)))
                == step.out_depth
            )

    def test_grids_start_together(self):
        """The slice spacing, in thin slices, multiplied over all steps ends at 1 on both paths."""
        for plan in plans():
            spacing = Fraction(plan.ratio * 2 ** sum(plan.halved))
            for step in plan.up:
                spacing *= Fraction(step.keep, step.stride)
            assert spacing == 1
            assert Fraction(plan.shortcuts[-1].stride, plan.shortcuts[-1].keep) == plan.ratio


class TestPositions:
    """Slice j of a step's input stands at slice j * stride / keep of its output."""

    def test_impulse_through_the_centre_tap(self):
        for step in steps():
            centre = torch.zeros(step.kernel)
            centre[step.kernel // 2] = 1
            out = deconvolve(step, torch.arange(1.0, step.in_depth + 1), centre)
            expected = torch.zeros(step.out_depth, dtype=torch.float64)
            for j in range(step.in_depth):
                position = Fraction(j * step.stride, step.keep)
                if position.denominator == 1 and position < step.out_depth:
                    expected[int(position)] = j + 1
            torch.testing.assert_close(out, expected, rtol=0, atol=0)

    def test_ramp_through_linear_interpolation(self):
        for step in steps():
            taps = torch.arange(step.kernel) - step.kernel // 2
            out = deconvolve(
                step, torch.arange(step.in_depth), (1 - taps.abs() / step.stride).clamp(min=0)
            )
            position = torch.arange(step.out_depth, dtype=torch.float64) * step.keep / step.stride
            # Beyond the last slice of the coarser grid, the finer grid cannot be interpolated.
            inside = position <= step.in_depth - 1
            assert inside.sum() >= 1
            torch.testing.assert_close(out[inside], position[inside])

    def test_kernels_are_odd_and_see_both_neighbours(self):
        for step in steps():
            assert step.kernel % 2 == 1
            assert step.kernel >= max(3, 2 * step.stride - 1)


class TestChosen:
    def test_paper(self):
        plan = plan_depths(8, 5)
        assert plan.halved == (False, False, False, False, True)
        assert plan.encoder_depths == (8, 8, 8, 8, 8, 4)
        assert plan.up == (
            DepthStep(4, 8, 2),
            DepthStep(8, 8, 1),
            DepthStep(8, 8, 1),
            DepthStep(8, 15, 2),
            DepthStep(15, 36, 5, 2),
        )
        assert plan.shortcuts == (
            *[DepthStep(8, 8, 1)] * 3,
            DepthStep(8, 15, 2),
            DepthStep(8, 36, 5),
        )

    def test_spacings_can_be_given(self):
        plan = plan_depths(8, 5, spacings=(5, 2.5, 2.5, 1.25, 1))
        assert [step.out_depth for step in plan.up] == [8, 15, 15, 29, 36]
        assert [(step.stride, step.keep) for step in plan.up] == [
            (2, 1),
            (2, 1),
            (1, 1),
            (2, 1),
            (5, 4),
        ]
        assert plan_depths(7, 6, stages=2, spacings=[2, 1]).up == (
            DepthStep(4, 19, 6),
            DepthStep(19, 37, 2),
        )
        # A third cannot be written as a float, but is meant.
        assert [
            (s.stride, s.keep)
            for s in plan_depths(4, 5, stages=3, halvings=0, spacings=[10 / 3, 5 / 3, 1]).up
        ] == [
            (3, 2),
            (2, 1),
            (5, 3),
        ]

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"n_thick": 1}, "at least 2, got n_thick=1"),
            ({"ratio": 1}, "at least 2, got n_thick=8, ratio=1"),
            ({"stages": 0, "halvings": 0}, "at least 1 stage .* got 0"),
            ({"halvings": 6}, "0 to 5 depth halvings .* got 6"),
            ({"halvings": -1}, "0 to 5 depth halvings .* got -1"),
            ({"n_thick": 2, "halvings": 2}, "2 slices cannot be halved 2 times"),
            ({"spacings": (5, 1)}, r"Expected 5 grid spacings .* got \[5.0, 1.0\]"),
            ({"spacings": (5, 5, 5, 2.5, 2)}, "end with 1"),
            ({"spacings": (5, 2, 3, 2, 1)}, "do not increase"),
            ({"spacings": (11, 5, 5, 5, 1)}, "start at 10 or less"),
            (
                {"spacings": (10, 5, 5, 5, 1)},
                "spacing of 5.0 thin slices cannot be resampled to the larger spacing of 10.0",
            ),
            (
                {"spacings": (5, 5, 5, 4.9, 1)},
                r"is 50/49: a deconvolution of stride 50 \(the limit is 16\)",
            ),
            ({"ratio": 17, "stages": 1, "halvings": 0}, "stride 17"),
        ],
    )
    def test_refused(self, options, reason):
        with pytest.raises(ValueError, match=reason):
            plan_depths(**{"n_thick": 8, "ratio": 5} | options)
