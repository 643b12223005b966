"""The cache: built once and whole or not at all, and never out of date."""

import os
import threading

import numpy as np
import pytest
from helpers import position_slab, save

from mpunet.data import cache as cache_module
from mpunet.data.cache import cache_case, default_cache_dir, open_case
from mpunet.data.pairs import Case, find_cases

SHAPE = (19, 8, 10)
SLAB = position_slab(SHAPE)
THICK = {"spacing": (3.0, 0.7, 0.7)}


@pytest.fixture
def reads(monkeypatch):
    """The names of the files read, in order."""
    names = []

    def read_volume(path, **options):
        names.append(path.name)
        return original(path, **options)

    original = cache_module.read_volume
    monkeypatch.setattr(cache_module, "read_volume", read_volume)
    return names


def built(case, folder, ratio=3):
    return open_case(cache_case(case, folder, ratio=ratio), case.name)


class TestEntry:
    def test_thin_alone(self, tmp_path):
        case = Case("a", "a", save(tmp_path / "a.nii.gz", SLAB, codes="RAI"))
        found = built(case, tmp_path / "cache")
        assert found.name == "a"
        assert isinstance(found.thin, np.memmap)
        assert found.thin.dtype == np.int16
        np.testing.assert_array_equal(found.thin, SLAB)
        assert found.thick is None
        assert isinstance(found.lung, np.memmap)
        assert found.lung.dtype == bool
        # 8 x 10 voxels hold no lung: anywhere is as good as anywhere else.
        assert not found.lung.any()
        assert found.lung_box.tolist() == [[0, 19], [0, 8], [0, 10]]
        np.testing.assert_allclose(found.spacing, [1.0, 0.7, 0.7], rtol=1e-6)

    def test_pair_is_cut_to_what_both_cover(self, tmp_path):
        thick = save(tmp_path / "thick.nii", SLAB[2:18:3], start=2.0, codes="LPI", **THICK)
        case = Case("a", "a", save(tmp_path / "thin.nii", SLAB), thick)
        found = built(case, tmp_path / "cache")
        assert found.thick.dtype == np.int16
        np.testing.assert_array_equal(found.thick, SLAB[2:18:3])
        np.testing.assert_array_equal(found.thin, SLAB[2:18])
        assert len(found.thin) == (len(found.thick) - 1) * 3 + 1
        assert len(found.lung) == len(found.thin)

    def test_lung_from_a_file_in_its_own_orientation(self, tmp_path):
        lung = np.zeros(SHAPE, np.uint8)
        lung[4:12, 2:5, 3:9] = 7
        thin = save(tmp_path / "thin.nii", SLAB, codes="LPS")
        found = built(Case("a", "a", thin, lung=save(tmp_path / "lung.nii", lung, codes="LPS")), tmp_path / "cache")
        np.testing.assert_array_equal(found.lung, lung > 0)
        assert found.lung_box.tolist() == [[4, 12], [2, 5], [3, 9]]

    def test_lung_is_cut_with_its_thin_volume(self, tmp_path):
        lung = (SLAB % 2).astype(np.uint8)
        paths = [
            save(tmp_path / "thin.nii", SLAB),
            save(tmp_path / "thick.nii", SLAB[2:18:3], start=2.0, **THICK),
            save(tmp_path / "lung.nii", lung),
        ]
        np.testing.assert_array_equal(built(Case("a", "a", *paths), tmp_path / "cache").lung, lung[2:18] > 0)

    def test_computed_lung_reaches_the_entry(self, tmp_path, monkeypatch):
        def lung_mask(slab, spacing):
            assert spacing.tolist() == pytest.approx([1.0, 0.7, 0.7])
            return slab % 2 == 0

        monkeypatch.setattr(cache_module, "lung_mask", lung_mask)
        np.testing.assert_array_equal(built(Case("a", "a", save(tmp_path / "a.nii", SLAB)), tmp_path).lung, SLAB % 2 == 0)

    def test_names_with_folders(self, tmp_path):
        save(tmp_path / "scans" / "x" / "1.nii", SLAB)
        (case,) = find_cases(tmp_path / "scans")
        assert case.name == "x/1"
        assert cache_case(case, tmp_path / "cache", ratio=3).parent == tmp_path / "cache"


