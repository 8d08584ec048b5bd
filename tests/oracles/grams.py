"""Cao, Li & Song 2024, the Grams algorithm: Adam's size in the gradient's direction; eps after the correction."""

import numpy as np


def grams(grads, p, *, lr, b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.0):
    m, v = np.zeros_like(p), np.zeros(p.shape)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        size = np.abs(m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        u = -lr * (np.sign(g) * size + weight_decay * p)
        yield u
        p = p + u
