"""Several chains under one state: each leaf runs the one that is chosen for it."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from adamx.ground import tree
from adamx.ground.codec import Storage
from adamx.ground.hyper import Scalar
from adamx.ground.part import Part, Seen, Whole, zeros
from adamx.ground.transform import Transformation, lift

_PASS = Part("pass", lambda h, g, slots, p, seen: (g, {}))


def by_leaf(choose: Callable[[PyTree], Sequence[int]], *txs: Transformation) -> Transformation:
    """One transformation in which each leaf runs one of several chains, under one step count and one tree a moment.

    A moment that a leaf's chain does not keep is a single number there. What a chain asks of the whole tree (a global
    norm) it asks of the leaves whose chains ask too, the first time with the first, and so on: chains that clip share
    one norm, and leaves that are frozen or not clipped do not count in it.

    Args:
      choose: params -> for each leaf, in the order of `tree.flatten`, the position of its chain.
      txs: chains of adamx's links.

    State: all their moments, each a tree of the parameters' structure.

    Raises:
      TypeError: if one is not made of adamx's links.
      ValueError: if one keeps numbers for the whole tree.
    """
    for tx in txs:
        if getattr(tx, "parts", None) is None:
            raise TypeError(f"by_leaf needs chains made of adamx's links, not {tx!r:.80}.")
        for part in tx.parts or ():
            if part.storage != Storage():
                raise ValueError(
                    "what leaves keep is stored around all of them: store_state(by_leaf(...)), not inside."
                )
            if part.scalars:
                raise ValueError(
                    f"{part.name} keeps {tree.some(list(part.scalars))} for the whole tree, which leaves with different"
                    " chains cannot share; choose between methods without such numbers."
                )
    chains = [_passes(tx.parts or ()) for tx in txs]
    longest = max(map(len, chains))
    columns = [(*passes, *[_PASS] * (longest - len(passes))) for passes in chains]
    return lift(*(_joined(choose, parts) for parts in zip(*columns, strict=True)))


def _passes(parts: Sequence[Part]) -> list[Part]:
    """The parts as one part for each pass over the tree: a new one begins where a part asks about the whole."""
    runs: list[list[Part]] = [[]]
    for part in parts:
        if part.ask is not None:
            runs.append([])
        runs[-1].append(part)
    return [_sequence(run) for run in runs]


def _sequence(parts: list[Part]) -> Part:
    """One part that is several in order, of which only the first may ask."""

    def labels(params: PyTree) -> list[Hashable]:
        each = [part.labels(params) if part.labels else None for part in parts]
        many = max((len(x) for x in each if x is not None), default=0)
        return [tuple(None if x is None else x[i] for x in each) for i in range(many)]

    def start(i: int, name: str, p: Any, label: Any = None) -> Array:
        return parts[i].slots[name](p, label[i]) if parts[i].labels else parts[i].slots[name](p)

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        kept: dict[str, Array] = {}
        for i, part in enumerate(parts):
            label = seen.label[i] if some_labels else None  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]
            mine = seen._replace(label=label, asked=seen.asked if i == 0 else None)
            g, new = part.update(h[i], g, {name: slots[name] for name in part.slots}, p, mine)
            kept |= {name: new[name] for name in part.slots}
        return g, kept

    some_labels = any(part.labels for part in parts)
    stateful = [i for i, part in enumerate(parts) if part.slots]
    asks = parts[0].ask if parts else None
    return Part(
        " > ".join(part.name for part in parts) or "pass",
        update,
        {name: partial(start, i, name) for i, part in enumerate(parts) for name in part.slots},
        tuple(part.hyper for part in parts),
        None if asks is None else lambda h, whole: asks(h[0], whole),
        labels=labels if some_labels else None,
        needs_params=any(part.needs_params for part in parts),
        random=any(part.random for part in parts),
        accumulates=len(stateful) == 1 and all(part.accumulates for part in parts[: stateful[0] + 1]),
        positive=frozenset().union(*(part.positive for part in parts)),
        exact=frozenset().union(*(part.exact for part in parts)),
    )


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
        asks = [i for i, label in enumerate(whole.labels) if parts[label[0]].ask]  # pyright: ignore[reportIndexIssue]
        pick = lambda leaves: [leaves[i] for i in asks]
        own = whole._replace(
            grads=pick(whole.grads),
            params=pick(whole.params),
            slots={name: pick(leaves) for name, leaves in whole.slots.items()},
            labels=pick(whole.labels),
        )
        return [part.ask(h[k], own) if part.ask else None for k, part in enumerate(parts)]

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
        positive=frozenset(n for n in names if all(n in part.positive for part in parts if n in part.slots)),
        exact=frozenset().union(*(part.exact for part in parts)),
    )


def with_decay(
    make: Callable[[Scalar], Transformation], weight_decay: Scalar, mask: tree.Mask | None
) -> Transformation:
    """make(weight_decay), and make(0.0) for the leaves that the mask does not choose."""
    if mask is None:
        return make(weight_decay)
    choose = lambda params: [0 if chosen else 1 for chosen in tree.selected(mask, params, "mask")]
    return by_leaf(choose, make(weight_decay), make(0.0))


def by_pattern(chains: Mapping[str, Transformation], rest: Transformation) -> Transformation:
    """`by_leaf` by names: the chain of the first glob pattern that matches, `rest` where none does."""
    patterns = list(chains)
    return by_leaf(lambda params: tree.first_match(patterns, params, "the patterns"), *chains.values(), rest)
