"""Jordan et al. 2024 (blog), Muon, as optax has it: corrected Nesterov momentum, kernels (in, out); in float64."""

import numpy as np


def orthogonal(x, steps, eps):
    if x.shape[0] > x.shape[1]:
        return orthogonal(x.conj().T, steps, eps).conj().T
    x = x / (np.linalg.norm(x) + eps)
    for _ in range(steps):
        a = x @ x.conj().T
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x


def muon(grads, p, *, lr, beta=0.95, weight_decay=0.0, ns_steps=5, eps=1e-8):
    m, factor = np.zeros_like(p), max(1, p.shape[1] / p.shape[0]) ** 0.5
    for t, g in enumerate(grads, 1):
        m = beta * m + (1 - beta) * g
        o = orthogonal(beta * m / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t), ns_steps, eps)
        u = -lr * (factor * o + weight_decay * p)
        yield u
        p = p + u
