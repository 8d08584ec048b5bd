"""Defazio 2025, the AdamC algorithm: the decay of step t is alpha_t^2 / alpha_max times lambda."""

from oracles.adam import adam


def adamc(grads, p, *, lr, weight_decay=0.01, max_lr=None, **h):
    for direction in adam(grads, p, lr=1.0, **h):
        u = lr * direction - lr**2 / (lr if max_lr is None else max_lr) * weight_decay * p
        yield u
        p = p + u
