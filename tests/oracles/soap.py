"""Vyas et al. 2024, Algorithms 3 and 4, an axis each; the first step only builds the bases, eps before (authors)."""

import numpy as np


def turned(x, bases, back=False):
    for i, q in enumerate(bases):
        x = np.moveaxis(np.tensordot(x, q if back else q.conj(), (i, int(back))), -1, i)
    return x


def grams_of(g):
    others = [[j for j in range(g.ndim) if j != i] for i in range(g.ndim)]
    return [np.tensordot(g, g.conj(), (o, o)) for o in others] if g.ndim > 1 else []


def soap(grads, p, *, lr, b1=0.95, b2=0.95, eps=1e-8, weight_decay=0.01, precondition_frequency=10):
    m, v = np.zeros_like(p), np.zeros(p.shape)
    for t, g in enumerate(grads):
        u = np.zeros_like(p)
        if t == 0:
            grams = [(1 - b2) * x for x in grams_of(g)]
            bases = [np.linalg.eigh(x)[1][:, ::-1] for x in grams]
        else:
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * np.abs(turned(g, bases)) ** 2
            step = lr * np.sqrt(1 - b2**t) / (1 - b1**t) * turned(turned(m, bases) / (np.sqrt(v) + eps), bases, True)
            u = -step - lr * weight_decay * (p - step)
            grams = [b2 * x + (1 - b2) * y for x, y in zip(grams, grams_of(g), strict=True)]
            for i, (x, q) in enumerate(zip(grams, bases, strict=True)) if t % precondition_frequency == 0 else ():
                order = np.argsort(-np.diag(q.conj().T @ x @ q).real, kind="stable")
                v = np.take(v, order, axis=i)
                bases[i] = np.linalg.qr(x @ q[:, order])[0]
        yield u
        p = p + u
