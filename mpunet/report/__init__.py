"""HTML pages and pictures: the report of an evaluation, the volume viewer, coronal slices.

Start with :mod:`mpunet.report.report` and :mod:`mpunet.report.viewer`. The folder ``assets``
contains the HTML, CSS and JavaScript of the pages.
"""

__all__: list[str] = []
