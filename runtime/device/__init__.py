"""Tokens made on a GPU by the kernels of kernels/: what holds memory and launches is a driver, what is launched is listed without one.

In: a stage's weights, plans of `runtime.stages`. Out: tokens. `driver` says what a device must do, `cuda` does it on an NVIDIA GPU, `model`
keeps a stage's weights and buffers there, `decode` is the loop.
"""
