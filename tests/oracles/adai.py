"""Xie et al. 2022, the Adai algorithm; its mean runs over all parameters, so p is all of them as one vector."""

import numpy as np


def adai(grads, p, *, lr, b1=0.1, b2=0.99, eps=1e-3):
    m, v, product = np.zeros_like(p), np.zeros(p.shape), 1.0
    for t, g in enumerate(grads, 1):
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        v_hat = v / (1 - b2**t)
        b = np.clip(1 - b1 * v_hat / np.mean(v_hat), 0, 1 - eps)
        m = b * m + (1 - b) * g
        product = product * b
        yield -lr * m / (1 - product)
