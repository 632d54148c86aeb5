"""What a position of a prompt begins with: the residual streams, and where it stands. Prompts are known, so all of their positions can be.

    x[s] = rows[id], or a row of the conditioning prefix;    length + n, query coordinate of position number length + n - 1

n positions of each sequence are computed at once, and the next n when the same launches run again: nothing is told in between.
"""