class TestLife:
    def test_built_once(self, tmp_path, reads):
        case = Case("a", "a", save(tmp_path / "a.nii", SLAB))
        entry = cache_case(case, tmp_path / "cache", ratio=3)
        assert cache_case(case, tmp_path / "cache", ratio=3) == entry
        # A thin volume alone is stored whole: another ratio needs no other entry.
        assert cache_case(case, tmp_path / "cache", ratio=2) == entry
        assert reads == ["a.nii"]
        assert list((tmp_path / "cache").iterdir()) == [entry]

    def test_rebuilt_when_a_file_or_a_setting_changes(self, tmp_path, reads):
        thin, thick = save(tmp_path / "thin.nii", SLAB), save(tmp_path / "thick.nii", SLAB[::3], **THICK)
        case = Case("a", "a", thin, thick)
        first = cache_case(case, tmp_path, ratio=3)
        save(thick, SLAB[::3] + 1, **THICK)
        os.utime(thick, ns=(0, 0))
        second = cache_case(case, tmp_path, ratio=3)
        np.testing.assert_array_equal(open_case(second, "a").thick, SLAB[::3] + 1)
        third = cache_case(case, tmp_path, ratio=3, slice_axis=2)
        assert len({first, second, third}) == 3
        with pytest.raises(ValueError, match=r"ratio 3.000, expected 2"):
            cache_case(case, tmp_path, ratio=2)
        assert reads == ["thin.nii", "thick.nii"] * 4

    @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
    def test_nothing_stays_of_what_fails(self, tmp_path, monkeypatch, error):
        def interrupted(path, array):
            path.write_bytes(b"half")
            raise error("No space left on device")

        case = Case("a", "a", save(tmp_path / "a.nii", SLAB))
        with monkeypatch.context() as patch:
            patch.setattr(cache_module.np, "save", interrupted)
            with pytest.raises(error, match="No space"):
                cache_case(case, tmp_path / "cache", ratio=3)
        assert list((tmp_path / "cache").iterdir()) == []
        assert len(built(case, tmp_path / "cache").thin) == 19

    def test_two_at_once(self, tmp_path, monkeypatch):
        """Both build, one entry stays, and both get it."""
        barrier = threading.Barrier(2, timeout=30)
        build, entries = cache_module._build, []

        def slow_build(*args):
            build(*args)
            barrier.wait()

        monkeypatch.setattr(cache_module, "_build", slow_build)
        case = Case("a", "a", save(tmp_path / "a.nii", SLAB))
        threads = [
            threading.Thread(target=lambda: entries.append(cache_case(case, tmp_path / "cache", ratio=3))) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(entries) == 2
        assert len(set(entries)) == 1
        assert list((tmp_path / "cache").iterdir()) == [entries[0]]
        np.testing.assert_array_equal(open_case(entries[0], "a").thin, SLAB)

    def test_a_rename_that_fails_for_another_reason_is_an_error(self, tmp_path, monkeypatch):
        def refuse(self, target):
            raise PermissionError("read-only")

        monkeypatch.setattr(cache_module.Path, "rename", refuse)
        with pytest.raises(PermissionError, match="read-only"):
            cache_case(Case("a", "a", save(tmp_path / "a.nii", SLAB)), tmp_path / "cache", ratio=3)
        assert list((tmp_path / "cache").iterdir()) == []


class TestRefused:
    def test_too_few_slices(self, tmp_path):
        case = Case("a", "a", save(tmp_path / "a.nii", SLAB[:5]))
        with pytest.raises(ValueError, match=r"at least 6 thin slices at ratio 5, got 5 in .*a.nii"):
            cache_case(case, tmp_path, ratio=5)

    @pytest.mark.parametrize(
        ("shape", "options"),
        [((19, 8, 9), {}), (SHAPE, {"start": 1.0}), (SHAPE, {"codes": "RPS"}), (SHAPE, {"spacing": (1, 0.8, 0.8)})],
    )
    def test_lung_on_another_grid(self, tmp_path, shape, options):
        lung = save(tmp_path / "lung.nii", np.ones(shape, np.uint8), **options)
        with pytest.raises(ValueError, match=r"lung mask .*lung.nii of shape .* is not on the grid of .*thin.nii"):
            cache_case(Case("a", "a", save(tmp_path / "thin.nii", SLAB), lung=lung), tmp_path, ratio=3)

    def test_not_hu(self, tmp_path):
        case = Case("a", "a", save(tmp_path / "a.nii", SLAB + 1000))
        with pytest.raises(ValueError, match=r"a.nii: intensities of 0 to .* are not HU"):
            cache_case(case, tmp_path / "cache", ratio=3)
        assert list((tmp_path / "cache").iterdir()) == []


def test_default_folder(monkeypatch, tmp_path):
    for name in ("MPUNET_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "mpunet"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "mpunet"
    monkeypatch.setenv("MPUNET_CACHE", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"
