"""Everett et al. 2024, Adam-atan2: a atan2(m̂, b sqrt(v̂)), written by sign and size so that it holds for complex m̂."""

import numpy as np


def adam_atan2(grads, p, *, lr, b1=0.9, b2=0.99, a=1.27, b=1.0, weight_decay=0.0):
    m, v = np.zeros_like(p), np.zeros(p.shape)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        angle = np.sign(m) * np.arctan2(np.abs(m / (1 - b1**t)), b * np.sqrt(v / (1 - b2**t)))
        u = -lr * (a * angle + weight_decay * p)
        yield u
        p = p + u
