"""Multi-query attention of the token transformers: H query heads share one key and value head.

    out[b, s, h] = softmax_j( q[b, s, h] . k[b, j] * scale + table[h, clip(cq[b, s] - ck[b, j], 0, M)] ) @ v[b, j],  j up to s

The additive bias is a table looked up by one coordinate per query and one per key, which covers every bias that upstream computes per
step as an [n, n] tensor: distances for the semantic stage, distances within and a constant across segments for the coarse stage, frames
and quantizers for the fine stage. A pair that must not be biased clips to entry 0; a pair across segments clips to the last entry.
"""
