"""Evaluation of predicted volumes against references: scores and tables.

Start with :mod:`mpunet.evaluation.evaluate`. :mod:`mpunet.metrics` computes the numbers and
:mod:`mpunet.report` writes the HTML pages. No neural network is used here.
"""

from mpunet.evaluation.evaluate import Evaluator
from mpunet.evaluation.scores import Evaluation

__all__ = ["Evaluation", "Evaluator"]
