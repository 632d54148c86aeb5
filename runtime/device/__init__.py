"""Tokens made on a GPU by the kernels of kernels/: what holds memory and launches is a driver, what is launched is listed without one.

In: a stage's weights, sequences. Out: tokens. `driver` says what a device must do, `cuda` does it on an NVIDIA GPU, `model` keeps a stage's
weights there and lists launches, `slots` keeps the memory of sequences and captured lists, `batch` is a `runtime.batch.Batch` of them.
"""
