"""Bernstein et al. 2018, Algorithm 1 (signSGD)."""

import numpy as np


def sign_sgd(grads, p, *, lr):
    for g in grads:
        yield -lr * np.sign(g)
