"""Chen et al. 2023, Algorithm 2."""

import numpy as np


def lion(grads, p, *, lr, b1=0.9, b2=0.99, weight_decay=1e-3):
    m = np.zeros_like(p)
    for g in grads:
        u = -lr * (np.sign(b1 * m + (1 - b1) * g) + weight_decay * p)
        m = b2 * m + (1 - b2) * g
        yield u
        p = p + u
