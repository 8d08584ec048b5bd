"""Morwani et al. 2025, Simplified AdEMAMix: m accumulates g whole, without 1 - b1 and without correction."""

import numpy as np


def simplified_ademamix(grads, p, *, lr, b1=0.99, b2=0.95, alpha=0.0, eps=1e-8, eps_root=0.0, weight_decay=0.0):
    m, v = np.zeros_like(p), np.zeros(p.shape)
    for t, g in enumerate(grads, 1):
        m = b1 * m + g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        u = -lr * ((m + alpha * g) / (np.sqrt(v / (1 - b2**t) + eps_root) + eps) + weight_decay * p)
        yield u
        p = p + u
