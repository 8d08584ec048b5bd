"""Xie et al. 2021, Algorithm 1 (PNM): momenta of the odd and the even steps, the older one taken off b2 times."""

import numpy as np


def pnm(grads, p, *, lr, b1=0.9, b2=1.0):
    m, older = np.zeros_like(p), np.zeros_like(p)
    for g in grads:
        m, older = b1**2 * older + (1 - b1**2) * g, m
        yield -lr * ((1 + b2) * m - b2 * older) / np.sqrt((1 + b2) ** 2 + b2**2)
