"""Taniguchi et al. 2024, the ADOPT algorithm: v_0 = g_0^2 and no move on the first step; clipped at (t - 1)^(1/4)."""

import numpy as np


def adopt(grads, p, *, lr, b1=0.9, b2=0.9999, eps=1e-6, nesterov=False, use_clipping=True):
    m, v = np.zeros_like(p), np.zeros(p.shape)
    for t, g in enumerate(grads, 1):
        if t > 1:
            n = g / np.maximum(np.sqrt(v), eps)
            n = n / np.maximum(1, np.abs(n) / (t - 1) ** 0.25) if use_clipping else n
            m = b1 * m + (1 - b1) * n
        v = b2 * v + (1 - b2) * np.abs(g) ** 2 if t > 1 else np.abs(g) ** 2
        yield -lr * (b1 * m + (1 - b1) * n if nesterov and t > 1 else m)
