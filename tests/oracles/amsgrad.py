"""Reddi, Kale & Kumar 2018, Algorithm 2, with the corrections that optax and PyTorch put in."""

import numpy as np


def amsgrad(grads, p, *, lr, b1=0.9, b2=0.999, eps=1e-8, corrected=True, peak_of="corrected"):
    m, v, x = np.zeros_like(p), np.zeros(p.shape), np.zeros(p.shape)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        c1, c2 = (1 - b1**t, 1 - b2**t) if corrected else (1, 1)
        x = np.maximum(x, v / c2 if peak_of == "corrected" else v)
        yield -lr * m / c1 / (np.sqrt(x if peak_of == "corrected" else x / c2) + eps)
