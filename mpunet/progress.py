"""Progress of a command: bars on a terminal, lines at intervals in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, TextIO, TypeVar

from tqdm import tqdm  # type: ignore[import-untyped]  # a dependency of lightning

__all__ = ["Progress", "Show"]

Item = TypeVar("Item")
# tqdm's, but for slices per second where it would print seconds per slice.
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"
Show = Literal["auto", "bar", "lines", "none", "verbose"]


class Progress:
    """Progress over items, such as scans, and over the steps of each, such as slices.

    Args:
        total: number of items.
        unit: what an item is, such as "scan".
        steps: what a step is, such as "slice".
        show: "bar" draws bars, "lines" prints lines, "none" prints nothing; "auto" (and "verbose")
            is "bar" on a terminal and "lines" elsewhere.
        every: shortest time between two lines in seconds. The last item and items that fail always
            have their line.
        stream: where to print; default: standard error.

    >>> progress = Progress(2, "scan", show="lines", every=0, stream=sys.stdout)
    >>> for name in ("a.nii", "b.nii"):
    ...     with progress.item(name, 36):
    ...         progress.advance(36)
    1/2 a.nii: 36 slices in 0.0 s
    2/2 b.nii: 36 slices in 0.0 s
    """

    def __init__(
        self,
        total: int,
        unit: str,
        *,
        steps: str = "slice",
        show: Show = "auto",
        every: float = 10.0,
        stream: TextIO | None = None,
    ) -> None:
        self.total = total
        self.unit = unit
        self.steps = steps
        self.every = every
        self.stream = stream if stream is not None else sys.stderr
        if show in ("auto", "verbose"):
            show = "bar" if self.stream.isatty() else "lines"
        self.show = show
        self.number = 0
        self._items: tqdm | None = None
        self._bar: tqdm | None = None
        self._printed = time.monotonic()
        if show == "bar" and total > 1:
            self._items = self._new_bar(total, f"{unit}s", unit, position=0)

    @contextmanager
    def item(self, name: str, size: int | None = None) -> Iterator[None]:
        """Work on the next item.

        Args:
            name: its name.
            size: number of its steps, if they are reported with :meth:`advance`.
        """
        self._name, self._size, self._step, self._failure = name, size, 0, ""
        self._start = time.monotonic()
        self.number += 1
        if self.show == "bar" and size is not None:
            position = 0 if self._items is None else 1
            self._bar = self._new_bar(size, _short(name), self.steps, position=position)
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.close()
                self._bar = None
            if self._items is not None:
                self._items.update()
            if self._failure:
                self._print(self._failure)
            elif self.show == "lines" and (self._is_due() or self.number == self.total):
                self._print(self._finished())

    def advance(self, number: int) -> None:
        """Report finished steps of the item."""
        self._step += number
        if self._bar is not None:
            self._bar.update(number)
        elif self.show == "lines" and self._size and self._step < self._size and self._is_due():
            self._print(self._unfinished(self._size))

    def fail(self, reason: str) -> None:
        """Report that the item failed."""
        self._failure = f"failed: {reason}"

    def watch(self, chunks: Iterable[Item]) -> Iterator[Item]:
        """Yield chunks and report their lengths as finished steps."""
        for chunk in chunks:
            yield chunk
            self.advance(len(chunk))  # type: ignore[arg-type]  # arrays and lists

    def each(self, items: Iterable[Item], names: Iterable[str]) -> Iterator[Item]:
        """Yield items that take their time to be made, one for each name."""
        iterator = iter(items)
        for name in names:
            with self.item(name):
                item = next(iterator)
            yield item

    def close(self) -> None:
        """Remove the bars."""
        for bar in (self._bar, self._items):
            if bar is not None:
                bar.close()
        self._bar = self._items = None

    def _new_bar(self, total: int, name: str, unit: str, *, position: int) -> tqdm:
        return tqdm(
            total=total, desc=name, unit=f" {unit}s", position=position, leave=False,
            file=self.stream, dynamic_ncols=True, mininterval=0.2, bar_format=BAR,
        )  # fmt: skip

    def _finished(self) -> str:
        what = "" if self._size is None else f"{self._step} {self.steps}s in "
        return f"{what}{time.monotonic() - self._start:.1f} s"

    def _unfinished(self, size: int) -> str:
        rate = self._step / max(time.monotonic() - self._start, 1e-3)
        left = (size - self._step) / rate
        return f"{self._step} of {size} {self.steps}s, {rate:.1f} per second, {left:.0f} s left"

    def _is_due(self) -> bool:
        return time.monotonic() - self._printed >= self.every

    def _print(self, text: str) -> None:
        """Print a line for the item; with bars, above them."""
        if self.show == "none":
            return
        self._printed = time.monotonic()
        line = f"{self.number}/{self.total} {self._name}: {text}"
        tqdm.write(line, file=self.stream) if self.show == "bar" else print(
            line, file=self.stream, flush=True
        )


def _short(name: str, length: int = 24) -> str:
    """Keep the end of a long name, where file names differ."""
    return name if len(name) <= length else f"…{name[1 - length :]}"
