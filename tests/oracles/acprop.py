"""Zhuang et al. 2021, the ACProp algorithm: the step divides by the s of the step before (by 1 on the first)."""

import numpy as np


def acprop(grads, p, *, lr, b1=0.9, b2=0.999, eps=1e-16, eps_root=1e-16, weight_decay=0.0):
    m, s = np.zeros_like(p), np.zeros(p.shape)
    for t, g in enumerate(grads, 1):
        u = -lr * (g / ((np.sqrt(s / (1 - b2 ** (t - 1))) if t > 1 else 1) + eps) + weight_decay * p)
        s = b2 * s + (1 - b2) * np.abs(g - m) ** 2 + eps_root
        m = b1 * m + (1 - b1) * g
        yield u
        p = p + u
