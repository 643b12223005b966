"""Compare methods: train them under the same conditions and measure them on the same cases."""

from mpunet.benchmark.rows import Row, find_rows
from mpunet.benchmark.run import Benchmark

__all__ = ["Benchmark", "Row", "find_rows"]
