"""Kingma & Ba 2015, Algorithm 2; eps inside the maximum, as optax and PyTorch have it."""

import numpy as np


def adamax(grads, p, *, lr, b1=0.9, b2=0.999, eps=1e-8):
    m, u = np.zeros_like(p), np.zeros(p.shape)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        u = np.maximum(b2 * u, np.abs(g) + eps)
        yield -lr / (1 - b1**t) * m / u
