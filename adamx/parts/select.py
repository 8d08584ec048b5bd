"""Several chains under one state: each leaf runs the one that is chosen for it."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from adamx.ground import tree
from adamx.ground.hyper import Scalar
from adamx.ground.transform import Part, Seen, Transformation, Whole, lift, zeros

_PASS = Part("pass", lambda h, g, slots, p, seen: (g, {}))


def by_leaf(choose: Callable[[PyTree], Sequence[int]], *txs: Transformation) -> Transformation:
    """One transformation in which each leaf runs one of several chains, under one step count and one tree a moment.

    A moment that a leaf's chain does not keep is a single number there. What a chain asks of the whole tree (a global
    norm) it asks of all leaves, its own or not.

    Args:
      choose: params -> for each leaf, in the order of `tree.flatten`, the position of its chain.
      txs: chains of adamx's links; links that stand at the same position run together.

    State: all their moments, each a tree of the parameters' structure.

    Raises:
      TypeError: if one is not made of adamx's links.
      ValueError: if one keeps numbers for the whole tree.
    """
    for tx in txs:
        if getattr(tx, "parts", None) is None:
            raise TypeError(f"by_leaf needs chains made of adamx's links, not {tx!r:.80}.")
        for part in tx.parts or ():
            if part.scalars:
                raise ValueError(
                    f"{part.name} keeps {tree.some(list(part.scalars))} for the whole tree, which leaves with different"
                    " chains cannot share; choose between methods without such numbers."
                )
    longest = max(len(tx.parts or ()) for tx in txs)
    columns = [(*(tx.parts or ()), *[_PASS] * (longest - len(tx.parts or ()))) for tx in txs]
    return lift(*(_joined(choose, parts) for parts in zip(*columns, strict=True)))


def _joined(choose: Callable[[PyTree], Sequence[int]], parts: tuple[Part, ...]) -> Part:
    """One part that is parts[k] on the leaves of which k is chosen."""

    def labels(params: PyTree) -> list[tuple[int, Hashable]]:
        chosen = choose(params)
        own = [part.labels(params) if part.labels else [None] * len(chosen) for part in parts]
        return [(k, own[k][i]) for i, k in enumerate(chosen)]

    def start(name: str, p: Any, label: tuple[int, Hashable]) -> Array:
        part = parts[label[0]]
        if name not in part.slots:
            return jnp.sum(zeros(p, real=True), keepdims=True).reshape((1,) * len(p.shape))
        return part.slots[name](p, label[1]) if part.labels else part.slots[name](p)

    def ask(h: Any, whole: Whole) -> list[Any]:
        return [part.ask(h[k], whole) if part.ask else None for k, part in enumerate(parts)]

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        k, label = seen.label  # pyright: ignore[reportGeneralTypeIssues]
        asked = None if seen.asked is None else seen.asked[k]
        mine = {name: slots[name] for name in parts[k].slots}
        out, new = parts[k].update(h[k], g, mine, p, seen._replace(label=label, asked=asked))
        return out, slots | new

    names = list(dict.fromkeys(name for part in parts for name in part.slots))
    stateful = [part for part in parts if part.slots]
    return Part(
        " | ".join(dict.fromkeys(part.name for part in parts if part is not _PASS)),
        update,
        {name: partial(start, name) for name in names},
        tuple(part.hyper for part in parts),
        ask if any(part.ask for part in parts) else None,
        labels=labels,
        needs_params=any(part.needs_params for part in parts),
        random=any(part.random for part in parts),
        accumulates=bool(stateful) and all(part.accumulates for part in stateful),
    )


def with_decay(
    make: Callable[[Scalar], Transformation], weight_decay: Scalar, mask: tree.Mask | None
) -> Transformation:
    """make(weight_decay), and make(0.0) for the leaves that the mask does not choose."""
    if mask is None:
        return make(weight_decay)
    choose = lambda params: [0 if chosen else 1 for chosen in tree.selected(mask, params, "mask")]
    return by_leaf(choose, make(weight_decay), make(0.0))
