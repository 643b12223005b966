"""The cache: built once and completely, named after its content, and within its size limit."""

import errno
import json
import os
import shutil
import struct

import numpy as np
import pytest
import safetensors.numpy
from helpers import position_slab, save

from mpunet.data import lung_source
from mpunet.data.cache import entry as cache_entry
from mpunet.data.cache import limit as cache_limit
from mpunet.data.cache import preparation
from mpunet.data.cache.cache import Cache, Preparation, default_cache_dir
from mpunet.data.case import Case

SHAPE = (19, 8, 10)
SLAB = position_slab(SHAPE)
THICK = {"spacing": (3.0, 0.7, 0.7)}
R3 = Preparation(3)


@pytest.fixture
def reads(monkeypatch):
    """The names of the files read, in order."""
    names = []

    def read_volume(path, **options):
        names.append(path.name)
        return original(path, **options)

    original = preparation.read_volume
    monkeypatch.setattr(preparation, "read_volume", read_volume)
    return names


def case_of(path, slab=SLAB, name="a", **options):
    """A case of a new file, last changed long ago."""
    save(path, slab, **options)
    os.utime(path, (1e9, 1e9))
    return Case(name, name, path)


def built(case, folder, preparation=R3, **options):
    return Cache(folder, **options).cases([case], preparation)[0]


def entries(folder):
    return sorted(folder.glob("*.safetensors"))


class TestEntry:
    def test_thin_alone(self, tmp_path):
        found = built(case_of(tmp_path / "a.nii.gz", codes="RAI"), tmp_path / "cache")
        assert found.name == "a"
        assert isinstance(found.thin, np.memmap)
        assert found.thin.dtype == np.int16
        np.testing.assert_array_equal(found.thin, SLAB)
        assert found.thick is None
        # 8 x 10 voxels hold no lung: anywhere is as good as anywhere else.
        assert not np.asarray(found.lung).any()
        assert found.lung_box.tolist() == [[0, 19], [0, 8], [0, 10]]
        np.testing.assert_allclose(found.spacing, [1.0, 0.7, 0.7], rtol=1e-6)

    def test_pair_is_cut_to_what_both_cover(self, tmp_path):
        thick = save(tmp_path / "thick.nii", SLAB[2:18:3], start=2.0, codes="LPI", **THICK)
        found = built(case_of(tmp_path / "thin.nii")._replace(thick=thick), tmp_path / "cache")
        assert found.thick.dtype == np.int16
        np.testing.assert_array_equal(found.thick, SLAB[2:18:3])
        np.testing.assert_array_equal(found.thin, SLAB[2:18])
        assert len(found.lung) == len(found.thin) == (len(found.thick) - 1) * 3 + 1

    def test_lung_from_a_file_is_cut_with_its_thin_volume(self, tmp_path):
        lung = np.zeros(SHAPE, np.uint8)
        lung[4:12, 2:5, 3:9] = 7
        thick = save(tmp_path / "thick.nii", SLAB[2:18:3], start=2.0, **THICK)
        paths = {"thick": thick, "lung": save(tmp_path / "lung.nii", lung, codes="LPS")}
        found = built(
            case_of(tmp_path / "thin.nii", codes="LPS")._replace(**paths), tmp_path / "cache"
        )
        np.testing.assert_array_equal(found.lung, lung[2:18] > 0)
        assert found.lung_box.tolist() == [[2, 10], [2, 5], [3, 9]]

    def test_computed_lung_reaches_the_entry(self, tmp_path, monkeypatch):
        def lung_mask(slab, spacing):
            assert spacing.tolist() == pytest.approx([1.0, 0.7, 0.7])
            return slab % 2 == 0

        monkeypatch.setattr(lung_source, "lung_mask", lung_mask)
        np.testing.assert_array_equal(
            built(case_of(tmp_path / "a.nii"), tmp_path).lung, SLAB % 2 == 0
        )

    def test_float_volumes_are_rounded_and_clipped(self, tmp_path):
        slab = SLAB.astype(np.float32) + 0.4
        slab[0, 0, :2] = -2000, 9000
        found = built(
            case_of(tmp_path / "a.nii", slab), tmp_path / "cache", R3._replace(examine=False)
        ).thin
        assert found[0, 0, :2].tolist() == [-1024, 3071]
        np.testing.assert_array_equal(found[1:], SLAB[1:])

    def test_what_check_refuses_does_not_come_in(self, tmp_path):
        doubled = SLAB[np.r_[0:9, 8:18]]
        with pytest.raises(
            ValueError,
            match=r"a: thin: slice 9 of 19 repeats the one before. `mpunet check` lists all",
        ):
            built(case_of(tmp_path / "a.nii", doubled), tmp_path / "cache")
        assert entries(tmp_path / "cache") == []
        unseen = built(
            case_of(tmp_path / "a.nii", doubled), tmp_path / "cache", R3._replace(examine=False)
        )
        np.testing.assert_array_equal(unseen.thin, doubled)

    def test_an_empty_mask_file_is_refused_as_by_check(self, tmp_path):
        empty = save(tmp_path / "lung.nii", np.zeros(SHAPE, np.uint8))
        case = case_of(tmp_path / "a.nii")._replace(lung=empty)
        with pytest.raises(ValueError, match="a: lung: the mask is empty"):
            built(case, tmp_path / "cache")
        for settings in (R3._replace(examine=False), R3._replace(lung_masks="threshold")):
            assert not np.asarray(built(case, tmp_path / "cache", settings).lung).any()

    def test_the_format_is_safetensors(self, tmp_path):
        thick = save(tmp_path / "thick.nii", SLAB[::3], **THICK)
        found = built(case_of(tmp_path / "a.nii")._replace(thick=thick), tmp_path / "cache")
        arrays = safetensors.numpy.load_file(found.path)
        np.testing.assert_array_equal(arrays["thin"], SLAB)
        np.testing.assert_array_equal(arrays["thick"], SLAB[::3])
        assert arrays["lung"].shape == (19, 8, 2)


