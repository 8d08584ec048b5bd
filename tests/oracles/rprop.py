"""Riedmiller & Braun 1993, without its backtracking: a gradient that changes sign is taken as 0 (PyTorch)."""

import numpy as np


def rprop(grads, p, *, lr, eta_minus=0.5, eta_plus=1.2, min_step=1e-6, max_step=50.0):
    step, before = np.full(p.shape, float(lr)), np.zeros_like(p)
    for g in grads:
        turn = np.sign(g * before)
        step = np.clip(step * np.select([turn > 0, turn < 0], [eta_plus, eta_minus], 1.0), min_step, max_step)
        before = np.where(turn < 0, 0.0, g)
        yield -step * np.sign(before)
