"""Reader studies: match readers' findings to a standard; compute sensitivity and precision.

Start with :mod:`mpunet.reader_study.study`. :mod:`mpunet.reader_study.blob_reader` is an automatic
reader.
"""

__all__: list[str] = []
