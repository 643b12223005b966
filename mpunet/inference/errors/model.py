"""The error model: from the features of a voxel to its expected absolute error in HU.

Small perceptrons give a raw estimate, and a monotone table calibrates it. All are fitted to scans
whose thin slices are known (:mod:`mpunet.inference.errors.fit`) and are stored in the record of a
weights file, as plain numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpunet.inference.errors.features import NAMES

__all__ = ["ErrorModel"]

MEMBERS = 3  # perceptrons; their mean is off by less on new patients than each of them
HIDDEN = 16
BOUND = 6.0  # features are clipped to this many standard deviations of the calibration scans
LARGEST = 2000.0  # HU


class ErrorModel(nn.Module):
    """Expected absolute error of voxels.

    Args:
        members: number of perceptrons, which are averaged.

    Attributes:
        cases: names of the scans that the model was fitted and calibrated on.
        factors: for each of these scans, the factor by which its estimates, made by a model that
            was not fitted to it, must be multiplied to cover 90 % of its errors.
        strange_limit: share of strange voxels (:meth:`strange`) above which a scan is unlike the
            calibration scans.

    >>> model = ErrorModel()
    >>> model(torch.zeros(len(NAMES), 4, 5)).shape
    torch.Size([4, 5])
    """

    center: Tensor
    scale: Tensor
    whiten: Tensor
    raw: Tensor
    calibrated: Tensor

    def __init__(self, members: int = MEMBERS) -> None:
        super().__init__()
        size = len(NAMES)
        self.members = nn.ModuleList(
            nn.Sequential(
                nn.Linear(size, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU(),
                nn.Linear(HIDDEN, 1),
            )
            for _ in range(members)
        )  # fmt: skip
        self.register_buffer("center", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("whiten", torch.eye(size))
        self.register_buffer("raw", torch.tensor([0.0, LARGEST]))
        self.register_buffer("calibrated", torch.tensor([0.0, LARGEST]))
        self.cases: list[str] = []
        self.factors: list[float] = []
        self.strange_limit = 1.0

    def standardized(self, features: Tensor) -> Tensor:
        """Return features (..., len(NAMES)) in standard deviations of the calibration scans.

        Features that are not known count as the mean of these scans.
        """
        return self._moved(features).clamp(-BOUND, BOUND)

    def _moved(self, features: Tensor) -> Tensor:
        moved = (features - self.center) / self.scale
        return torch.where(moved.isnan(), 0.0, moved)

    def log_error(self, features: Tensor) -> Tensor:
        """Return the logarithm of the raw estimate in HU, (...), of features (..., len(NAMES)).

        It is the mean over the members.
        """
        return self.log_errors(features).mean(0)

    def log_errors(self, features: Tensor) -> Tensor:
        """Return :meth:`log_error` of each member, (members, ...)."""
        inputs = self.standardized(features)
        found = torch.stack([member(inputs)[..., 0] for member in self.members])
        return found.clamp(-2, 7.6)  # 0.1 to 2000 HU

    def calibrate(self, raw: Tensor) -> Tensor:
        """Return calibrated estimates in HU: the table, interpolated."""
        place = torch.searchsorted(self.raw, raw.contiguous()).clamp(1, len(self.raw) - 1)
        low, high = self.raw[place - 1], self.raw[place]
        share = ((raw - low) / (high - low)).clamp(0, 1)
        return torch.lerp(self.calibrated[place - 1], self.calibrated[place], share)

    def estimate(self, features: Tensor) -> Tensor:
        """Return calibrated estimates in HU, (...), of features (..., len(NAMES))."""
        return self.calibrate(self.log_error(features).exp())

    @torch.inference_mode()
    def forward(self, features: Tensor) -> Tensor:
        """Estimate the absolute error, (H, W) in HU, from features (len(NAMES), H, W)."""
        return self.estimate(features.movedim(0, -1)).clone()

    @torch.inference_mode()
    def strange(self, features: Tensor) -> Tensor:
        """Return which of some voxels are unlike the calibration scans, (...), boolean.

        They are those whose squared Mahalanobis distance, for features (..., len(NAMES)), is above
        the 99th percentile of the calibration scans, to which ``whiten`` is scaled.
        """
        return F.linear(self._moved(features), self.whiten).square().sum(-1) > 1

    def to_record(self) -> dict[str, Any]:
        """Return the model as plain values for the record of a weights file."""
        return {
            "features": list(NAMES),
            "state": {name: _rounded(tensor) for name, tensor in sorted(self.state_dict().items())},
            "cases": self.cases,
            "factors": [round(factor, 3) for factor in self.factors],
            "strange_limit": round(self.strange_limit, 4),
        }

    @classmethod
    def from_record(cls, record: dict[str, Any] | None) -> ErrorModel:
        """Create the model of a record.

        Raises:
            ValueError: if there is no record, or it is for other features.
        """
        if record is None:
            raise ValueError(
                "The network has no error model, which estimates how far off each voxel is; "
                "examples/calibrate.py adds one to a weights file (docs/error_map.md)."
            )
        if record.get("features") != list(NAMES):
            raise ValueError(
                "The error model of the weights file was fitted by another version of mpunet; fit "
                "it again (docs/error_map.md)."
            )
        # Earlier versions had one member, "layers".
        state = {
            name.replace("layers.", "members.0."): torch.tensor(values)
            for name, values in record["state"].items()
        }
        model = cls(len({name.split(".")[1] for name in state if name.startswith("members.")}))
        model.raw, model.calibrated = (torch.empty_like(state[n]) for n in ("raw", "calibrated"))
        model.load_state_dict(state)
        model.cases, model.factors = list(record["cases"]), list(record["factors"])
        model.strange_limit = float(record["strange_limit"])
        return model.eval()


def _rounded(tensor: Tensor) -> Any:
    """Return a tensor as nested lists of numbers with six digits."""
    values = tensor.tolist()

    def shorter(value: Any) -> Any:
        return [shorter(v) for v in value] if isinstance(value, list) else float(f"{value:.6g}")

    return shorter(values)
