"""``mpunet benchmark``: methods trained under the same conditions, measured on the same cases, in one table."""

from mpunet.benchmark.rows import Row, find_rows
from mpunet.benchmark.run import Benchmark

__all__ = ["Benchmark", "Row", "find_rows"]
