"""What a GPU makes of a bundle: `make gpu-check`, or `python -m benchmarks.gpu`.

`__main__` is the order, `parts` what becomes of a part that fails, `size` the parts of one size. `stage` is a stage on a GPU and on the
CPU, `tokens` compares them, `steps` times it; `kernels` is what runs without a transformer, `graphs` what ONNX Runtime runs, `peers` what
others take, `machine` what the GPU is, `table` how rows are shown.
"""
