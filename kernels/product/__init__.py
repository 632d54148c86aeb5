"""The matrix products of a decode step: a few rows times a matrix that is read once.

    y[b, n] = sum_k x[b, k] w[n, k] (+ bias[n]),        gated: y[b, n] = gelu(g[b, n]) v[b, n],  v, g the two halves of x @ w^T

Weights lie by output, [N, K], in fp32, fp16 or bf16, or as int8 with one scale per output and group of inputs.
"""
