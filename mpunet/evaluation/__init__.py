"""Two folders of volumes to scores and tables. Needs no network.

Begin with :mod:`mpunet.evaluation.evaluate`. The numbers themselves are in :mod:`mpunet.metrics`, the pages in :mod:`mpunet.report`.
"""

from mpunet.evaluation.evaluate import Evaluator
from mpunet.evaluation.scores import Evaluation

__all__ = ["Evaluation", "Evaluator"]
