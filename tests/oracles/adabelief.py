"""Zhuang et al. 2020, Algorithm 2; eps_root accumulates in s, as the authors' code and optax have it."""

import numpy as np


def adabelief(grads, p, *, lr, b1=0.9, b2=0.999, eps=1e-16, eps_root=1e-16, nesterov=False):
    m, s = np.zeros_like(p), np.zeros(p.shape)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * np.abs(g - m) ** 2 + eps_root
        ahead = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)  # Dozat 2016
        yield -lr * (ahead if nesterov else m / (1 - b1**t)) / (np.sqrt(s / (1 - b2**t)) + eps)
