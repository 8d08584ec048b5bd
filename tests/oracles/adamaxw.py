"""Kingma & Ba 2015, Algorithm 2, with the decoupled decay of Loshchilov & Hutter 2019."""

from oracles.adamax import adamax


def adamaxw(grads, p, *, lr, weight_decay=1e-4, **h):
    for direction in adamax(grads, p, lr=1.0, **h):
        u = lr * (direction - weight_decay * p)
        yield u
        p = p + u
