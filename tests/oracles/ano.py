"""Ano, arXiv:2508.18258: the momentum gives the sign, the gradient the size; v decays before Yogi's increment."""

import numpy as np


def ano(grads, p, *, lr, b1=0.92, b2=0.99, eps=1e-8):
    m, v = np.zeros_like(p), np.zeros(p.shape)
    for t, g in enumerate(grads, 1):
        square = np.abs(g) ** 2
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.sign(square - v) * square
        yield -lr * np.abs(g) * np.sign(m) / (np.sqrt(v / (1 - b2**t)) + eps)
