"""Zeiler 2012, Algorithm 1."""

import numpy as np


def adadelta(grads, p, *, lr, rho=0.9, eps=1e-6):
    v, x = np.zeros(p.shape), np.zeros(p.shape)
    for g in grads:
        v = rho * v + (1 - rho) * np.abs(g) ** 2
        d = np.sqrt(x + eps) / np.sqrt(v + eps) * g
        x = rho * x + (1 - rho) * np.abs(d) ** 2
        yield -lr * d
