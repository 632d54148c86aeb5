"""The gated feed-forward of the token transformers (Shazeer 2020, arXiv 2002.05202, with a second norm).

value, gate = split(LayerNorm(x) @ W_in),    out = LayerNorm(gelu(gate) * value) @ W_out         gelu by the error function
"""