class TestKey:
    def test_built_once(self, tmp_path, reads):
        case, cache = case_of(tmp_path / "a.nii"), tmp_path / "cache"
        first = built(case, cache)
        assert built(case, cache).path == first.path
        # A thin volume alone is stored whole: another ratio needs no other entry.
        assert built(case, cache, Preparation(2)).path == first.path
        assert reads == ["a.nii"]
        assert entries(cache) == [first.path]

    def test_the_same_bytes_elsewhere_are_the_same_entry(self, tmp_path, reads):
        case = case_of(tmp_path / "a.nii")
        (tmp_path / "other").mkdir()
        shutil.copy(case.thin, tmp_path / "other" / "b.nii")
        again = Case("b", "b", tmp_path / "other" / "b.nii")
        one, other = Cache(tmp_path / "cache").cases([case, again], R3)
        assert (one.name, other.name, one.path) == ("a", "b", other.path)
        assert reads == ["a.nii"]

    def test_other_bytes_and_other_settings_are_other_entries(self, tmp_path, reads):
        case, folder = case_of(tmp_path / "thin.nii"), tmp_path / "cache"
        paths = [built(case, folder).path, built(case, folder, R3._replace(slice_axis=2)).path]
        thick = case_of(tmp_path / "thick.nii", SLAB[::3], **THICK).thin
        lung = case_of(tmp_path / "lung.nii", np.ones(SHAPE, np.uint8)).thin
        paths.append(built(case._replace(thick=thick), folder).path)
        paths.append(built(case._replace(lung=lung), folder).path)
        paths.append(
            built(case._replace(intensity="rplhr"), folder).path
        )  # the same bytes may be read otherwise
        assert len(set(paths)) == 5
        assert (
            built(case._replace(lung=lung), folder, R3._replace(lung_masks="threshold")).path
            == paths[0]
        )
        with pytest.raises(ValueError, match=r"ratio of 3.000; expected 2"):
            built(case._replace(thick=thick), folder, Preparation(2))
        save(tmp_path / "thick.nii", SLAB[::3] + 1, **THICK)
        np.testing.assert_array_equal(
            built(case._replace(thick=thick), folder).thick, SLAB[::3] + 1
        )

    def test_unchanged_files_are_not_hashed_again(self, tmp_path, monkeypatch):
        case = case_of(tmp_path / "a.nii")
        path = built(case, tmp_path / "cache").path
        with monkeypatch.context() as patch:
            patch.setattr("mpunet.data.cache.cache.content_hash", None)
            assert built(case, tmp_path / "cache").path == path
        (note,) = (tmp_path / "cache" / "index").iterdir()
        note.write_text("[")
        assert built(case, tmp_path / "cache").path == path

    def test_a_file_that_was_just_written_is_hashed_again(self, tmp_path):
        case = case_of(tmp_path / "a.nii")
        os.utime(case.thin)
        built(case, tmp_path / "cache")
        assert not (tmp_path / "cache" / "index").exists()


