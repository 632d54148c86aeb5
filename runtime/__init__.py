"""Bundle to wave: numpy and ONNX Runtime, no torch."""
