"""Bernstein et al. 2018, Algorithm 2."""

import numpy as np


def signum(grads, p, *, lr, beta=0.9):
    m = np.zeros_like(p)
    for g in grads:
        m = beta * m + (1 - beta) * g
        yield -lr * np.sign(m)
