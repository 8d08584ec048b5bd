"""Shazeer & Stern 2018, Algorithms 4 and 5, over the two largest axes; rate given, decay not times it (optax)."""

import numpy as np


def adafactor(
    grads,
    p,
    *,
    lr,
    min_dim_size_to_factor=128,
    decay_rate=0.8,
    clipping_threshold=1.0,
    eps=1e-30,
    multiply_by_parameter_scale=True,
    weight_decay_rate=0.0,
):
    i, j = np.argsort(p.shape)[-2:] if p.ndim > 1 else (None, None)
    factored = p.ndim > 1 and p.shape[i] >= min_dim_size_to_factor
    r = c = v = 0.0
    for t, g in enumerate(grads, 1):
        b, square = 1 - t**-decay_rate, np.abs(g) ** 2 + eps
        if factored:
            r = b * r + (1 - b) * np.mean(square, axis=j, keepdims=True)
            c = b * c + (1 - b) * np.mean(square, axis=i, keepdims=True)
            v = r * c / np.mean(r, axis=i, keepdims=True)
        else:
            v = b * v + (1 - b) * square
        u = g / np.sqrt(v)
        u = u / np.maximum(1, np.sqrt(np.mean(np.abs(u) ** 2)) / clipping_threshold)
        scale = np.maximum(1e-3, np.sqrt(np.mean(np.abs(p) ** 2))) if multiply_by_parameter_scale else 1
        u = -lr * scale * u - weight_decay_rate * p
        yield u
        p = p + u
