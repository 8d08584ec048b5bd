"""Tieleman & Hinton 2012; centred and with momentum: Graves 2013, equations 38 to 41."""

import numpy as np


def rmsprop(
    grads, p, *, lr, decay=0.9, eps=1e-8, start=0.0, eps_in_sqrt=True, centered=False, momentum=0.0, nesterov=False
):
    n, m, s = np.full(p.shape, float(start)), np.zeros_like(p), np.zeros_like(p)
    for g in grads:
        n = decay * n + (1 - decay) * np.abs(g) ** 2
        m = decay * m + (1 - decay) * g
        spread = n - np.abs(m) ** 2 if centered else n
        u = -lr * g / (np.sqrt(spread + eps) if eps_in_sqrt else np.sqrt(spread) + eps)
        s = momentum * s + u
        yield u + momentum * s if nesterov else s
