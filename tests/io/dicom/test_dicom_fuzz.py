"""Damaged DICOM files: every one is read, left out, or refused in one line."""

import shutil
import time

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from made import voxels, write_enhanced, write_series  # noqa: E402
from pydicom import uid as uids  # noqa: E402

from mpunet.io.scans import find_scans, opened  # noqa: E402
from mpunet.memory import peak_memory  # noqa: E402

SYNTAXES = [
    uids.ExplicitVRLittleEndian,
    uids.ImplicitVRLittleEndian,
    uids.DeflatedExplicitVRLittleEndian,
    uids.RLELossless,
    uids.JPEG2000Lossless,
    uids.JPEGLosslessSV1,
]
VRS = [b"SQ", b"UN", b"OB", b"DS", b"IS", b"US", b"UI", b"LO", b"AT", b"FD", b"XX", b"UT"]
VALUES = [
    b"",
    b" ",
    b"NaN",
    b"-1e400",
    b"abc",
    b"1\\2",
    b"\\\\\\",
    b"9" * 12,
    b"\xff\xfe\n\r\x1b[0m",
]
SECONDS = 10  # for a case; most need 20 ms


def flip(raw, rng):
    for at in rng.integers(132, len(raw), rng.integers(1, 20)):
        raw[at] ^= 1 << rng.integers(8)


def flip_header(raw, rng):
    flip(memoryview(raw)[: min(len(raw), 1500)], rng)


def cut(raw, rng):
    del raw[rng.integers(len(raw)) :]


def take_out(raw, rng):
    start = rng.integers(132, len(raw))
    del raw[start : start + rng.integers(1, 60)]


def put_in(raw, rng):
    start = rng.integers(132, len(raw))
    raw[start:start] = rng.bytes(rng.integers(1, 60))


def wrong_vr(raw, rng):
    at = places(raw, rng)
    raw[at + 4 : at + 6] = rng.choice(VRS)


def wrong_length(raw, rng):
    at = places(raw, rng)
    raw[at + 6 : at + 8] = rng.choice([b"\0\0", b"\xff\xff", b"\xfe\xff", b"\1\0", b"\0\x80"])
    if rng.random() < 0.5:
        raw[at + 8 : at + 12] = rng.choice(
            [b"\xff\xff\xff\xff", b"\xf0\xff\xff\xff", b"\0\0\0\x40"]
        )


def wrong_value(raw, rng):
    at = places(raw, rng)
    value = VALUES[rng.integers(len(VALUES))]
    raw[at + 8 : at + 8 + len(value)] = value


DAMAGES = [flip, flip_header, cut, take_out, put_in, wrong_vr, wrong_length, wrong_value]


def places(raw, rng):
    """Start of an element of the header, most often of one that the reader uses."""
    found = []
    for group in (0x0002, 0x0008, 0x0018, 0x0020, 0x0028, 0x5200, 0x7FE0):
        start, sign = 132, group.to_bytes(2, "little")
        while (start := raw.find(sign, start, 4000)) >= 0:
            if raw[start + 4 : start + 6].isalpha():
                found.append(start)
            start += 1
    return int(rng.choice(found)) if found else int(rng.integers(132, len(raw) - 12))


def element(dataset, rng):
    """Damage the value of an element of a data set, as a program that writes files might."""
    names = [item.keyword for item in dataset if item.VR not in ("SQ", "OW", "OB")]
    name = str(rng.choice(names))
    if rng.random() < 0.3:
        del dataset[name]
        return
    kind = dataset[name].VR
    numbers = [0, 1, 7, 16, 255, 65535]
    values = (
        numbers if kind == "US" else [None, "", "0", "-1", "1e30", "NaN", "inf", "1\\2\\3", "x"]
    )
    dataset[name]._value = values[rng.integers(len(values))]


def originals(folder):
    """Series of three small slices, one for each syntax, and Enhanced CT; bytes by file name."""
    for index, syntax in enumerate(SYNTAXES):
        hu = voxels(shape=(3, 64, 64) if syntax == uids.JPEG2000Lossless else (3, 8, 10))
        write_series(folder / str(index), hu, syntax=syntax)
    for index, syntax in enumerate(SYNTAXES[:1] + SYNTAXES[3:4]):
        (folder / f"e{index}").mkdir()
        write_enhanced(folder / f"e{index}" / "one", voxels(shape=(3, 8, 10)), syntax=syntax)
    return {
        place.name: {path.name: path.read_bytes() for path in sorted(place.iterdir())}
        for place in sorted(folder.iterdir())
    }


def examine(folder):
    """Find and read what is in a folder as ``predict`` does; volumes, and reasons of the others."""
    volumes, reasons = 0, []
    try:
        scans = find_scans(folder)
    except ValueError as error:
        return 0, [str(error)]
    for scan in scans:
        assert scan.path.is_relative_to(folder)
        try:
            volume = opened(scan, check_hu=False)
        except ValueError as error:
            reasons.append(str(error))
            continue
        assert all(plane.shape == volume.shape[1:] for plane in volume)
        volumes += 1
    return volumes, reasons


def fuzz(folder, cases, seed):
    files = originals(folder / "originals")
    rng = np.random.default_rng(seed)
    place = folder / "damaged"
    volumes = 0
    for case in range(cases):
        place.mkdir()
        chosen = files[str(rng.choice(list(files)))]
        for name, data in chosen.items():
            (place / name).write_bytes(data)
        for name in rng.choice(list(chosen), rng.integers(1, len(chosen) + 1), replace=False):
            path = place / str(name)
            if rng.random() < 0.25:
                dataset = pydicom.dcmread(path)
                element(dataset, rng)
                try:
                    dataset.save_as(path)
                except Exception:  # pydicom does not write it; the file is as it was
                    path.write_bytes(chosen[path.name])
            else:
                raw = bytearray(path.read_bytes())
                DAMAGES[rng.integers(len(DAMAGES))](raw, rng)
                path.write_bytes(raw)
        start = time.monotonic()
        try:
            found, reasons = examine(place)
            assert all(reason.isprintable() for reason in reasons)
            volumes += found
            assert time.monotonic() - start < SECONDS
        except BaseException:
            shutil.copytree(place, folder / "failed")
            print(f"seed {seed}, case {case}: {folder / 'failed'}")
            raise
        shutil.rmtree(place)
    return volumes


def test_two_hundred_damaged_series(tmp_path):
    assert 20 < fuzz(tmp_path, 200, seed=0) < 180


@pytest.mark.slow
def test_ten_thousand_damaged_series(tmp_path):
    fuzz(tmp_path / "first", 100, seed=1)
    before = peak_memory()
    assert 1000 < fuzz(tmp_path / "all", 10_000, seed=2) < 9000
    assert peak_memory() - before < 200e6
