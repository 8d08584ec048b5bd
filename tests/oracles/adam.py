"""Kingma & Ba 2015, Algorithm 1; AdamW: Loshchilov & Hutter 2019, Algorithm 2."""

import numpy as np


def adam(grads, p, *, lr, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0):
    m, v = np.zeros_like(p), np.zeros(p.shape)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        yield -lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t) + eps_root) + eps)


def adamw(grads, p, *, lr, weight_decay=1e-4, base_lr=1.0, **h):
    for direction in adam(grads, p, lr=1.0, **h):
        u = lr * direction - lr / base_lr * weight_decay * p  # line 12: eta_t (alpha m̂ / (sqrt(v̂) + eps) + lambda x)
        yield u
        p = p + u
