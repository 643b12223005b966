"""Pixels of DICOM files: transfer syntaxes, bits, rescaling, padding, frames."""

import tracemalloc

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from made import SERIES, SHAPE, found, slab_of, voxels, write_enhanced, write_series  # noqa: E402
from pydicom import uid as uids  # noqa: E402
from pydicom.data import get_testdata_file  # noqa: E402

from mpunet.io.dicom.scan import open_series  # noqa: E402

NATIVE = [
    uids.ImplicitVRLittleEndian,
    uids.ExplicitVRLittleEndian,
    uids.DeflatedExplicitVRLittleEndian,
]
COMPRESSED = [uids.RLELossless, uids.JPEG2000Lossless, uids.JPEGLossless, uids.JPEGLosslessSV1]
LARGE = (3, 64, 72)  # JPEG 2000 has five levels of resolution


def named(syntaxes):
    return pytest.mark.parametrize("syntax", syntaxes, ids=lambda uid: uid.keyword)


def series_of(folder):
    (series,), rejected = found(folder)
    assert rejected == []
    return series


def reason_of(series):
    with pytest.raises(ValueError, match=f"series {series.uid}: voxels of") as info:
        slab_of(series)
    assert "\n" not in str(info.value)
    return str(info.value)


@named(NATIVE + COMPRESSED)
def test_voxels_of_each_transfer_syntax(tmp_path, syntax):
    hu = voxels(shape=LARGE)
    write_series(tmp_path, hu, syntax=syntax, shuffle=True, suffix="")
    slab, scan = slab_of(series_of(tmp_path))
    np.testing.assert_array_equal(slab, hu)
    assert slab.dtype == scan.dtype == np.int16


@named(NATIVE + COMPRESSED)
def test_frames_of_each_transfer_syntax(tmp_path, syntax):
    hu = voxels(shape=LARGE)
    write_enhanced(tmp_path / "one", hu, syntax=syntax)
    np.testing.assert_array_equal(slab_of(series_of(tmp_path))[0], hu)


@named(NATIVE + COMPRESSED)
def test_a_file_that_is_cut_short(tmp_path, syntax):
    paths = write_series(tmp_path / "s", voxels(shape=LARGE), syntax=syntax)
    one = write_enhanced(tmp_path / "one", voxels(shape=LARGE), syntax=syntax)
    for path in (paths[1], one):
        path.write_bytes(path.read_bytes()[:-100])
    series, rejected = found(tmp_path)
    reasons = [reason_of(item) for item in series if len(item.slices) == 3]
    reasons += [item.reason for item in rejected]
    assert len(reasons) == 2
    assert any("one" in reason for reason in reasons)
    assert any("001.dcm" in reason for reason in reasons)


def test_jpeg_ls(tmp_path):
    """Pixels of a file that comes with pydicom, as nothing here encodes JPEG-LS."""
    plain, coded = (
        pydicom.dcmread(get_testdata_file(f"MR_small{kind}.dcm"))
        for kind in ("", "_jpeg_ls_lossless")
    )

    def jpeg_ls(index, dataset):
        for keyword in ("BitsStored", "HighBit", "PixelRepresentation", "PixelData"):
            setattr(dataset, keyword, coded[keyword].value)
        dataset.file_meta.TransferSyntaxUID = uids.JPEGLSLossless

    hu = np.repeat(plain.pixel_array[None].astype(np.int16) - 1024, 3, axis=0)
    write_series(tmp_path, hu, change=jpeg_ls, encode=False)
    np.testing.assert_array_equal(slab_of(series_of(tmp_path))[0], hu)


def test_without_a_decoder(tmp_path, monkeypatch):
    write_series(tmp_path, voxels(shape=LARGE), syntax=uids.JPEG2000Lossless)
    monkeypatch.setattr(pydicom.pixels.get_decoder(uids.JPEG2000Lossless), "_available", {})
    assert reason_of(series_of(tmp_path)).endswith(
        "JPEG 2000 Image Compression (Lossless Only) needs a decoder: pip install 'mpunet[dicom]'"
    )


def test_big_endian(tmp_path):
    def big(index, dataset):
        dataset.file_meta.TransferSyntaxUID = uids.ExplicitVRBigEndian
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()

    write_series(tmp_path, change=big)
    np.testing.assert_array_equal(slab_of(series_of(tmp_path))[0], voxels())


