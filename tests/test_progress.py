"""Bars on a terminal, lines elsewhere, nothing if asked for."""

import io

import numpy as np
import pytest

from mpunet import progress as module
from mpunet.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the test sets."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_lines_at_intervals(clock):
    out = io.StringIO()
    progress = Progress(3, "scan", every=10, stream=out)
    with progress.item("a", 100):
        for _ in range(10):  # 2 slices a second
            clock[0] += 5
            progress.advance(10)
    with progress.item("b", 4):
        clock[0] += 1
        progress.advance(4)
    with progress.item("c"):
        clock[0] += 2
    assert out.getvalue().splitlines() == [
        "1/3 a: 20 of 100 slices, 2.0 per second, 40 s left",
        "1/3 a: 40 of 100 slices, 2.0 per second, 30 s left",
        "1/3 a: 60 of 100 slices, 2.0 per second, 20 s left",
        "1/3 a: 80 of 100 slices, 2.0 per second, 10 s left",
        "1/3 a: 100 slices in 50.0 s",
        "3/3 c: 2.0 s",
    ]


def test_failures_always_have_a_line(clock):
    out = io.StringIO()
    progress = Progress(4, "scan", stream=out)
    for name in "abc":
        with progress.item(name):
            progress.fail("no such file")
    assert out.getvalue().count("failed: no such file") == 3


def test_an_error_ends_the_item(clock):
    out = io.StringIO()
    progress = Progress(1, "scan", stream=out)
    with pytest.raises(ValueError, match="broken"), progress.item("a", 5):
        raise ValueError("broken")
    progress.close()


def test_bars_on_a_terminal():
    out = Terminal()
    progress = Progress(2, "scan", stream=out)
    assert progress.show == "bar"
    with progress.item("a-name-that-is-much-too-long-for-a-bar.nii.gz", 30):
        assert [len(chunk) for chunk in progress.watch(np.zeros((3, 10)))] == [10] * 3
    progress.close()
    assert "scans" in out.getvalue()
    assert "…uch-too-long-for-a-bar.nii.gz"[-20:] in out.getvalue()
    assert "/30" in out.getvalue()


def test_nothing_if_quiet():
    out = Terminal()
    progress = Progress(2, "scan", show="none", stream=out)
    with progress.item("a", 3):
        progress.advance(3)
        progress.fail("x")
    assert list(progress.each([1], ["b"])) == [1]
    progress.close()
    assert out.getvalue() == ""


def test_each_item_belongs_to_a_name(clock):
    out = io.StringIO()
    progress = Progress(2, "case", stream=out)

    def slow():
        for value in (1, 2):
            clock[0] += 30
            yield value

    assert list(progress.each(slow(), ["a", "b"])) == [1, 2]
    assert out.getvalue().splitlines() == ["1/2 a: 30.0 s", "2/2 b: 30.0 s"]
