"""Dozat 2016, Algorithm 2, with a constant momentum or his schedule; the average itself keeps b1 (PyTorch, optax)."""

import numpy as np


def nadam(grads, p, *, lr, b1=0.9, b2=0.999, eps=1e-8, momentum_decay=None):
    def mu(i):
        return b1 if momentum_decay is None else b1 * (1 - 0.5 * 0.96 ** (i * momentum_decay))

    m, v = np.zeros_like(p), np.zeros(p.shape)
    product = 1.0
    for t, g in enumerate(grads, 1):
        product *= mu(t)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        bar = (1 - mu(t)) * g / (1 - product) + mu(t + 1) * m / (1 - product * mu(t + 1))
        yield -lr * bar / (np.sqrt(v / (1 - b2**t)) + eps)


def nadamw(grads, p, *, lr, weight_decay=1e-4, **h):
    for direction in nadam(grads, p, lr=1.0, **h):
        u = lr * (direction - weight_decay * p)
        yield u
        p = p + u
