"""Fused operations, one folder each: the formula, and of each what it has: a numpy reference, the ONNX form that the exporter places in a
graph, a GPU kernel.

`kernel_lists.py` lists the kernels of a decode step and of a prompt, `packing.py` lays out what they read, without Triton; `functions.py`
knows the kernels by name, and `compile.py` compiles them for cards that need not be there.
"""