class TestWhole:
    def damage(self, path, how):
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        if how == "foreign":
            header["__metadata__"]["key"] = "0" * 32
        elif how == "old":
            header["__metadata__"]["format"] = "1"
        elif how == "shape":
            header["thin"]["shape"][0] += 1
        text = json.dumps(header).encode().ljust(length)
        new = {
            "cut": data[:-1],
            "long": data + b"0",
            "empty": b"",
            "header": data[:50],
            "text": b"not a cache" * 10,
        }
        path.write_bytes(new.get(how, struct.pack("<Q", len(text)) + text + data[8 + length :]))

    @pytest.mark.parametrize(
        "how", ["cut", "long", "empty", "header", "text", "foreign", "old", "shape"]
    )
    def test_what_is_not_whole_is_built_again(self, tmp_path, reads, how):
        case = case_of(tmp_path / "a.nii")
        path = built(case, tmp_path / "cache").path
        self.damage(path, how)
        found = built(case, tmp_path / "cache")
        assert reads == ["a.nii"] * 2
        assert found.path == path
        np.testing.assert_array_equal(found.thin, SLAB)

    @pytest.mark.parametrize(
        ("error", "raised", "reason"),
        [
            (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
            (
                OSError(errno.ENOSPC, "No space left on device"),
                ValueError,
                r"'a' cannot be written: no space left .*cache_limit",
            ),
        ],
    )
    def test_nothing_stays_of_what_fails(self, tmp_path, monkeypatch, error, raised, reason):
        def interrupted(descriptor):
            raise error

        case, folder = case_of(tmp_path / "a.nii"), tmp_path / "cache"
        with monkeypatch.context() as patch:
            patch.setattr(cache_entry.os, "fsync", interrupted)
            with pytest.raises(raised, match=reason):
                built(case, folder)
        assert [path for path in folder.iterdir() if path.is_file()] == []
        np.testing.assert_array_equal(built(case, folder).thin, SLAB)

    def test_a_disk_that_is_too_small_is_told_before(self, tmp_path, monkeypatch):
        monkeypatch.setattr(
            cache_limit.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 9, 10)
        )
        with pytest.raises(
            ValueError, match=r"needs .* GB more, the disk of .*cache has 1e-08 GB left; free some"
        ):
            built(case_of(tmp_path / "a.nii"), tmp_path / "cache")

    def test_remains_of_a_killed_writer_go_after_an_hour(self, tmp_path):
        folder = tmp_path / "cache"
        folder.mkdir()
        for name, age in (("old", 4000), ("new", 0)):
            (folder / f"{name}.partial").write_bytes(b"half")
            os.utime(folder / f"{name}.partial", (os.stat(folder).st_mtime - age,) * 2)
        built(case_of(tmp_path / "a.nii"), folder)
        assert [path.name for path in folder.glob("*.partial")] == ["new.partial"]

    def test_a_file_that_changes_meanwhile(self, tmp_path, monkeypatch):
        case = case_of(tmp_path / "a.nii")

        def read_volume(path, **options):
            out = original(path, **options)
            os.utime(path)
            return out

        original = preparation.read_volume
        monkeypatch.setattr(preparation, "read_volume", read_volume)
        with pytest.raises(ValueError, match="files of 'a' changed while they were read"):
            built(case, tmp_path / "cache")
        assert entries(tmp_path / "cache") == []

    @pytest.mark.parametrize("workers", [0, 2])
    def test_the_first_case_that_fails_is_told(self, tmp_path, workers):
        cases = [
            case_of(tmp_path / f"{i}.nii", SLAB + i + 1000 * (i > 2), str(i)) for i in range(5)
        ]
        with pytest.raises(ValueError, match=r"3.nii: intensities of 3 to .* are not HU"):
            Cache(tmp_path / "cache").cases(cases, R3, workers=workers)
        assert len(entries(tmp_path / "cache")) == 3

    def test_too_few_slices(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"at least 6 thin slices at ratio 5, got 5 in .*a.nii"
        ):
            built(case_of(tmp_path / "a.nii", SLAB[:5]), tmp_path / "cache", Preparation(5))

    def test_too_few_slices_for_another_ratio(self, tmp_path):
        case, cache = case_of(tmp_path / "a.nii", SLAB[:5]), tmp_path / "cache"
        assert len(built(case, cache, Preparation(2)).thin) == 5
        with pytest.raises(ValueError, match="at least 6 thin slices at ratio 5, got 5"):
            built(case, cache, Preparation(5))

    def test_a_file_that_is_missing(self, tmp_path):
        with pytest.raises(ValueError, match=r"gone.nii: no such file"):
            built(Case("a", "a", tmp_path / "gone.nii"), tmp_path / "cache")


