"""Ginsburg et al. 2019, Algorithm 1: one second moment a tensor, which starts at the first norm."""

import numpy as np


def novograd(grads, p, *, lr, b1=0.9, b2=0.25, eps=1e-6, eps_root=0.0, weight_decay=0.0):
    m, v = np.zeros_like(p), 0.0
    for t, g in enumerate(grads, 1):
        square = np.sum(np.abs(g) ** 2)
        v = square if t == 1 else b2 * v + (1 - b2) * square
        m = b1 * m + (g / (np.sqrt(v + eps_root) + eps) + weight_decay * p)
        u = -lr * m
        yield u
        p = p + u
