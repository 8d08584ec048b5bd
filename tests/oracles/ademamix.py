"""Pagliardini, Ablin & Grangier 2024, Algorithm 1, without the warm-ups of alpha and b3."""

import numpy as np


def ademamix(grads, p, *, lr, b1=0.9, b2=0.999, b3=0.9999, alpha=5.0, eps=1e-8, eps_root=0.0, weight_decay=0.0):
    m1, m2, v = np.zeros_like(p), np.zeros_like(p), np.zeros(p.shape)
    for t, g in enumerate(grads, 1):
        m1 = b1 * m1 + (1 - b1) * g
        m2 = b3 * m2 + (1 - b3) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        mixed = (m1 / (1 - b1**t) + alpha * m2) / (np.sqrt(v / (1 - b2**t) + eps_root) + eps)
        u = -lr * (mixed + weight_decay * p)
        yield u
        p = p + u
