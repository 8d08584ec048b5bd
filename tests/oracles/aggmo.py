"""Lucas et al. 2019, Aggregated Momentum: the mean of the steps of several momenta."""

import numpy as np


def aggmo(grads, p, *, lr, betas=(0.0, 0.9, 0.99)):
    buffers = [np.zeros_like(p) for _ in betas]
    for g in grads:
        buffers = [b * v + g for b, v in zip(betas, buffers, strict=True)]
        yield -lr / len(betas) * sum(buffers)
