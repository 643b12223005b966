"""The cache with several processes: concurrent, killed half-way, deleting while another reads."""

import errno
import multiprocessing
import os
import pickle
import signal
import time

import numpy as np
import pytest
from helpers import position_slab, save

from mpunet.data.cache import cache as cache_module
from mpunet.data.cache import entry as cache_entry
from mpunet.data.cache.cache import Cache, Preparation
from mpunet.data.case import Case
from mpunet.io.file_lock import Lease, leased, locked

if "fork" not in multiprocessing.get_all_start_methods():
    pytest.skip("Windows cannot fork processes", allow_module_level=True)
SLAB = position_slab((19, 8, 10))
R3 = Preparation(3)
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def start():
    """Starts a process that ends with the test."""
    running = []

    def start(target, *args):
        running.append(FORK.Process(target=target, args=args))
        running[-1].start()
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.join()


@pytest.fixture
def cases(tmp_path):
    return [Case(str(i), str(i), save(tmp_path / f"{i}.nii.gz", SLAB + i)) for i in range(4)]


def files(folder):
    return sorted(path.suffix for path in folder.iterdir() if path.is_file())


def build(folder, cases):
    Cache(folder).cases(cases, R3)


def build_half(folder, cases, ready):
    """Comes half-way, and stays there."""

    def write_half(path, arrays, **about):
        path.write_bytes(b"half")
        ready.set()
        time.sleep(60)

    cache_module.write_entry = write_half
    build(folder, cases)


def hold(folder, cases, ready, done):
    held = Cache(folder).cases(cases, R3)
    ready.set()
    while not done.is_set():
        for i, case in enumerate(held):
            np.testing.assert_array_equal(case.thin, SLAB + i)


def test_killed_half_way(tmp_path, cases, start):
    folder, ready = tmp_path / "cache", FORK.Event()
    victim = start(build_half, folder, cases[:1], ready)
    assert ready.wait(30)
    other = start(build, folder, cases[:1])
    other.join(0.5)
    assert other.is_alive()  # it waits for the first, so that the work is not done twice
    assert files(folder) == [".partial"]
    os.kill(victim.pid, signal.SIGKILL)
    other.join(30)
    assert other.exitcode == 0
    assert files(folder) == [".safetensors"]
    np.testing.assert_array_equal(Cache(folder).cases(cases[:1], R3)[0].thin, SLAB)


@pytest.mark.parametrize(
    "error", [NotImplementedError("no flock"), OSError(errno.ENOLCK, "No locks available")]
)
def test_where_there_are_no_locks_both_build_the_same(tmp_path, cases, start, monkeypatch, error):
    def acquire(lock):
        raise error

    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("mpunet.io.file_lock.fcntl.flock", flock)
    monkeypatch.setattr("mpunet.io.file_lock.FileLock.acquire", acquire)
    folder = tmp_path / "cache"
    both = [start(build, folder, cases) for _ in range(3)]
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0, 0]
    assert files(folder) == [".safetensors"] * 4
    for i, case in enumerate(Cache(folder).cases(cases, R3)):
        np.testing.assert_array_equal(case.thin, SLAB + i)


def test_several_jobs_with_several_workers(tmp_path, cases, start):
    folder = tmp_path / "cache"
    jobs = [start(build, folder, order) for order in (cases, cases[::-1])]
    found = Cache(folder).cases(cases, R3, workers=2)
    for job in jobs:
        job.join(60)
        assert job.exitcode == 0
    assert files(folder) == [".safetensors"] * 4
    for i, case in enumerate(found):
        np.testing.assert_array_equal(case.thin, SLAB + i)


def test_nothing_is_deleted_that_another_process_reads(tmp_path, cases, start):
    folder, ready, done = tmp_path / "cache", FORK.Event(), FORK.Event()
    reader = start(hold, folder, cases[:2], ready, done)
    assert ready.wait(30)
    size = next(folder.glob("*.safetensors")).stat().st_size
    limit = 3 * size + cache_entry._MAX_HEADER
    for case in cases[2:] * 2:  # each pushes out the one before
        np.testing.assert_array_equal(
            Cache(folder, limit=limit).cases([case], R3)[0].thin, SLAB + int(case.name)
        )
        assert len(files(folder)) == 3
    done.set()
    reader.join(30)
    assert reader.exitcode == 0
    # Now that it has ended, so has its lease.
    Cache(folder, limit=2 * size + cache_entry._MAX_HEADER).cases(cases[2:], R3)
    assert len(files(folder)) == 2


def test_a_killed_process_leases_nothing(tmp_path, start):
    def lease(ready):
        held = Lease(tmp_path)
        held.add(["a", "b"])
        ready.set()
        time.sleep(60)
        del held

    ready = FORK.Event()
    process = start(lease, ready)
    assert ready.wait(30)
    assert leased(tmp_path) == {"a", "b"}
    own = Lease(tmp_path)
    own.add(["c"])
    assert leased(tmp_path) == {"a", "b", "c"}
    process.kill()
    process.join()
    assert leased(tmp_path) == {"c"}
    assert pickle.loads(pickle.dumps(own)) is None
    del own
    assert leased(tmp_path) == set()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_waits(tmp_path, start):
    def lock(ready):
        with locked(tmp_path / "lock"):
            ready.set()
            time.sleep(0.5)

    ready = FORK.Event()
    start(lock, ready)
    assert ready.wait(30)
    began = time.monotonic()
    with locked(tmp_path / "lock"):
        assert time.monotonic() - began > 0.2
