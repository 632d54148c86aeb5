"""What a GPU makes of a bundle: `make gpu-check`, or `python -m benchmarks.gpu`.

`__main__` is the order; `steps` has tokens and steps, `kernels` what runs without a transformer, `peers` what others take, `machine` what
the GPU is, `table` how rows are shown.
"""
