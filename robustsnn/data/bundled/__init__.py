"""The bundled images: the first 2,000 Fashion-MNIST test images in the fixed order.

The folder is a data root with one Parquet file. `python -m robustsnn.data.bundled ROOT` writes the
file again from a data root that holds the whole test set.
"""
