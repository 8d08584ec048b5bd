"""Defazio & Mishchenko 2023, Adam with D-Adaptation and bias correction, on all parameters as one vector."""

import numpy as np


def dadapt_adam(grads, p, *, lr, b1=0.9, b2=0.999, eps=1e-8, d0=1e-6, weight_decay=0.0):
    m, v, s = np.zeros_like(p), np.zeros(p.shape), np.zeros_like(p)
    root, d, r, t = b2**0.5, d0, 0.0, 1
    for g in grads:
        rate = d * lr * np.sqrt(1 - b2**t) / (1 - b1**t)
        r = root * r + (1 - root) * rate * np.vdot(g, s / (np.sqrt(v) + eps)).real
        m = b1 * m + (1 - b1) * rate * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        s = root * s + (1 - root) * rate * g
        u = np.zeros_like(p)
        if np.any(s):  # until then the authors' code returns, and does not count the step
            d = np.maximum(d, r / ((1 - root) * np.sum(np.abs(s))))
            u = -m / (np.sqrt(v) + eps) - rate * weight_decay * p
            t += 1
        yield u
        p = p + u
