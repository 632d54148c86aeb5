"""Hyper-connections (Zhu et al. 2024, arXiv 2409.19606, algorithm 2): learned mixing of s residual streams around a branch.

n      = x / |x| * sqrt(dim) * (gamma + 1)                                       per stream, x [s, dim]
alpha  = tanh(n @ A) * a_scale + A_static      [s, s + 1]                        width: column 0 feeds the branch
beta   = tanh(n @ b) * b_scale + b_static      [s]                               depth: how much of the branch each stream takes
branch_input = alpha[:, 0] . x,   x' = alpha[:, 1:]^T x + beta (x) branch(branch_input)
"""
