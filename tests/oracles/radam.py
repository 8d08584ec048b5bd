"""Liu et al. 2019, Algorithm 2, with optax's threshold (rho >= 5, not > 4) and its eps after the correction."""

import numpy as np


def radam(grads, p, *, lr, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, threshold=5.0, nesterov=False):
    m, v = np.zeros_like(p), np.zeros(p.shape)
    end = 2 / (1 - b2) - 1
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        ahead = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)  # Dozat 2016
        u = ahead if nesterov else m / (1 - b1**t)
        rho = end - 2 * t * b2**t / (1 - b2**t)
        if rho >= threshold:
            r = np.sqrt((rho - 4) * (rho - 2) * end / ((end - 4) * (end - 2) * rho))
            u = r * u / (np.sqrt(v / (1 - b2**t) + eps_root) + eps)
        yield -lr * u
