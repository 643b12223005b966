"""Self-contained HTML pages: one file that opens by double click, without network, and shows cases in the viewer."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Literal, NamedTuple

from mpunet import __version__
from mpunet.io.whole_file import whole_file
from mpunet.report.hu_codec import HU_STEPS
from mpunet.report.viewer import ShownCase

__all__ = ["PageCase", "viewer_html", "write_page"]


class PageCase(NamedTuple):
    """A case and what the page's list of cases calls it."""

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
    """Write a page, whole or not at all; a page of this name is replaced.

    Args:
        path: the file; its folder is made if need be.
        title: plain text.
        body: HTML, with :func:`viewer_html` where the viewer goes.
        cases: for the viewer; asked for one by one while the page is written, so that one is in memory at a time.
        kind: whether the viewer fills the window or is part of a report.
        note: HTML for the footer.
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
            # "<" would let a name end the script.
            data = json.dumps(case, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
            name = html.escape(case["name"])
            file.write(
                f'<script type="application/json" class="case" data-name="{name}" data-label="{html.escape(label)}">'
            )
            file.write(f"{data}</script>\n")
        file.write(after)


def viewer_html(*, start: Literal["grey", "weights"] = "grey") -> str:
    """The viewer's place in a page; ``start`` is what it maps at first."""
    parts = [
        f"{low:g} to {high - step:g} HU by at most {step / 2:g}" for low, high, step in HU_STEPS
    ]
    rounding = (
        ", ".join(parts).replace("-", "−")
        + ", values beyond as the ends; volumes that are not HU to 256 levels"
    )
    return Template(_asset("viewer.html")).substitute(rounding=rounding, start=start)


def _asset(name: str) -> str:
    return files("mpunet.report").joinpath("assets", name).read_text(encoding="utf-8")
