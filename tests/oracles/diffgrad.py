"""Dubey et al. 2020, the diffGrad update: Adam times sigmoid(|g_(t-1) - g_t|); eps before the correction."""

import numpy as np


def diffgrad(grads, p, *, lr, b1=0.9, b2=0.999, eps=1e-8):
    m, v, before = np.zeros_like(p), np.zeros(p.shape), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        friction = 1 / (1 + np.exp(-np.abs(before - g)))
        yield -lr * np.sqrt(1 - b2**t) / (1 - b1**t) * friction * m / (np.sqrt(v) + eps)
        before = g
