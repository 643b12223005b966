"""Judging results: metrics over folders, fidelity, the report, the reader study. Needs no network.

Not imported here: :mod:`mpunet.evaluation.consistency`, whose function has its name; the page (:mod:`mpunet.evaluation.report`,
:mod:`mpunet.evaluation.view`), :mod:`mpunet.evaluation.reader_study`.
"""

from mpunet.evaluation.evaluate import Evaluator
from mpunet.evaluation.fidelity import hu_bias, lung_density
from mpunet.evaluation.scores import Evaluation
from mpunet.evaluation.texture import noise, sharpness

__all__ = [
    "Evaluation",
    "Evaluator",
    "hu_bias",
    "lung_density",
    "noise",
    "sharpness",
]
