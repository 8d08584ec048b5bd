"""Luo et al. 2019, Algorithm 2, and AMSBound, Algorithm 3; the bounds and the corrections of the authors' code."""

import numpy as np


def adabound(grads, p, *, lr, final_lr=0.1, b1=0.9, b2=0.999, gamma=1e-3, eps=1e-8, amsbound=False):
    m, v, x = np.zeros_like(p), np.zeros(p.shape), np.zeros(p.shape)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        x = np.maximum(x, v) if amsbound else v
        eta = lr * np.sqrt(1 - b2**t) / (1 - b1**t) / (np.sqrt(x) + eps)
        yield -np.clip(eta, final_lr * (1 - 1 / (gamma * t + 1)), final_lr * (1 + 1 / (gamma * t))) * m


def amsbound(grads, p, **h):
    return adabound(grads, p, amsbound=True, **h)
