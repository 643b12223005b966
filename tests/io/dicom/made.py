"""Small DICOM series whose voxels are known."""

import numpy as np
import pydicom
from jpeg_lossless import jpeg_lossless
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from mpunet.io.dicom.scan import open_series
from mpunet.io.dicom.series import find_series

SHAPE = (6, 8, 10)
SERIES = "1.2.826.0.1.3680043.8.498.1"


def voxels(seed=0, shape=SHAPE):
    """HU with air, (slices, rows, columns)."""
    return np.random.default_rng(seed).integers(-1000, 400, shape).astype(np.int16)


def found(folder):
    return find_series(sorted(path for path in folder.rglob("*") if path.is_file()))


def slab_of(series, **options):
    scan = open_series(series, **options)
    planes = list(scan)
    return np.stack(planes[::-1] if scan.last_first else planes), scan


def write_series(
    folder,
    hu=None,
    *,
    uid=SERIES,
    spacing=5.0,
    pixel=(0.7, 0.8),
    tilt=0.0,
    start=-20.0,
    syntax=ExplicitVRLittleEndian,
    shuffle=False,
    suffix=".dcm",
    change=None,
    positions=None,
    encode=True,
):
    """Write a series of one file for each slice, from the feet to the head; its paths.

    Args:
        tilt: of the gantry in degrees.
        change: function of index and dataset that spoils it.
        positions: of the slices in mm along the normal; by default at even distances.
        encode: whether pixels are encoded as the transfer syntax says, or were by ``change``.
    """
    hu = voxels() if hu is None else hu
    folder.mkdir(parents=True, exist_ok=True)
    names = np.random.default_rng(3).permutation(len(hu)) if shuffle else np.arange(len(hu))
    paths = []
    for index, plane in enumerate(hu):
        along = index * spacing if positions is None else positions[index]
        dataset = header(uid, plane.shape, pixel)
        # The patient lies on the table: a tilt leaves rows along x and moves slices along z only.
        angle = np.deg2rad(tilt)
        dataset.ImageOrientationPatient = [1, 0, 0, 0, float(np.cos(angle)), float(-np.sin(angle))]
        dataset.ImagePositionPatient = [-30.0, -40.0, start + along / np.cos(angle)]
        dataset.InstanceNumber = len(hu) - index  # scanners number from the head as well
        dataset.SOPInstanceUID = f"{uid}.{index + 1}"
        dataset.SliceThickness = spacing
        stored = (plane.astype(np.int32) + 1024).astype(np.uint16)
        dataset.PixelData = stored.tobytes()
        dataset.file_meta = meta(dataset, syntax)
        if change is not None:
            change(index, dataset)
        if encode:
            compress(dataset)
        path = folder / f"{names[index]:03d}{suffix}"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def compress(dataset):
    """Encode pixels as the transfer syntax says."""
    wanted = dataset.file_meta.TransferSyntaxUID
    if not wanted.is_encapsulated:
        return
    if wanted in pydicom.uid.JPEGTransferSyntaxes:
        bits = dataset.BitsAllocated
        planes = np.frombuffer(dataset.PixelData, f"<u{bits // 8}")
        planes = planes.reshape(-1, dataset.Rows, dataset.Columns)
        dataset.PixelData = encapsulate([jpeg_lossless(plane, bits) for plane in planes])
        dataset["PixelData"].VR = "OB"
        return
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.compress(wanted, generate_instance_uid=False)


def header(uid, size, pixel):
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = uid, "1.2.3"
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "42"
    dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Rows, dataset.Columns = size
    dataset.PixelSpacing = list(pixel)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation, dataset.SamplesPerPixel = 0, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    return dataset


def meta(dataset, syntax):
    found = FileMetaDataset()
    found.MediaStorageSOPClassUID = dataset.SOPClassUID
    found.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    found.TransferSyntaxUID = syntax
    return found


def write_enhanced(
    path, hu, *, spacing=5.0, pixel=(0.7, 0.8), syntax=ExplicitVRLittleEndian, change=None
):
    """An Enhanced CT file with a frame for each slice, in the order given."""
    dataset = header(generate_uid(), hu.shape[1:], pixel)
    del dataset.PixelSpacing, dataset.RescaleSlope, dataset.RescaleIntercept
    dataset.SOPClassUID = pydicom.uid.EnhancedCTImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.NumberOfFrames = len(hu)
    shared, measures, plane, transform = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = list(pixel), abs(spacing)
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    transform.RescaleSlope, transform.RescaleIntercept = 1, -1024
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [plane]
    shared.PixelValueTransformationSequence = [transform]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for index in range(len(hu)):
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [-30.0, -40.0, -20.0 + index * spacing]
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.PixelData = (hu.astype(np.int32) + 1024).astype(np.uint16).tobytes()
    dataset.file_meta = meta(dataset, syntax)
    if change is not None:
        change(dataset)
    compress(dataset)
    dataset.save_as(path, enforce_file_format=True)
    return path
