"""The settings that determine the result of a row, and the check that they are still the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpunet.config import same_class

__all__ = ["OF_TEST_CASES", "check_same", "flat", "merged_net"]

# Arguments of the data module that concern test cases, but for their source.
OF_TEST_CASES = (
    "profile", "fwhm", "slice_axis", "intensity", "lung_masks", "check_data",
    "num_workers", "cache_dir", "cache_limit",
)  # fmt: skip
# They change no result. Those of "inference" matter only to measuring, which has its own settings.
_WITHOUT_EFFECT = (
    "data.check_data", "data.num_workers", "data.cache_", "inference.", "checkpoint", "output",
)  # fmt: skip


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings on one level, without those that change no result.

    >>> flat({"model": {"lr": 1, "net": {"widths": [2]}}, "data": {"num_workers": 2}})
    {'model.lr': 1, 'model.net.widths': [2]}
    """
    out: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            out |= flat(value, f"{name}.")
        elif not name.startswith(_WITHOUT_EFFECT):
            out[name] = value
    return out


def check_same(was: Mapping[str, Any], now: Mapping[str, Any], *, what: str, way_out: str) -> None:
    """Check that settings have not changed; one that is None is the same as one that is missing.

    Args:
        was: flat settings of an earlier run.
        now: flat settings of this run.
        what: what was done with the earlier settings, for the message.
        way_out: what to do to use the new ones, for the message.

    Raises:
        ValueError: with every setting that has changed.
    """
    changed = [key for key in {**was, **now} if was.get(key) != now.get(key)]
    if changed:
        text = ", ".join(f"{key} was {was.get(key)!r}, is {now.get(key)!r}" for key in changed)
        raise ValueError(f"{what} with other settings ({text}): {way_out}")


def merged_net(
    base: str | Mapping[str, Any] | None, row: str | Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the network of a row as ``mpunet fit`` does: arguments of the same class are kept.

    >>> merged_net({"class_path": "a.B", "init_args": {"x": 1}}, {"init_args": {"y": 2}})
    {'class_path': 'a.B', 'init_args': {'x': 1, 'y': 2}}
    >>> merged_net({"class_path": "a.B", "init_args": {"x": 1}}, {"class_path": "a.C"})
    {'class_path': 'a.C'}
    """
    nets: list[dict[str, Any]] = [
        {"class_path": net} if isinstance(net, str) else {**(net or {})} for net in (base, row)
    ]
    first, own = nets
    if not same_class(own.get("class_path", first.get("class_path")), first.get("class_path")):
        return own
    arguments = {**(first.get("init_args") or {}), **(own.get("init_args") or {})}
    return {**first, **own, "init_args": arguments}
