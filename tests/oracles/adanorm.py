"""Dubey et al. 2022, AdaNorm on Adam; eps before the correction and 1e-15 in the root (pytorch_optimizer)."""

import numpy as np


def adanorm(grads, p, *, lr, b1=0.9, b2=0.99, r=0.95, eps=1e-8):
    m, v, e = np.zeros_like(p), np.zeros(p.shape), 0.0
    for t, g in enumerate(grads, 1):
        norm = np.linalg.norm(g)
        e = r * e + (1 - r) * norm
        m = b1 * m + (1 - b1) * (g * e / norm if e > norm > 0 else g)
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        yield -lr * np.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v + 1e-15) + eps)
