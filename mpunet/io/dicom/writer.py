"""Results as a derived DICOM series, which viewers and archives take for what it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpunet import __version__
from mpunet.geometry import thin_depth
from mpunet.intensity import HU_MAX, HU_MIN, round_hu
from mpunet.io.dicom.headers import pydicom
from mpunet.io.dicom.scan import DicomScan
from mpunet.io.partial_file import partial_folder
from mpunet.io.thick_file import simulated_slices, thick_count
from mpunet.io.thin_file import checked_chunks, in_file_order

__all__ = ["Origin", "series_uid", "write_series", "write_thick_series"]

# Elements that describe the voxels, the file or the frames of the source, not of the result.
DROPPED = (
    "PixelData", "NumberOfFrames", "SmallestImagePixelValue", "LargestImagePixelValue",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence", "IconImageSequence",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "SliceLocation",
    "DimensionOrganizationSequence", "DimensionIndexSequence", "DimensionOrganizationType",
    "ReferencedImageSequence", "ReferencedRawDataSequence", "DigitalSignaturesSequence",
    "MACParametersSequence", "ConcatenationUID", "InConcatenationNumber",
    "RealWorldValueMappingSequence",
)  # fmt: skip


class Origin(NamedTuple):
    """What made the slices; recorded in the series, whose UIDs are derived from it.

    Attributes:
        network: SHA-256 of the network's file; empty if unknown.
        options: further options that change voxels, as text.
    """

    network: str
    options: str = ""


class _Grid(NamedTuple):
    """Slices of the result, counted in slices of the source along their normal."""

    first: float
    step: float
    depth: int


class _Derivation(NamedTuple):
    """What a series says of itself.

    Attributes:
        name: what the voxels are, in the description of the series.
        text: how slices were made.
        reach: a slice is made from the source's slices nearer than this, in slices.
        entropy: what UIDs are derived from, besides the source and the grid.
        number: what is added to 100 times the source's series number.
        code: value and meaning of the derivation's code; None if there is no code for it.
        intercept: of stored values; None for that of the source, if it fits.
        window: centre and width in HU that replace the source's.
        quantity: what values tell in HU, if not the attenuation of the patient.
    """

    name: str
    text: str
    reach: float
    entropy: tuple[str, ...]
    number: int = 1
    code: tuple[str, str] | None = ("113085", "Spatial resampling")
    intercept: int | None = None
    window: tuple[int, int] | None = None
    quantity: str | None = None


def series_uid(scan: DicomScan, ratio: float, origin: Origin) -> str:
    """Return the SeriesInstanceUID of a result: the same for the same scan, network and options."""
    return _Templates(scan, *_thin(scan, ratio, origin)).uid


def write_series(
    folder: str | Path,
    chunks: Iterable[npt.NDArray[Any]],
    scan: DicomScan,
    ratio: float,
    *,
    origin: Origin,
    last_first: bool = False,
    errors: bool = False,
) -> str:
    """Write thin slices as classic CT images, one file each; the folder appears when it is complete.

    The series is new, in the study and frame of reference of its source, and declared as derived
    and synthetic. Patient and study stay as they are; private elements are left out.

    Args:
        folder: folder for the series; an existing one is replaced.
        chunks: consecutive thin slices, arrays (k, H, W) in HU.
        scan: the thick series.
        ratio: thick spacing / thin spacing.
        origin: what made the slices.
        last_first: whether slices come in order from last to first, also within chunks.
        errors: whether values are the expected absolute errors of the slices. Their series is
            another one, on the same grid, with a real-world value mapping that says so.

    Returns:
        SeriesInstanceUID of the result.
    """
    templates = _Templates(scan, *_thin(scan, ratio, origin, errors=errors))
    return _write(Path(folder), checked_chunks(chunks, scan, ratio), templates, last_first)


def write_thick_series(
    folder: str | Path,
    scan: DicomScan,
    ratio: int,
    *,
    weights: npt.NDArray[np.float64],
    start: int = 0,
) -> str:
    """Simulate the thick series of a thin one and write it as :func:`write_series` does.

    Arguments are those of :func:`mpunet.io.thick_file.write_thick`.

    Returns:
        SeriesInstanceUID of the result.

    Raises:
        ValueError: if a file cannot be read, or there are fewer than two thick slices.
    """
    slices, first = simulated_slices(scan, ratio, weights, start)
    count = thick_count(len(scan), ratio, start)
    thin, thick = (float(scan.spacing[0]) * step for step in (1, ratio))
    text = (
        f"Slices {thick:.4g} mm apart, simulated as weighted means of slices {thin:.4g} mm apart: "
        f"mpunet {__version__}. Not for diagnosis."
    )
    shares = tuple(f"{weight:.6f}" for weight in weights)
    name = f"mpunet {thick:.4g} mm (simulated)"
    derivation = _Derivation(name, text, len(weights) // 2 + 1, shares)
    templates = _Templates(scan, _Grid(first, ratio, count), derivation)
    return _write(Path(folder), slices, templates, scan.last_first)


def _thin(
    scan: DicomScan, ratio: float, origin: Origin, *, errors: bool = False
) -> tuple[_Grid, _Derivation]:
    grid = _Grid(0, 1 / ratio, thin_depth(len(scan), ratio))
    thick = float(scan.spacing[0])
    network = f", network SHA-256 {origin.network}" if origin.network else ""
    if errors:
        text = (
            "Expected absolute error in HU of each voxel of a series that a neural network made: "
            f"mpunet {__version__}{network}. Not an image of the patient. Not for diagnosis."
        )
        return grid, _Derivation(
            "mpunet error estimate", text, 1, (*origin, "error"), number=2, code=None, intercept=0,
            window=(100, 200), quantity="Expected absolute error",
        )  # fmt: skip
    text = (
        f"Thin slices ({thick / ratio:.4g} mm) estimated from slices {thick:.4g} mm apart by a "
        f"neural network: mpunet {__version__}{network}. Not for diagnosis."
    )
    name = f"mpunet {thick / ratio:.4g} mm (synthetic)"
    return grid, _Derivation(name, text, 1, tuple(origin))


def _write(
    folder: Path, chunks: Iterator[npt.NDArray[Any]], templates: _Templates, last_first: bool
) -> str:
    depth = templates.grid.depth
    parts = in_file_order(chunks, templates.scan, depth, dtype="int16", last_first=last_first)
    index = 0
    _check_replaceable(folder)
    with partial_folder(folder) as partial:
        for part in parts:
            for plane in np.moveaxis(part, -1, 0):
                dataset = templates.dataset(index, np.ascontiguousarray(plane.T))
                dataset.save_as(partial / f"{index + 1:05d}.dcm", enforce_file_format=True)
                index += 1
    return templates.uid


def _check_replaceable(path: Path) -> None:
    """Raise ValueError if there is anything but ``.dcm`` and hidden files in a folder."""
    for item in path.iterdir() if path.is_dir() else [path] if path.exists() else []:
        if item.is_dir() or (item.suffix != ".dcm" and not item.name.startswith(".")):
            raise ValueError(
                f"Expected nothing but the .dcm files of one series in {path}, which is to be "
                f"replaced, got {item.name}; move it away."
            )


class _Templates:
    """Makes the data set of each slice of the result from that of the nearest slice of the source."""

    def __init__(self, scan: DicomScan, grid: _Grid, derivation: _Derivation) -> None:
        self.scan, self.grid, self.derivation = scan, grid, derivation
        self.uid = self._uid("series")
        self.spacing = float(scan.spacing[0]) * grid.step
        slices = scan.series.slices
        self.first = np.array(slices[0].position)
        self.step = (np.array(slices[-1].position) - self.first) / (len(slices) - 1)
        same = {(header.slope, header.intercept) for header in slices}
        whole = len(same) == 1 and slices[0].slope == 1 and slices[0].intercept.is_integer()
        fitting = int(slices[0].intercept) if whole else int(HU_MIN)
        self.intercept = fitting if derivation.intercept is None else derivation.intercept
        self.now = datetime.now(timezone.utc).astimezone()
        self._read: tuple[int, Any] = (-1, None)

    def dataset(self, index: int, plane: npt.NDArray[Any]) -> Any:
        """Return the data set of slice ``index`` of the result, counted along the normal."""
        place = self.grid.first + index * self.grid.step
        nearest = min(round(place), len(self.scan) - 1)
        dataset = deepcopy(self._source(nearest))  # a shallow copy shares elements
        header = self.scan.series.slices[nearest]
        dataset.SOPClassUID = pydicom().uid.CTImageStorage
        dataset.SOPInstanceUID = self._uid(str(index))
        dataset.SeriesInstanceUID = self.uid
        number = 100 * int(dataset.get("SeriesNumber") or 0)
        dataset.SeriesNumber = number + self.derivation.number
        dataset.InstanceNumber = index + 1
        dataset.ImageType = ["DERIVED", "SECONDARY", *(header.image_type[2:3] or ["AXIAL"])]
        name = self.derivation.name
        dataset.SeriesDescription = (
            f"{str(dataset.get('SeriesDescription') or '')[: 63 - len(name)]} {name}".strip()
        )
        self._derive(dataset, place)
        self._geometry(dataset, place, header)
        self._meaning(dataset)
        self._pixels(dataset, plane)
        for keyword in ("KVP", "AcquisitionNumber", "PositionReferenceIndicator"):
            if keyword not in dataset:  # required, may be empty
                setattr(dataset, keyword, None)
        dataset.file_meta = self._meta(dataset)
        return dataset

    def _source(self, index: int) -> Any:
        """Return the elements of a thick slice that its thin neighbours share."""
        if self._read[0] != index:
            path = self.scan.series.slices[index].path
            dataset = pydicom().dcmread(path, stop_before_pixels=True)
            dataset.remove_private_tags()
            for element in list(dataset):
                if element.keyword in DROPPED or 0x6000 <= element.tag.group <= 0x60FF:
                    del dataset[element.tag]
            dataset.BurnedInAnnotation = "NO"
            dataset.InstanceCreationDate = self.now.strftime("%Y%m%d")
            dataset.InstanceCreationTime = self.now.strftime("%H%M%S")
            self._read = index, dataset
        return self._read[1]

    def _derive(self, dataset: Any, place: float) -> None:
        dataset.DerivationDescription = self.derivation.text
        dataset.pop("DerivationCodeSequence", None)
        if self.derivation.code is not None:
            dataset.DerivationCodeSequence = [_code(*self.derivation.code)]
        sources = []
        for index, header in enumerate(self.scan.series.slices):
            if abs(index - place) >= self.derivation.reach:
                continue
            item = pydicom().Dataset()
            item.ReferencedSOPClassUID = header.sop_class
            item.ReferencedSOPInstanceUID = header.instance
            if header.frame is not None:
                item.ReferencedFrameNumber = header.frame + 1
            item.PurposeOfReferenceCodeSequence = [
                _code("121322", "Source image for image processing operation")
            ]
            sources.append(item)
        dataset.SourceImageSequence = sources
        equipment = pydicom().Dataset()
        equipment.PurposeOfReferenceCodeSequence = [_code("109103", "Modifying Equipment")]
        equipment.Manufacturer = equipment.ManufacturerModelName = "mpunet"
        equipment.SoftwareVersions = __version__
        equipment.ContributionDateTime = self.now.strftime("%Y%m%d%H%M%S%z")
        equipment.ContributionDescription = dataset.DerivationDescription
        before = list(dataset.get("ContributingEquipmentSequence") or [])
        dataset.ContributingEquipmentSequence = [*before, equipment]

    def _geometry(self, dataset: Any, place: float, header: Any) -> None:
        position = self.first + place * self.step
        dataset.ImagePositionPatient = [f"{value:.10g}"[:16] for value in position]
        dataset.ImageOrientationPatient = [f"{value:.10g}"[:16] for value in header.orientation]
        dataset.PixelSpacing = [f"{value:.10g}"[:16] for value in header.pixel_spacing]
        # The network was trained on slices as thick as their spacing.
        dataset.SliceThickness = f"{self.spacing:.10g}"[:16]
        dataset.SpacingBetweenSlices = f"{self.spacing:.10g}"[:16]

    def _meaning(self, dataset: Any) -> None:
        """Set the window, and what values mean (PS3.3 C.7.6.16.2.11), if the source's do not fit."""
        if self.derivation.window is not None:
            for keyword in ("VOILUTSequence", "VOILUTFunction", "WindowCenterWidthExplanation"):
                dataset.pop(keyword, None)
            dataset.WindowCenter, dataset.WindowWidth = self.derivation.window
        if self.derivation.quantity is not None:
            item = pydicom().Dataset()
            item.LUTExplanation, item.LUTLabel = self.derivation.quantity, "HU"
            item.RealWorldValueFirstValueMapped, item.RealWorldValueLastValueMapped = 0, int(HU_MAX)
            item.RealWorldValueIntercept, item.RealWorldValueSlope = 0.0, 1.0
            item.MeasurementUnitsCodeSequence = [_code("[hnsf'U]", "Hounsfield unit", "UCUM")]
            dataset.RealWorldValueMappingSequence = [item]

    def _pixels(self, dataset: Any, plane: npt.NDArray[Any]) -> None:
        low, high = (int(hu) - self.intercept for hu in (HU_MIN, HU_MAX))
        signed = low < 0
        bits = max(12, int(high).bit_length() + signed, int(-low).bit_length() + 1 if signed else 0)
        dataset.Rows, dataset.Columns = plane.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
        dataset.PixelRepresentation = int(signed)
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = (
            1,
            self.intercept,
            "HU",
        )
        hu = plane if plane.dtype == np.int16 else round_hu(plane)
        stored = hu.astype(np.int32) - self.intercept
        dataset.add_new("PixelData", "OW", stored.astype("<i2" if signed else "<u2").tobytes())

    def _uid(self, what: str) -> str:
        slices = self.scan.series.slices
        source = [self.scan.series.uid, slices[0].instance, slices[-1].instance, str(len(slices))]
        grid = [f"{value:.6g}" for value in self.grid]
        # Several volumes may have all of their slices in one multi-frame file.
        source += [str(h.frame) for h in (slices[0], slices[-1]) if h.frame is not None]
        entropy = [*source, *grid, *self.derivation.entropy, __version__, what]
        return str(pydicom().uid.generate_uid(entropy_srcs=entropy))

    def _meta(self, dataset: Any) -> Any:
        meta = pydicom().dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        meta.TransferSyntaxUID = pydicom().uid.ExplicitVRLittleEndian
        return meta


def _code(value: str, meaning: str, scheme: str = "DCM") -> Any:
    item = pydicom().Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item
