"""The command ``mpunet benchmark``."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from mpunet.benchmark.run import Benchmark
from mpunet.benchmark.table import draw_coronals, draw_curves, markdown, write_csv

__all__ = ["run"]


def run(args: Sequence[str]) -> int:
    """Train and measure every row without a result; write tables, curves and pictures.

    Returns:
        1 if a row failed, else 0.
    """
    parser = ArgumentParser(prog="mpunet benchmark", description=Benchmark.__doc__)
    parser.add_class_arguments(Benchmark)
    benchmark = Benchmark(**vars(parser.parse_args(list(args))))
    benchmark.output.mkdir(parents=True, exist_ok=True)
    outcomes = benchmark.run()
    table = markdown(outcomes)
    (benchmark.output / "table.md").write_text(table, encoding="utf-8")
    write_csv(outcomes, benchmark.output / "table.csv")
    draw_curves(outcomes, benchmark.output, benchmark.output / "curves.png")
    draw_coronals(outcomes, benchmark.output, benchmark.output / "coronal.png")
    print(f"\n{table}\nTable, curves and pictures: {benchmark.output}")
    return int(any(outcome.status == "failed" for outcome in outcomes))
