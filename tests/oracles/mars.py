"""Yuan et al. 2024, Algorithm 2 (MARS-AdamW), in its approximate form: the last step's own gradient, 0 at first."""

import numpy as np


def mars(grads, p, *, lr, b1=0.95, b2=0.99, eps=1e-8, gamma=0.025, weight_decay=0.0):
    m, v, before = np.zeros_like(p), np.zeros(p.shape), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        c = g + gamma * b1 / (1 - b1) * (g - before)
        c = c / np.maximum(1, np.linalg.norm(c))
        m = b1 * m + (1 - b1) * c
        v = b2 * v + (1 - b2) * np.abs(c) ** 2
        u = -lr * ((m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps) + weight_decay * p)
        yield u
        p, before = p + u, g
