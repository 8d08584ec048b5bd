"""Chen et al. 2018, Algorithm 1, with the corrections of the authors' code; eps before them."""

import numpy as np


def padam(grads, p, *, lr, b1=0.9, b2=0.999, eps=1e-8, partial=0.25, amsgrad=True):
    m, v, x = np.zeros_like(p), np.zeros(p.shape), np.zeros(p.shape)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        x = np.maximum(x, v) if amsgrad else v
        yield -lr * np.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(x) + eps) ** (2 * partial)
