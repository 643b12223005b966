"""Reader studies: findings of readers matched to a standard, their sensitivity and precision, and an automatic reader.

Begin with :mod:`mpunet.reader_study.study`.
"""

__all__: list[str] = []
