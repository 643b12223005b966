"""Write an HTML page that shows volumes side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mpunet.io.volume import without_nifti_suffix
from mpunet.report.page import PageCase, Start, viewer_html, write_page
from mpunet.report.viewer import encode_case

__all__ = ["view"]


def view(
    volumes: Sequence[Path],
    *,
    output: Path = Path("view.html"),
    names: str | None = None,
    reference: str | None = None,
    error_map: Path | None = None,
    slices: int | None = None,
    weights: bool = False,
) -> None:
    """Write an HTML page that shows volumes side by side.

    The page shows coronal, sagittal and axial slices in CT windows, error maps, and weights of the
    contrast-aware loss. Volumes may differ in grid and orientation: they are aligned by position in
    mm. The page works offline.

    Args:
        volumes: NIfTI files.
        output: HTML file; an existing file is replaced.
        names: names of the volumes, separated by commas; by default their file names.
        reference: name of the reference volume. Volumes on the same grid are compared with it in
            error maps and weight maps.
        error_map: expected errors of the first volume, as `mpunet predict --error_map` writes them,
            to be painted over it; if there is a reference, of the first volume beside it.
        slices: number of slices in each plane; by default as many as fit in a page of 40 MB.
        weights: start with the weights of the contrast-aware loss (Eq. 2), with sliders for alpha,
            gamma and beta.

    Raises:
        ValueError: if a file cannot be read, or names and reference do not match the volumes.
    """
    titles = _file_names(volumes) if names is None else [name.strip() for name in names.split(",")]
    if len(titles) != len(volumes) or len(set(titles)) < len(titles) or not all(titles):
        raise ValueError(
            f"Expected {len(volumes)} distinct names, one for each volume, "
            f"got {', '.join(titles)}; set them with --names a,b,..."
        )
    if reference is not None and reference not in titles:
        raise ValueError(f"Expected a reference among {', '.join(titles)}, got {reference}.")
    title = " · ".join(titles)
    estimated = next((name for name in titles if name != reference), titles[0])
    case = encode_case(
        title,
        dict(zip(titles, volumes, strict=True)),
        reference=reference,
        error_maps=None if error_map is None else {estimated: error_map},
        slices=slices,
    )
    compared = [v["name"] for v in case["volumes"] if v["compared"] and v["name"] != reference]
    if weights and not compared:
        raise ValueError(
            "Weights compare a volume with a reference voxel by voxel: give --reference, "
            "and a volume on its grid."
        )
    start: Start = "weights" if weights else "grey" if error_map is None else "expected"
    body = viewer_html(start=start)
    write_page(output, title, body, [PageCase(title, case)], kind="whole-page")


def _file_names(paths: Sequence[Path]) -> list[str]:
    """File names without suffix; with the name of their folder if two are equal."""
    stems = [without_nifti_suffix(path.name) for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    return [f"{path.resolve().parent.name}/{stem}" for path, stem in zip(paths, stems, strict=True)]
