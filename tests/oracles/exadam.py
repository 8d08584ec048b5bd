"""Adly 2024, the EXAdam algorithm, with a constant step size."""

import numpy as np


def exadam(grads, p, *, lr, b1=0.9, b2=0.999, eps=1e-8):
    m, v = np.zeros_like(p), np.zeros(p.shape)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        d1 = 1 + v / (v + eps) * b2**t
        d2 = 1 + np.abs(m) ** 2 / (np.abs(m) ** 2 + eps) * b1**t
        yield -lr * d1 * (m + g) / (1 - b1**t) / (np.sqrt(v / (1 - b2**t) * d2) + eps)
