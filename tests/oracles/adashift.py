"""Zhou et al. 2018, the AdaShift algorithm: v sees the gradient that has just left the window of the last keep_num."""

import numpy as np


def adashift(grads, p, *, lr, b1=0.9, b2=0.999, eps=1e-10, keep_num=10, spatial_max=True):
    window, weights, v = [], b1 ** np.arange(keep_num), np.zeros(p.shape)
    for t, g in enumerate(grads, 1):
        window, u = [g, *window], np.zeros_like(p)
        if t > keep_num:
            old = np.abs(window.pop()) ** 2
            v = b2 * v + (1 - b2) * (np.max(old) if spatial_max else old)
            m = sum(w * x for w, x in zip(weights, window, strict=True)) / np.sum(weights)
            u = -lr * m / (np.sqrt(v / (1 - b2 ** (t - keep_num))) + eps)
        yield u
