"""Zhang et al. 2024, the Adam-mini algorithm: one second moment a block, the mean of g^2 over `axes` (None: all)."""

import numpy as np


def adam_mini(grads, p, *, lr, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, axes=None):
    m, v = np.zeros_like(p), 0.0
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.mean(np.abs(g) ** 2, axis=axes, keepdims=True)
        u = -lr * (m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + weight_decay * p)
        yield u
        p = p + u
