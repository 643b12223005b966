"""The consistency check of ``predict --check``.

Each result is compared with its scan while it is written. The difference is judged by the range
that the checkpoint recorded during its validation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

import torch.distributed

from mpunet.inference.manifest import NAME, ConsistencyRecord
from mpunet.io.scan_file import ScanFile
from mpunet.metrics.consistency import ConsistencyMeter, ConsistencyRange
from mpunet.slices.sampled_profile import SampledProfile
from mpunet.slices.simulate import Profile

__all__ = ["CheckSummary", "ConsistencyCheck", "data_profile", "gather", "summary_lines"]

T = TypeVar("T")

_SHOWN = 20  # most volumes to list in the summary; the manifest lists all


class CheckSummary(NamedTuple):
    """Results of the check in one process.

    Attributes:
        out_of_range: (file, MAE in HU, limit in HU) of each volume above the limit.
        not_judged: number of volumes for which the checkpoint has no range.
    """

    out_of_range: list[tuple[str, float, float]]
    not_judged: int


class ConsistencyCheck:
    """Measure the consistency of volumes while they are written.

    Each scan is read a second time; results are not read back.

    Args:
        known: consistency range of the checkpoint's validation cases. If None, volumes are measured
            but not judged.
        profile: slice profile used to thicken the results; ignored if ``known`` is given.
        fwhm: full width at half maximum of the profile, in thick slice spacings; ignored if
            ``known`` is given.
        sampled: slice profile of the scanner, used instead of all these.
    """

    def __init__(
        self,
        known: ConsistencyRange | None,
        *,
        profile: Profile = "gaussian",
        fwhm: float | None = None,
        sampled: SampledProfile | None = None,
    ) -> None:
        self.known = known
        self._options: dict[str, Any] = {"profile": profile, "fwhm": fwhm}
        if known is not None:
            self._options = {"profile": known.profile, "fwhm": known.fwhm}
        if sampled is not None:
            self._options = {"profile": sampled}
        self.summary = CheckSummary([], 0)

    def meter(self, scan: ScanFile, ratio: float, *, last_first: bool) -> ConsistencyMeter:
        """Return a meter for the thin slices of a scan.

        Args:
            scan: the thick scan.
            ratio: thick spacing / thin spacing.
            last_first: whether the thin slices arrive in reverse order.
        """
        thick = scan if scan.last_first == last_first else reversed(list(scan))
        return ConsistencyMeter(
            thick,
            scan.shape,
            ratio,
            spacing=float(scan.spacing[0]),
            last_first=last_first,
            **self._options,
        )

    def judge(self, file: str, meter: ConsistencyMeter) -> ConsistencyRecord:
        """Add a finished volume to the summary and return its record for the manifest."""
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
    """Return the messages for the user from the summaries of all processes; none if all is well."""
    summaries = list(summaries)
    found = sorted(entry for summary in summaries for entry in summary.out_of_range)
    lines = []
    if found:
        limit = found[0][2]
        lines.append(
            f"Warning: {len(found)} volumes, thickened again, differ from their scans by more than "
            f"{limit:.1f} HU, 1.5 times the largest difference in validation (mean absolute "
            "difference):"
        )
        lines += [f"  {file}: {mae:.1f} HU" for file, mae, _ in found[:_SHOWN]]
        if len(found) > _SHOWN:
            lines.append(f"  ... and {len(found) - _SHOWN} more, see {NAME}")
    if any(summary.not_judged for summary in summaries):
        lines.append(
            "The checkpoint has no consistency range from a validation: the differences are in "
            f"{NAME}, but they were not judged."
        )
    return lines


def data_profile(trainer: Any) -> dict[str, Any]:
    """Return the slice profile (``profile``, ``fwhm``) that the data module uses in validation.

    A data module without profiles gives the default, a Gaussian.
    """
    profiles = getattr(getattr(trainer, "datamodule", None), "profiles", None)
    profile, fwhm = ("gaussian", None) if profiles is None else profiles.fixed
    return {"profile": profile, "fwhm": fwhm}


def gather(value: T) -> list[T]:
    """Collect the values of all ranks on every rank."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values = [value] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
