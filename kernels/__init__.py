"""Fused operations, one folder each: the formula and a numpy reference, and the ONNX form that the exporter places in a graph."""
