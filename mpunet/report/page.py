"""Write self-contained HTML pages that show cases in the viewer.

A page is a single file that works offline and without a server.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Literal, NamedTuple

from mpunet import __version__
from mpunet.io.partial_file import whole_file
from mpunet.report.hu_codec import HU_STEPS
from mpunet.report.shown_case import ShownCase

__all__ = ["PageCase", "Start", "viewer_html", "write_page"]

Start = Literal["grey", "weights", "expected"]


class PageCase(NamedTuple):
    """A case and its label in the page's list of cases."""

    label: str
    case: ShownCase


def write_page(
    path: Path,
    title: str,
    body: str,
    cases: Iterable[PageCase],
    *,
    kind: Literal["whole-page", "report"],
    note: str = "",
) -> None:
    """Write a page atomically; an existing file is replaced when the page is complete.

    Args:
        path: output file; its folder is created if it is missing.
        title: title of the page as plain text.
        body: HTML that contains :func:`viewer_html` at the position of the viewer.
        cases: cases of the viewer. They are iterated over while the page is written, so that an
            iterator needs to keep only one case in memory.
        kind: "whole-page" if the viewer fills the window, "report" if it is part of a report.
        note: HTML at the start of the footer.
    """
    report = kind == "report"
    text = Template(_asset("page.html")).substitute(
        title=html.escape(title),
        style=_asset("viewer.css") + (_asset("report.css") if report else ""),
        kind=kind,
        body=body,
        footer=f"{note}mpunet {__version__}. Research software, not a medical device.",
        cases="<!-- cases -->",
        script=_asset("slices.js") + _asset("viewer.js") + (_asset("report.js") if report else ""),
    )
    before, after = text.rsplit("<!-- cases -->", 1)
    with whole_file(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        file.write(before)
        for label, case in cases:
            # Escape "<": a name that contains "</script>" would end the script.
            data = json.dumps(case, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
            name = html.escape(case["name"])
            file.write(
                f'<script type="application/json" class="case" data-name="{name}" '
                f'data-label="{html.escape(label)}">'
            )
            file.write(f"{data}</script>\n")
        file.write(after)


def viewer_html(*, start: Start = "grey") -> str:
    """Return the HTML of the viewer.

    ``start`` selects what it shows first: images, weights or expected errors.
    """
    parts = [
        f"{low:g} to {high - step:g} HU by at most {step / 2:g}" for low, high, step in HU_STEPS
    ]
    rounding = (
        ", ".join(parts).replace("-", "−")
        + ", values outside this range to its ends; volumes that are not in HU to 256 levels"
    )
    return Template(_asset("viewer.html")).substitute(rounding=rounding, start=start)


def _asset(name: str) -> str:
    return files("mpunet.report").joinpath("assets", name).read_text(encoding="utf-8")
