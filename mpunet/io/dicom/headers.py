"""Headers of DICOM files: of each slice what is needed to sort it into a series."""

from __future__ import annotations

import re
import stat
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["SliceHeader", "is_dicom", "one_line", "pydicom", "read_headers"]

Vector = tuple[float, ...]

TAGS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "ImageType",
    "PatientID", "AcquisitionNumber", "Rows", "Columns", "NumberOfFrames", "PixelSpacing",
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
        patient: PatientID, to compare; must not appear in messages.
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
    patient: str
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
    """Import pydicom. Its warnings of damaged elements, which it quotes, are turned off.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        module = import_module("pydicom")
    except ImportError as error:
        raise ValueError(
            f"DICOM files need the package pydicom ({error}): pip install 'mpunet[dicom]'."
        ) from error
    warnings.filterwarnings("ignore", module=r"pydicom\.")  # in all threads, as slices are read
    return module


def is_dicom(path: Path) -> bool | None:
    """Return whether a file has the prefix of DICOM files, "DICM" after 128 bytes.

    None if nobody can tell, as the file is empty or cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait forever
            return False
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return None
    return start[128:] == b"DICM" if start else None


def read_headers(
    paths: Sequence[Path], *, workers: int = 4
) -> list[tuple[Path, list[SliceHeader] | ValueError]]:
    """Read for each file its slices, or the reason why its header cannot be read.

    Voxels are not read. A file with several frames has a slice for each.
    """
    with pydicom().config.disable_value_validation(), ThreadPoolExecutor(workers) as pool:
        return list(zip(paths, pool.map(_read, paths), strict=True))


def one_line(error: Exception) -> str:
    """Return an error's message as one line of at most 200 characters, or the error's name."""
    return _clean(str(error)) or type(error).__name__


def _clean(text: str) -> str:
    text = " ".join(re.sub(r"[^ -~]+", " ", text).split())
    return text if len(text) <= 200 else f"{text[:197]}..."


def _read(path: Path) -> list[SliceHeader] | ValueError:
    try:
        if not path.stat().st_size:
            raise ValueError("it is empty")
        dataset = pydicom().dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS))
        elements = _elements(dataset)
        # A DICOMDIR has its class in the file's meta information only.
        elements.setdefault("SOPClassUID", dataset.file_meta.get("MediaStorageSOPClassUID"))
        if not elements["SOPClassUID"]:
            raise ValueError("no SOPClassUID")
        frames = elements.get("PerFrameFunctionalGroupsSequence")
        if not frames:
            return [_header(path, None, elements)]
        if (number := int(elements.get("NumberOfFrames", len(frames)))) != len(frames):
            raise ValueError(f"{number} frames, but positions of {len(frames)}")
        shared = _macros((elements.get("SharedFunctionalGroupsSequence") or [()])[0])
        return [
            _header(path, index, elements | shared | _macros(frame))
            for index, frame in enumerate(frames)
        ]
    except Exception as error:  # a damaged header can raise anything
        return ValueError(f"{path.name}: not a readable DICOM file: {one_line(error)}")


def _elements(dataset: Any) -> dict[str, Any]:
    """Return the elements that are not empty by keyword."""
    return {item.keyword: item.value for item in dataset if item.value not in (None, "")}


def _macros(group: Any) -> dict[str, Any]:
    """Return the elements of the macros of a functional group by keyword."""
    found: dict[str, Any] = {}
    for macro in group:
        for item in macro.value if macro.VR == "SQ" else ():
            found |= _elements(item)
    return found


def _header(path: Path, frame: int | None, elements: dict[str, Any]) -> SliceHeader:
    value = elements.get

    def vector(keyword: str) -> Vector:
        found = value(keyword, ())
        return tuple(map(float, found if isinstance(found, Sequence) else [found]))

    def text(keyword: str) -> str:
        found = value(keyword, "")
        return _clean(found if isinstance(found, str) else "\\".join(map(str, found)))

    number = value("FrameAcquisitionNumber", value("AcquisitionNumber"))
    thickness = value("SliceThickness")
    kind = "FrameType" if "FrameType" in elements else "ImageType"
    return SliceHeader(
        path=path,
        frame=frame,
        series=text("SeriesInstanceUID"),
        instance=text("SOPInstanceUID"),
        sop_class=text("SOPClassUID"),
        modality=text("Modality"),
        patient=text("PatientID"),
        image_type=tuple(text(kind).upper().split("\\")),
        acquisition=None if number is None else int(number),
        kernel=text("ConvolutionKernel"),
        size=(int(value("Rows", 0)), int(value("Columns", 0))),
        pixel_spacing=vector("PixelSpacing"),
        orientation=vector("ImageOrientationPatient"),
        position=vector("ImagePositionPatient"),
        thickness=None if thickness is None else float(thickness),
        slope=float(value("RescaleSlope", 1)),
        intercept=float(value("RescaleIntercept", 0)),
    )
