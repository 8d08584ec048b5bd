"""Su 2023 (blog), Tiger: the sign of the average, with decoupled decay."""

import numpy as np


def tiger(grads, p, *, lr, beta=0.965, weight_decay=0.01):
    m = np.zeros_like(p)
    for g in grads:
        m = beta * m + (1 - beta) * g
        u = -lr * (np.sign(m) + weight_decay * p)
        yield u
        p = p + u
