"""Sutskever et al. 2013 in PyTorch's arrangement: the learning rate outside the buffer."""

import numpy as np


def sgd(grads, p, *, lr, momentum=0.0, nesterov=False, dampening=0.0):
    s = np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        s = momentum * s + (g if t == 1 else (1 - dampening) * g)
        yield -lr * (g + momentum * s if nesterov else s)