@pytest.mark.parametrize("signed", [0, 1])
@named([uids.ExplicitVRLittleEndian, uids.RLELossless, uids.JPEGLosslessSV1])
def test_twelve_bits_below_an_overlay(tmp_path, signed, syntax):
    def overlaid(index, dataset):
        dataset.PixelRepresentation = signed
        dataset.RescaleIntercept = 0 if signed else -1024
        stored = voxels()[index].astype(np.int16) + (0 if signed else 1024)
        dataset.PixelData = ((stored & 0x0FFF) | 0x5000).astype(np.uint16).tobytes()

    write_series(tmp_path, change=overlaid, syntax=syntax)
    np.testing.assert_array_equal(slab_of(series_of(tmp_path))[0], voxels())


@pytest.mark.parametrize("signed", [0, 1])
def test_sixteen_bits(tmp_path, signed):
    def sixteen(index, dataset):
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 15, signed
        dataset.RescaleIntercept = 0 if signed else -32768
        stored = voxels()[index].astype(np.int32) + (0 if signed else 32768)
        dataset.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()

    write_series(tmp_path, change=sixteen)
    np.testing.assert_array_equal(slab_of(series_of(tmp_path))[0], voxels())


@pytest.mark.parametrize(
    ("signed", "padding", "expected"),
    [(1, -2000, -3024), (0, 63536, -1024), (0, 0, -1024)],
    ids=["GE", "above the range of HU", "air"],
)
def test_padding_outside_the_field_of_view_is_air(tmp_path, signed, padding, expected):
    hu = voxels()
    hu[:, :2] = -1024

    def padded(index, dataset):
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 15, signed
        dataset.add_new("PixelPaddingValue", "SS" if signed else "US", padding)
        stored = hu[index].astype(np.int32) + 1024
        stored[:2] = padding
        dataset.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()

    write_series(tmp_path, change=padded)
    slab, _ = slab_of(series_of(tmp_path))  # in HU, not refused
    np.testing.assert_array_equal(slab[:, 2:], hu[:, 2:])
    assert (slab[:, :2] == expected).all()  # below -1024 HU is clipped for the network


def test_rescale_of_each_slice(tmp_path):
    def rescaled(index, dataset):
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5 + index, -1024 + index

    write_series(tmp_path, change=rescaled)
    slab, _ = slab_of(series_of(tmp_path))
    index = np.arange(SHAPE[0])[:, None, None]
    np.testing.assert_allclose(slab, (voxels() + 1024.0) * (0.5 + index) - 1024 + index)
    assert slab.dtype == np.float32


def test_enhanced_multi_frame(tmp_path):
    write_enhanced(tmp_path / "one.dcm", voxels()[::-1], spacing=-5.0)
    slab, scan = slab_of(series_of(tmp_path))
    np.testing.assert_array_equal(slab, voxels())
    np.testing.assert_allclose(scan.spacing, (5.0, 0.7, 0.8))
    assert scan.slice_thickness == 5.0


def several_samples(index, dataset):
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3, "RGB"
    dataset.PlanarConfiguration = 0
    dataset.PixelData = bytes(3 * len(dataset.PixelData))


def several_frames(index, dataset):
    dataset.NumberOfFrames = 2
    dataset.PixelData = bytes(2 * len(dataset.PixelData))


def large(index, dataset):
    dataset.Rows = dataset.Columns = 32767


def high_bit(index, dataset):
    dataset.HighBit = 15


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (several_samples, r"expected \(8, 10\) pixels in 000.dcm, got \(8, 10, 3\)"),
        (several_frames, "several frames without positions"),
        (large, "bytes cannot hold 32767 x 32767 pixels"),
        (high_bit, "expected 11 as HighBit, got 15"),
    ],
)
def test_pixels_that_are_refused(tmp_path, change, reason):
    write_series(tmp_path, change=change)
    with pytest.raises(ValueError, match=f"series {SERIES}: .*{reason}"):
        slab_of(series_of(tmp_path))


def write_frames(folder, hu):
    folder.mkdir()
    write_enhanced(folder / "one", hu)


@pytest.mark.parametrize("write", [write_series, write_frames], ids=["files", "frames"])
def test_memory_does_not_grow_with_depth(tmp_path, write):
    def peak(depth):
        write(tmp_path / str(depth), voxels(shape=(depth, 256, 256)))
        series = series_of(tmp_path / str(depth))
        tracemalloc.start()
        for plane in open_series(series):
            assert plane.shape == (256, 256)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    assert peak(24) - peak(4) < 2 * 256 * 256 * 2  # two slices
