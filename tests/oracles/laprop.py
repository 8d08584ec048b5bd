"""Ziyin, Wang & Ueda 2020, the LaProp algorithm; past rates stay in m (authors), decay after the step (timm)."""

import numpy as np


def laprop(grads, p, *, lr, b1=0.9, b2=0.999, eps=1e-15, weight_decay=0.0):
    m, v, c1 = np.zeros_like(p), np.zeros(p.shape), 0.0
    for t, g in enumerate(grads, 1):
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        m = b1 * m + (1 - b1) * lr * g / (np.sqrt(v / (1 - b2**t)) + eps)
        c1 = b1 * c1 + (1 - b1) * lr  # 1 - b1^t, were the rate 1
        step = lr / c1 * m
        u = -step - lr * weight_decay * (p - step)
        yield u
        p = p + u
