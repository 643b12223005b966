"""Headers of DICOM files: of each slice what is needed to sort it into a series."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["SliceHeader", "is_dicom", "pydicom", "read_headers"]

Vector = tuple[float, ...]

TAGS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "ImageType",
    "AcquisitionNumber", "Rows", "Columns", "PixelSpacing",
    "ImageOrientationPatient", "ImagePositionPatient", "SliceThickness",
    "RescaleSlope", "RescaleIntercept", "ConvolutionKernel",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip


class SliceHeader(NamedTuple):
    """One slice of a DICOM series: a file, or a frame of one.

    Attributes:
        path: the file.
        frame: index of the frame in a multi-frame file, else None.
        series: SeriesInstanceUID.
        instance: SOPInstanceUID.
        sop_class: SOPClassUID.
        modality: such as "CT".
        image_type: values of ImageType, upper case.
        acquisition: AcquisitionNumber, or None.
        kernel: ConvolutionKernel.
        size: rows and columns.
        pixel_spacing: distance of rows and of columns in mm; empty if missing.
        orientation: ImageOrientationPatient, six cosines (LPS); empty if missing.
        position: ImagePositionPatient in mm (LPS); empty if missing.
        thickness: SliceThickness in mm, or None.
        slope: RescaleSlope; 1 if missing.
        intercept: RescaleIntercept; 0 if missing.
    """

    path: Path
    frame: int | None
    series: str
    instance: str
    sop_class: str
    modality: str
    image_type: tuple[str, ...]
    acquisition: int | None
    kernel: str
    size: tuple[int, int]
    pixel_spacing: Vector
    orientation: Vector
    position: Vector
    thickness: float | None
    slope: float
    intercept: float


def pydicom() -> Any:
    """Import pydicom.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        return import_module("pydicom")
    except ImportError as error:
        raise ValueError(
            f"DICOM files need the package pydicom ({error}): pip install 'mpunet[dicom]'."
        ) from error


def is_dicom(path: Path) -> bool:
    """Return whether a file has the prefix of DICOM files, "DICM" after 128 bytes."""
    try:
        if not path.is_file():  # opening a pipe would wait forever
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_headers(
    paths: Sequence[Path], *, workers: int = 8
) -> Iterator[tuple[Path, list[SliceHeader] | ValueError]]:
    """Yield for each file its slices, or the reason why its header cannot be read.

    Voxels are not read. A file with several frames has a slice for each.
    """
    pydicom()
    with ThreadPoolExecutor(workers) as pool:
        yield from zip(paths, pool.map(_read, paths), strict=True)


def _read(path: Path) -> list[SliceHeader] | ValueError:
    try:
        dataset = pydicom().dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS))
        frames = dataset.get("PerFrameFunctionalGroupsSequence")
        if not frames:
            return [_header(path, None, dataset, {})]
        shared = _flat((dataset.get("SharedFunctionalGroupsSequence") or [None])[0])
        return [
            _header(path, index, dataset, {**shared, **_flat(frame)})
            for index, frame in enumerate(frames)
        ]
    except Exception as error:  # a damaged header can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        return ValueError(f"{path.name}: not a readable DICOM file: {reason}")


def _flat(group: Any) -> dict[str, Any]:
    """Return the elements of the macros of a functional group by keyword."""
    found: dict[str, Any] = {}
    for macro in () if group is None else group:
        for item in macro.value if macro.VR == "SQ" else ():
            found.update({element.keyword: element.value for element in item})
    return found


def _header(path: Path, frame: int | None, dataset: Any, macros: dict[str, Any]) -> SliceHeader:
    def value(keyword: str, default: Any = None) -> Any:
        found = macros.get(keyword, dataset.get(keyword))
        return default if found is None or found == "" else found

    def vector(keyword: str) -> Vector:
        return tuple(float(number) for number in value(keyword, ()))

    number, thickness = value("AcquisitionNumber"), value("SliceThickness")
    kernel = value("ConvolutionKernel", "")
    kind = value("FrameType", value("ImageType", ()))
    return SliceHeader(
        path=path,
        frame=frame,
        series=str(value("SeriesInstanceUID", "")),
        instance=str(value("SOPInstanceUID", "")),
        sop_class=str(value("SOPClassUID", "")),
        modality=str(value("Modality", "")),
        image_type=tuple(str(word).upper() for word in ([kind] if isinstance(kind, str) else kind)),
        acquisition=None if number is None else int(number),
        kernel=kernel if isinstance(kernel, str) else "\\".join(map(str, kernel)),
        size=(int(value("Rows", 0)), int(value("Columns", 0))),
        pixel_spacing=vector("PixelSpacing"),
        orientation=vector("ImageOrientationPatient"),
        position=vector("ImagePositionPatient"),
        thickness=None if thickness is None else float(thickness),
        slope=float(value("RescaleSlope", 1)),
        intercept=float(value("RescaleIntercept", 0)),
    )
