"""Programmatic dependent launch: a kernel begins while the one before it in the stream still runs.

It may read what no kernel writes, weights, before it waits; the wait returns when all that came before has been written. So what a launch
costs, and the first bytes of its weights, hide behind the kernel before. Cards from 9.0 on have it. NVIDIA, CUDA C++ Programming Guide,
"Programmatic Dependent Launch and Synchronization".
"""
