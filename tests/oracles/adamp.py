"""Heo et al. 2021, Algorithm 2 (AdamP); channel by channel first, then the whole tensor (authors)."""

import numpy as np


def dot(a, b):
    return np.sum((a.conj() * b).real, axis=1, keepdims=True)


def projected(u, g, p, delta, eps):
    for view in ((p.shape[0], -1), (1, -1)) if p.ndim > 1 else ():
        x, y, z = p.reshape(view), g.reshape(view), u.reshape(view)
        size = np.sqrt(dot(x, x)) + eps
        cosine = np.abs(dot(x, y)) / size / (np.sqrt(dot(y, y)) + eps)
        if np.max(cosine) < delta / np.sqrt(x.shape[1]):
            return (z - x / size * dot(x / size, z)).reshape(p.shape), True
    return u, False


def adamp(grads, p, *, lr, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, delta=0.1, wd_ratio=0.1, nesterov=False):
    m, v = np.zeros_like(p), np.zeros(p.shape)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        q = (b1 * m + (1 - b1) * g if nesterov else m) / (np.sqrt(v / (1 - b2**t)) + eps)
        q, invariant = projected(q, g, p, delta, eps)
        u = -lr * (q / (1 - b1**t) + weight_decay * (wd_ratio if invariant else 1) * p)
        yield u
        p = p + u
