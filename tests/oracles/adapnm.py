"""Xie et al. 2021, Algorithm 2 (AdaPNM): momenta of the odd and the even steps, the older one taken off."""

import numpy as np


def adapnm(grads, p, *, lr, b1=0.9, b2=0.999, b3=1.0, eps=1e-8, weight_decay=0.0, amsgrad=True):
    m, older, v, x = np.zeros_like(p), np.zeros_like(p), np.zeros(p.shape), np.zeros(p.shape)
    for t, g in enumerate(grads, 1):
        m, older = b1**2 * older + (1 - b1**2) * g, m
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        x = np.maximum(x, v) if amsgrad else v
        q = ((1 + b3) * m - b3 * older) / np.sqrt((1 + b3) ** 2 + b3**2)
        u = -lr * (q / (1 - b1**t) / (np.sqrt(x / (1 - b2**t)) + eps) + weight_decay * p)
        yield u
        p = p + u
