"""Ding et al. 2019, the AdaMod algorithm: each rate is held below the average of all; eps before the correction."""

import numpy as np


def adamod(grads, p, *, lr, b1=0.9, b2=0.999, b3=0.999, eps=1e-8, weight_decay=0.0):
    m, v, s = np.zeros_like(p), np.zeros(p.shape), np.zeros(p.shape)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        eta = lr * np.sqrt(1 - b2**t) / (1 - b1**t) / (np.sqrt(v) + eps)
        s = b3 * s + (1 - b3) * eta
        u = -np.minimum(eta, s) * m - lr * weight_decay * p
        yield u
        p = p + u
