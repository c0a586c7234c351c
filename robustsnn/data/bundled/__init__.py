"""The bundled images: the first 2,000 Fashion-MNIST test images of the fixed order.

The folder is itself a data root of one Parquet file. `python -m robustsnn.data.bundled ROOT` writes
the file anew from a data root that holds the whole test set.
"""