class TestLimit:
    def size(self, tmp_path):
        return built(case_of(tmp_path / "a.nii"), tmp_path / "other").path.stat().st_size

    def test_what_was_not_used_for_longest_goes(self, tmp_path):
        limit = (
            3 * self.size(tmp_path) + cache_entry._MAX_HEADER
        )  # room for three, whose headers are taken to be large
        folder = tmp_path / "cache"
        cases = [case_of(tmp_path / f"{i}.nii", SLAB + i, str(i)) for i in range(4)]
        paths = [built(case, folder, limit=limit).path for case in cases[:3]]
        for path, age in zip(paths, (1, 3, 2), strict=True):
            os.utime(path, (1e9 - age,) * 2)
        built(cases[1], folder, limit=limit)  # used again
        paths.append(built(cases[3], folder, limit=limit).path)
        assert entries(folder) == sorted([paths[0], paths[1], paths[3]])

    def test_what_is_in_use_stays(self, tmp_path):
        limit, folder = 2 * self.size(tmp_path) + cache_entry._MAX_HEADER, tmp_path / "cache"
        cases = [case_of(tmp_path / f"{i}.nii", SLAB + i, str(i)) for i in range(3)]
        held = Cache(folder, limit=limit).cases(cases[:2], R3)
        with pytest.raises(
            ValueError,
            match=r"entries in use by this and other runs, above its limit of .*raise the limit",
        ):
            built(cases[2], folder, limit=limit)
        np.testing.assert_array_equal(held[0].thin, SLAB)
        del held
        built(cases[2], folder, limit=limit)
        assert len(entries(folder)) == 2

    def test_an_array_at_hand_outlives_its_entry(self, tmp_path):
        case = built(case_of(tmp_path / "a.nii"), tmp_path / "cache")
        thin = case.thin
        case.path.unlink()
        np.testing.assert_array_equal(thin, SLAB)
        with pytest.raises(ValueError, match=r"of 'a' was deleted while in use; start again"):
            _ = case.thin


def test_default_folder(monkeypatch, tmp_path):
    for name in ("MPUNET_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "mpunet"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "mpunet"
    monkeypatch.setenv("MPUNET_CACHE", str(tmp_path / "own"))
    assert Cache().folder == tmp_path / "own"
