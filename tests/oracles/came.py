"""Luo et al. 2023, Algorithm 2, over the last two axes; a vector has neither factors nor confidence (authors' code)."""

import numpy as np


def factors(r, c, x, b):
    r = b * r + (1 - b) * np.mean(x, axis=-1, keepdims=True)
    c = b * c + (1 - b) * np.mean(x, axis=-2, keepdims=True)
    return r, c, r * c / np.mean(r, axis=-2, keepdims=True)


def came(grads, p, *, lr, b1=0.9, b2=0.999, b3=0.9999, eps1=1e-30, eps2=1e-16, clip_threshold=1.0, weight_decay=0.0):
    m, v = np.zeros_like(p), np.zeros(p.shape)
    r = c = r_of_s = c_of_s = 0.0
    for g in grads:
        square = np.abs(g) ** 2 + eps1
        if p.ndim > 1:
            r, c, v = factors(r, c, square, b2)
        else:
            v = b2 * v + (1 - b2) * square
        u = g / np.sqrt(v)
        u = u / np.maximum(1, np.sqrt(np.mean(np.abs(u) ** 2)) / clip_threshold)
        m = b1 * m + (1 - b1) * u
        s = 1.0
        if p.ndim > 1:
            r_of_s, c_of_s, s = factors(r_of_s, c_of_s, np.abs(u - m) ** 2 + eps2, b3)
        u = -lr * (m / np.sqrt(s) + weight_decay * p)
        yield u
        p = p + u
