"""Write findings.csv and standard.csv of SIMULATED readers, to show `mpunet reader-study`.

    python examples/reader_study/simulate.py
    mpunet reader-study examples/reader_study/findings.csv \\
        examples/reader_study/standard.csv --reference thick

The files are written to the folder of this script. No radiologist took part and no patient exists.
The probabilities of seeing a nodule are invented.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

from mpunet.reader_study.findings import Finding, Reading, findings_csv, standard_csv

CASES, SKILL = (
    30,
    {"simulated reader 1": 0.6, "simulated reader 2": 0.0, "simulated reader 3": -0.5},
)
# For each condition: blur in mm, which hides small nodules, and mean false findings per case.
CONDITIONS = {"thick": (5.0, 0.45), "reconstructed": (3.4, 0.40), "thin": (2.8, 0.35)}


def main() -> int:
    """Write both files."""
    rng = np.random.default_rng(2020)
    standard: dict[str, list[Finding]] = {}
    for index in range(CASES):
        count = rng.poisson(2.5)
        places, sizes = (
            rng.uniform(-90, 90, (count, 3)).round(1),
            (3 + rng.gamma(2.0, 1.6, count)).round(1),
        )
        standard[f"simulated_{index:02d}"] = [
            Finding(tuple(p), d) for p, d in zip(places.tolist(), sizes.tolist(), strict=True)
        ]
    ease = {
        (case, i): rng.normal() for case, nodules in standard.items() for i in range(len(nodules))
    }
    readings: dict[Reading, list[Finding]] = {}
    for reader, skill in SKILL.items():
        for condition, (blur, false) in CONDITIONS.items():
            for case, nodules in standard.items():
                found = []
                for i, nodule in enumerate(nodules):
                    logit = 1.6 * (nodule.diameter - blur) / 1.5 + skill + 0.8 * ease[case, i]
                    if rng.uniform() < 1 / (1 + np.exp(-logit)):
                        place = np.array(nodule.position) + rng.normal(0, [0.5, 0.5, 0.2 * blur])
                        found.append(_finding(place, nodule.diameter * rng.uniform(0.85, 1.2)))
                for _ in range(rng.poisson(false)):
                    found.append(_finding(rng.uniform(-90, 90, 3), rng.uniform(3.5, 7)))
                readings[Reading(reader, condition, case)] = found
    folder = Path(__file__).parent
    # Leave out the score column: it is for the automatic reader, and these simulate people.
    rows = [row[:-1] for row in csv.reader(findings_csv(readings).splitlines())]
    (folder / "findings.csv").write_text(
        "".join(",".join(row) + "\n" for row in rows), encoding="utf-8"
    )
    (folder / "standard.csv").write_text(standard_csv(standard), encoding="utf-8")
    return 0


def _finding(place: np.ndarray, diameter: float) -> Finding:
    x, y, z = place.tolist()
    return Finding((x, y, z), diameter)


if __name__ == "__main__":
    sys.exit(main())
