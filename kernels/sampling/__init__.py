"""From logits to the next position: a token per row, whether its row goes on, where the token stands and which row of the table embeds it.

    token = argmax( top_k(null + (cond - null) * scale) / temperature + gumbel ),     runtime/sampling.py and runtime/noise.py
    step + 1, row of the embeddings, coordinates, length                               runtime/loop.py and runtime/stages.py

The runtime's own functions are the reference: on the same logits both give the same tokens, to the bit.
"""
