"""A folder for ``sys.path``: holds the ``sgl_kernel`` that stands in where CUDA is missing."""
