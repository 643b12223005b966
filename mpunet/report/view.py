"""Volumes side by side in one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mpunet.io.volume import nifti_suffix
from mpunet.report.page import PageCase, viewer_html, write_page
from mpunet.report.viewer import encode_case

__all__ = ["view"]


def view(
    volumes: Sequence[Path],
    *,
    output: Path = Path("view.html"),
    names: str | None = None,
    reference: str | None = None,
    slices: int | None = None,
    weights: bool = False,
) -> None:
    """Volumes side by side in one HTML page: coronal, sagittal and axial slices, windows, error maps, contrast-aware weights.

    Volumes may be on grids of their own, in any orientation: they are placed by mm. The page needs no network.

    Args:
        volumes: NIfTI files.
        output: the page; one of this name is replaced.
        names: what to call the volumes, separated by commas; their file names by default.
        reference: name of the volume that others on its grid are compared with, for error maps and weights.
        slices: in each plane; by default as many as keep the page at 40 MB.
        weights: show at first the weights of the contrast-aware loss, Eq. 2, with sliders for alpha, gamma and beta.

    Raises:
        ValueError: if a file cannot be read or names do not fit.
    """
    titles = _file_names(volumes) if names is None else [name.strip() for name in names.split(",")]
    if len(titles) != len(volumes) or len(set(titles)) < len(titles) or not all(titles):
        raise ValueError(
            f"Expected {len(volumes)} distinct names, one for each volume, got {', '.join(titles)}; --names a,b,... gives them."
        )
    if reference is not None and reference not in titles:
        raise ValueError(f"Expected a reference among {', '.join(titles)}, got {reference}.")
    title = " · ".join(titles)
    case = encode_case(
        title, dict(zip(titles, volumes, strict=True)), reference=reference, slices=slices
    )
    compared = [v["name"] for v in case["volumes"] if v["compared"] and v["name"] != reference]
    if weights and not compared:
        raise ValueError(
            "Weights compare a volume with a reference voxel by voxel: give --reference, and a volume on its grid."
        )
    body = viewer_html(start="weights" if weights else "grey")
    write_page(output, title, body, [PageCase(title, case)], kind="whole-page")


def _file_names(paths: Sequence[Path]) -> list[str]:
    """File names without suffix; with their folder's where two are equal."""
    stems = [path.name.removesuffix(nifti_suffix(path) or "") for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    return [f"{path.resolve().parent.name}/{stem}" for path, stem in zip(paths, stems, strict=True)]
