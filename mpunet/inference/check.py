"""``predict --check``: the consistency of each volume, measured while it is written, against that of the checkpoint's validation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

import torch.distributed

from mpunet.inference.manifest import NAME, ConsistencyRecord
from mpunet.io.scan_file import ScanFile
from mpunet.metrics.consistency import ConsistencyMeter, ConsistencyRange
from mpunet.slices.simulate import Profile

__all__ = ["CheckSummary", "ConsistencyCheck", "data_profile", "gather", "summary_lines"]

T = TypeVar("T")

_SHOWN = 20  # volumes in the summary; the manifest has them all


class CheckSummary(NamedTuple):
    """What one process has to say: volumes out of range as (file, MAE, limit), and how many there was no range for."""

    out_of_range: list[tuple[str, float, float]]
    not_judged: int


class ConsistencyCheck:
    """Measures volumes on their way to the disk; the scans are read a second time, the results are not.

    Args:
        known: range over the cases of the checkpoint's validation; without one, volumes are measured and not judged.
        profile: slice profile to thicken by, where there is no range to tell.
        fwhm: its full width at half maximum in thick spacings.
    """

    def __init__(
        self,
        known: ConsistencyRange | None,
        *,
        profile: Profile = "gaussian",
        fwhm: float | None = None,
    ) -> None:
        self.known = known
        self._options: dict[str, Any] = {"profile": profile, "fwhm": fwhm}
        if known is not None:
            self._options = {"profile": known.profile, "fwhm": known.fwhm}
        self.summary = CheckSummary([], 0)

    def meter(self, scan: ScanFile, ratio: float, *, last_first: bool) -> ConsistencyMeter:
        """What is to watch the thin slices of a scan, which come in the order that ``last_first`` tells."""
        thick = scan if scan.last_first == last_first else reversed(list(scan))
        return ConsistencyMeter(thick, scan.shape, ratio, last_first=last_first, **self._options)

    def judge(self, file: str, meter: ConsistencyMeter) -> ConsistencyRecord:
        """What the manifest says of a file that was written."""
        measured = meter.result()
        limit = None if self.known is None else self.known.limit
        out_of_range = None if limit is None else measured.mae > limit
        if limit is None:
            self.summary = self.summary._replace(not_judged=self.summary.not_judged + 1)
        elif out_of_range:
            self.summary.out_of_range.append((file, measured.mae, limit))
        mae, rmse, bias = (round(value, 3) for value in measured[:3])
        return ConsistencyRecord(
            mae=mae,
            rmse=rmse,
            bias=bias,
            limit=None if limit is None else round(limit, 3),
            out_of_range=out_of_range,
        )


def summary_lines(summaries: Iterable[CheckSummary]) -> list[str]:
    """Lines for the user, from all processes; none where all is well."""
    summaries = list(summaries)
    found = sorted(entry for summary in summaries for entry in summary.out_of_range)
    lines = []
    if found:
        limit = found[0][2]
        lines.append(
            f"Warning: {len(found)} volumes, thickened again, differ from their scans by more than {limit:.1f} HU, "
            "1.5 times the most that validation saw (mean absolute difference):"
        )
        lines += [f"  {file}: {mae:.1f} HU" for file, mae, _ in found[:_SHOWN]]
        if len(found) > _SHOWN:
            lines.append(f"  ... and {len(found) - _SHOWN} more, see {NAME}")
    if any(summary.not_judged for summary in summaries):
        lines.append(
            f"The checkpoint knows no range of consistency from its validation: {NAME} has the numbers, none was judged."
        )
    return lines


def data_profile(trainer: Any) -> dict[str, Any]:
    """Slice profile and its width (``profile``, ``fwhm``) that a trainer's data module validates with; the default where it has none."""
    profiles = getattr(getattr(trainer, "datamodule", None), "profiles", None)
    profile, fwhm = ("gaussian", None) if profiles is None else profiles.fixed
    return {"profile": profile, "fwhm": fwhm}


def gather(value: T) -> list[T]:
    """The values of all ranks, on each of them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values = [value] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
