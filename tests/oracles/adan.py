"""Xie et al. 2022, Algorithm 1, with the corrections of the authors' code; b_i are the decays, its 1 - beta_i."""

import numpy as np


def adan(grads, p, *, lr, b1=0.98, b2=0.92, b3=0.99, eps=1e-8, eps_root=1e-8, weight_decay=0.0, proximal=False):
    m, w, n, before = np.zeros_like(p), np.zeros_like(p), np.zeros(p.shape), None
    for t, g in enumerate(grads, 1):
        d = g - (g if before is None else before)
        m = b1 * m + (1 - b1) * g
        w = b2 * w + (1 - b2) * d
        n = b3 * n + (1 - b3) * np.abs(g + b2 * d) ** 2
        u = (m / (1 - b1**t) + b2 * w / (1 - b2**t)) / (np.sqrt(n / (1 - b3**t) + eps_root) + eps)
        u = -lr * (u + weight_decay * p) / (1 + lr * weight_decay if proximal else 1)
        yield u
        p, before = p + u, g
