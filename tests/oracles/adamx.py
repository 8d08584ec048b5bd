"""Phuong & Phong 2019, the AdamX algorithm: the peak shrinks as b1 falls, and nothing is corrected."""

import numpy as np


def adamx(grads, p, *, lr, b1=0.9, b2=0.999, eps=1e-8, b1_decay=1 - 1e-8):
    m, v, x = np.zeros_like(p), np.zeros(p.shape), np.zeros(p.shape)
    for t, g in enumerate(grads, 1):
        now, before = b1 * b1_decay ** (t - 1), b1 * b1_decay ** (t - 2)
        m = now * m + (1 - now) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        x = v if t == 1 else np.maximum((1 - now) ** 2 / (1 - before) ** 2 * x, v)
        yield -lr * m / (np.sqrt(x) + eps)
