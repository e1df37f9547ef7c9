"""A finite space searched for its front by training no point further than it promises: plain numpy and scipy.

What a network costs to use is known of every point before any training; what it scores is learned epoch by epoch, and
training can pause at any rung and go on later. `decide` says what to train next.
"""
