"""Mishchenko & Defazio 2024, the Adam form of Prodigy with bias correction, on all parameters as one vector."""

import numpy as np


def prodigy(
    grads,
    p,
    *,
    lr,
    b1=0.9,
    b2=0.999,
    beta3=None,
    eps=1e-8,
    d0=1e-6,
    d_coef=1.0,
    weight_decay=0.0,
    safeguard_warmup=False,
):
    start, m, v, s = p, np.zeros_like(p), np.zeros(p.shape), np.zeros_like(p)
    b3, d, r, t = b2**0.5 if beta3 is None else beta3, d0, 0.0, 1
    for g in grads:
        rate = d * lr * np.sqrt(1 - b2**t) / (1 - b1**t)
        r = b3 * r + d * rate * np.vdot(g, start - p).real
        m = b1 * m + (1 - b1) * d * g
        v = b2 * v + (1 - b2) * np.abs(d * g) ** 2
        s = b3 * s + d * (d if safeguard_warmup else rate) * g
        u = np.zeros_like(p)
        if np.any(s):  # until then the authors' code returns, and does not count the step
            d = np.maximum(d, d_coef * r / np.sum(np.abs(s)))
            u = -rate * (m / (np.sqrt(v) + d * eps) + weight_decay * p)
            t += 1
        yield u
        p = p + u
