"""Zaheer et al. 2018, Algorithm 2, with the corrections and the common start of both averages that optax has."""

import numpy as np


def yogi(grads, p, *, lr, b1=0.9, b2=0.999, eps=1e-3, initial_accumulator_value=1e-6):
    m, v = np.full_like(p, initial_accumulator_value), np.full(p.shape, float(initial_accumulator_value))
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = v - (1 - b2) * np.sign(v - np.abs(g) ** 2) * np.abs(g) ** 2
        yield -lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
