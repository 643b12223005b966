"""Pages and pictures to look at: the report of an evaluation, the viewer, coronal slices.

Begin with :mod:`mpunet.report.report` and :mod:`mpunet.report.viewer`. What the browser runs lies in ``assets``.
"""

__all__: list[str] = []
