"""Ma & Yarats 2018, the QHAdam update; decay decoupled."""

import numpy as np


def qhadam(grads, p, *, lr, b1=0.9, b2=0.999, nu1=0.7, nu2=1.0, eps=1e-8, weight_decay=0.0):
    m, v = np.zeros_like(p), np.zeros(p.shape)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        top = (1 - nu1) * g + nu1 * m / (1 - b1**t)
        bottom = (1 - nu2) * np.abs(g) ** 2 + nu2 * v / (1 - b2**t)
        u = -lr * (top / (np.sqrt(bottom) + eps) + weight_decay * p)
        yield u
        p = p + u
