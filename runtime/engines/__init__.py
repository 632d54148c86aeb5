"""A bundle's graphs in TensorRT: what the bundle brings for it, engines built of that, and how they run.

In: a bundle with TensorRT's form (`export_all.py --target tensorrt`). Out: engines for a GPU, and their calls. `form` is the contract with
the exporter; it needs no TensorRT.
"""
