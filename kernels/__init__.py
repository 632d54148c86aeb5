"""Fused operations, one folder each: the formula and a numpy reference, the ONNX form that the exporter places in a graph, a GPU kernel.

`launches.py` lists the kernels of one decode step, `compile.py` compiles them for cards that need not be there. Both need Triton.
"""
