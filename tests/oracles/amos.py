"""Tian & Parikh 2022, Algorithm 1, one second moment a tensor; the scale eta by rank, as pytorch_optimizer has it."""

import numpy as np


def amos(grads, p, *, lr, beta=0.999, momentum=0.9, eps=1e-18):
    v, b, m = 0.0, 0.0, np.zeros_like(p)
    eta = lr * (0.5 if p.ndim < 2 else ((2 if p.ndim == 2 else 1) / p.shape[1]) ** 0.5)
    for t, g in enumerate(grads, 1):
        square = np.mean(np.abs(g) ** 2)
        v = beta * v + (1 - beta) * square
        inverse = (1 - beta**t) / (v + eps)
        gamma = lr**2 * inverse * square / np.sqrt(1 + 0.25 * np.sqrt(lr) * b)
        step = (gamma / 2 * p + eta * np.sqrt(inverse) * g) / (1 + 0.25 * np.sqrt(eta) * b)
        b = b * (1 + gamma) + gamma
        m = momentum * m + (1 - momentum) * step
        yield -m
        p = p - m
