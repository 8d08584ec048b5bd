"""Anil et al. 2019, SM3-II, one cover for each index of each axis; 1e-8 in the root and an average of steps (optax)."""

from functools import reduce

import numpy as np


def sm3(grads, p, *, lr, momentum=0.9):
    nu, m = np.zeros(p.shape), np.zeros_like(p)
    for g in grads:
        axes = range(p.ndim)
        covers = [np.max(nu, axis=tuple(j for j in axes if j != i), keepdims=True) for i in axes] or [nu]
        nu = reduce(np.minimum, covers) + np.abs(g) ** 2
        m = momentum * m + (1 - momentum) * g / np.sqrt(nu + 1e-8)
        yield -lr * m
