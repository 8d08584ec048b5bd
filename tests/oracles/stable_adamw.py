"""Wortsman et al. 2023, Algorithm 2 (StableAdamW)."""

import numpy as np


def stable_adamw(grads, p, *, lr, b1=0.9, b2=0.99, eps=1e-6, weight_decay=0.01):
    m, v = np.zeros_like(p), np.zeros(p.shape)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        rms = np.sqrt(np.mean(np.abs(g) ** 2 / np.maximum(v_hat, eps**2)))
        u = -lr / np.maximum(1, rms) * (m_hat / (np.sqrt(v_hat) + eps) + weight_decay * p)
        yield u
        p = p + u
