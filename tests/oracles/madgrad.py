"""Defazio & Jelassi 2021, Algorithm 1; eps added to the rate and beside the root, L2 decay (authors' code)."""

import numpy as np


def madgrad(grads, p, *, lr, momentum=0.9, weight_decay=0.0, eps=1e-6):
    start, n, s = p, np.zeros(p.shape), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        g = g + weight_decay * p
        lam = (lr + eps) * np.sqrt(t)
        n = n + lam * np.abs(g) ** 2
        s = s + lam * g
        z = start - s / (np.cbrt(n) + eps)
        u = (1 - momentum) * (z - p)
        yield u
        p = p + u
