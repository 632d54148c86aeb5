"""The rows of a launch list: the residual streams that they begin with, their slots, lengths and coordinates.

    x[b, s] = table[id of positions[at[b]]],    slot, length and query coordinate of row b likewise

The positions of prompts are uploaded before a list over them is replayed. The position that a step begins with is in the state of its slot,
where `sample` has left it: the same kernel reads it there when rows are given other slots.
"""
