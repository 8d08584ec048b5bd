"""You et al. 2020, Algorithm 2, with phi the identity; the ratio is 1 where either norm is 0."""

import numpy as np


def lamb(grads, p, *, lr, b1=0.9, b2=0.999, eps=1e-6, eps_root=0.0, weight_decay=0.0):
    m, v = np.zeros_like(p), np.zeros(p.shape)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        r = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t) + eps_root) + eps) + weight_decay * p
        of_p, of_r = np.linalg.norm(p), np.linalg.norm(r)
        u = -lr * (of_p / of_r if of_p > 0 and of_r > 0 else 1) * r
        yield u
        p = p + u
