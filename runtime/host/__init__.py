"""Batches that the host's processors compute: by native code, or by the ONNX graph with numpy around it.

In: a stage's weights or its graph, and sequences. Out: tokens. Nothing here knows what tokens mean.
"""
