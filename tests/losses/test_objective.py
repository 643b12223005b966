"""The weighted sum of the losses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mpunet.losses import (
    FeatureMatching,
    Objective,
    contrast_aware_loss,
    mask_cross_entropy,
    region_l1,
)

SHAPE = (1, 1, 3, 8, 8)


class Output(NamedTuple):
    """As the models return it."""

    image: Tensor
    mask_logits: Tensor | None = None
    inner: Tensor | None = None
    outer: Tensor | None = None


@pytest.fixture
def thin() -> Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def lung(thin: Tensor) -> Tensor:
    return (thin > 0.3).float()


@pytest.fixture
def output() -> Output:
    logits, inner, outer = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    mask = torch.sigmoid(logits)
    return Output(mask * inner + (1 - mask) * outer, logits, inner, outer)


def test_literal() -> None:
    half = torch.full(SHAPE, 0.5)
    lung = torch.zeros(SHAPE)
    lung[:, :, 0] = 1  # a third of the crop
    output = Output(half, torch.zeros(SHAPE), half + 0.04, half + 0.3)
    losses = Objective(mask=2.0, inner=3.0, outer=5.0, image=7.0)(output, half, lung)
    expected = {"mask": math.log(2), "inner": 0.04 / 3, "outer": 0.3 * 2 / 3, "image": 0.0}
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-5), name
    total = 2 * expected["mask"] + 3 * expected["inner"] + 5 * expected["outer"]
    assert losses["loss"].item() == pytest.approx(total, rel=1e-5)
    assert set(losses) == {"loss", *expected}


def test_each_stream_has_its_own_region(output: Output, thin: Tensor, lung: Tensor) -> None:
    losses = Objective(alpha=0.3, gamma=0.7, beta=2.0, sigma=0.5, image=0.1)(
        output, thin, lung.bool()
    )
    assert output.mask_logits is not None
    assert output.inner is not None
    assert output.outer is not None
    parts = {
        "mask": mask_cross_entropy(output.mask_logits, lung),
        "inner": contrast_aware_loss(
            output.inner, thin, lung, alpha=0.3, gamma=0.7, beta=2.0, sigma=0.5
        ),
        "outer": region_l1(output.outer, thin, 1 - lung),
        "image": region_l1(output.image, thin),
    }
    torch.testing.assert_close({name: losses[name] for name in parts}, parts)
    torch.testing.assert_close(
        losses["loss"], parts["mask"] + parts["inner"] + parts["outer"] + 0.1 * parts["image"]
    )


def test_l1_in_place_of_the_contrast_aware_loss(output: Output, thin: Tensor, lung: Tensor) -> None:
    assert output.inner is not None
    losses = Objective(inner_loss="l1")(output, thin, lung)
    torch.testing.assert_close(losses["inner"], region_l1(output.inner, thin, lung))


def test_a_single_stream_is_the_image(output: Output, thin: Tensor, lung: Tensor) -> None:
    assert output.inner is not None
    assert output.outer is not None
    losses = Objective()(Output(output.inner, inner=output.inner), thin, lung)
    torch.testing.assert_close(
        losses, dict.fromkeys(("loss", "inner"), contrast_aware_loss(output.inner, thin))
    )
    losses = Objective()(Output(output.outer, outer=output.outer), thin, lung)
    torch.testing.assert_close(
        losses, dict.fromkeys(("loss", "outer"), region_l1(output.outer, thin))
    )


def test_a_weight_of_zero_leaves_the_part_out(output: Output, thin: Tensor, lung: Tensor) -> None:
    assert set(Objective(mask=0.0, inner=0.0)(output, thin, lung)) == {"loss", "outer"}


def test_an_empty_lung_is_all_outer(output: Output, thin: Tensor) -> None:
    assert output.outer is not None
    losses = Objective()(output, thin, torch.zeros(SHAPE))
    assert losses["inner"].item() == 0
    torch.testing.assert_close(losses["outer"], region_l1(output.outer, thin))


def test_gradcheck(thin: Tensor, lung: Tensor) -> None:
    objective = Objective(image=0.5)
    streams = torch.rand(
        3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    ).unbind()

    def loss(logits: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
        mask = torch.sigmoid(logits)
        output = Output(mask * inner + (1 - mask) * outer, logits, inner, outer)
        return objective.forward(output, thin.double(), lung)["loss"]

    assert torch.autograd.gradcheck(loss, [stream.requires_grad_() for stream in streams])


def test_feature_matching_on_the_image_and_out_of_checkpoints(
    output: Output, thin: Tensor, lung: Tensor, tmp_path: Path
) -> None:
    state = {
        "0.weight": torch.randn(64, 3, 3, 3, generator=torch.Generator().manual_seed(3)),
        "0.bias": torch.zeros(64),
    }
    torch.save(state, tmp_path / "vgg16.pth")
    path = str(tmp_path / "vgg16.pth")
    objective = Objective(
        feature=0.25, feature_layers=["relu1_1"], feature_weights=path, feature_chunk=2
    )
    losses = objective(output, thin, lung)
    torch.testing.assert_close(
        losses["feature"], FeatureMatching(["relu1_1"], path)(output.image, thin)
    )
    without = Objective()(output, thin, lung)
    torch.testing.assert_close(losses["loss"], without["loss"] + 0.25 * losses["feature"])

    training = nn.ModuleDict({"network": nn.Conv3d(1, 1, 1), "objective": objective})
    assert list(training.state_dict()) == ["network.weight", "network.bias"]
    training.load_state_dict(training.state_dict(), strict=True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_not_hidden(
    output: Output, thin: Tensor, lung: Tensor, value: float
) -> None:
    assert output.inner is not None
    output.inner[(0, 0, *lung[0, 0].nonzero()[0].tolist())] = value
    losses = Objective()(output, thin, lung)
    assert not losses["inner"].isfinite()
    assert not losses["loss"].isfinite()
    assert losses["outer"].isfinite()


@pytest.mark.parametrize(
    "weights",
    [
        dict.fromkeys(("mask", "inner", "outer"), 0.0),
        {"mask": -1.0},
        {"image": math.nan},
        {"outer": math.inf},
    ],
)
def test_wrong_weights(weights: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="weights of losses of at least 0, and one above 0, got"):
        Objective(**weights)


def test_wrong_inner_loss() -> None:
    with pytest.raises(ValueError, match="'contrast_aware' or 'l1', got 'l2'"):
        Objective(inner_loss="l2")  # type: ignore[arg-type]


def test_no_part_for_this_network(thin: Tensor, lung: Tensor) -> None:
    with pytest.raises(
        ValueError,
        match=r"only mask, inner, outer have a weight above 0.*weight of image, squared or feature",
    ):
        Objective()(Output(thin), thin, lung)


def test_vgg_is_loaded_by_prepare_and_not_by_construction(tmp_path: Path) -> None:
    objective = Objective(feature=1.0, feature_weights=str(tmp_path / "absent.pth"))
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        objective.prepare()
    Objective().prepare()  # nothing to load
