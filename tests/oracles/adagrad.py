"""Duchi, Hazan & Singer 2011, the diagonal form of Figure 1; eps inside the root (optax) or beside it (PyTorch)."""

import numpy as np


def adagrad(grads, p, *, lr, start=0.1, eps=1e-7, eps_in_sqrt=True):
    n = np.full(p.shape, float(start))
    for g in grads:
        n = n + np.abs(g) ** 2
        yield -lr * g / (np.sqrt(n + eps) if eps_in_sqrt else np.sqrt(n) + eps)
