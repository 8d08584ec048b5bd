"""Parameter groups: which leaf is trained how, by the names of leaves, first match first."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from adamx.ground import numerics, tree
from adamx.ground.hyper import Scalar, at_least_zero, product
from adamx.ground.part import Part
from adamx.ground.transform import Transformation, lift
from adamx.parts.select import by_leaf

Group = tuple[str, Mapping[str, Any]]


class Grouped(Transformation):
    """A transformation with parameter groups, which can say who is in which.

    Attributes:
      table: `params -> str`, one line a group, with its settings and how many leaves and parameters it has.
    """

    table: Callable[[PyTree], str]


def param_groups(factory: Callable[..., Transformation], groups: Sequence[Group], **shared: Any) -> Grouped:
    """One method with other hyper-parameters for some leaves, under one state; the first pattern that matches wins.

    Args:
      factory: a method such as `adamx.adamw`, or any function that makes a chain of adamx's links.
      groups: pairs of a glob pattern over leaf names ("*bias", "encoder/*"; `*` also matches `/`) and that group's
        settings: arguments of the factory that it has to itself, `lr_mult` (a factor on the shared learning_rate, a
        number or a schedule), or `freeze=True`. Leaves that match nothing have the shared arguments.
      shared: arguments of the factory for all.

    State: the method's; every moment is one tree. A frozen leaf keeps a single number for each.

    Raises:
      ValueError: if a group's settings do not go together; at init, if a pattern matches nothing, or nothing that an
        earlier one has not.
      TypeError: if the factory does not make a chain of adamx's links.

    >>> import adamx, jax.numpy as jnp
    >>> params = {"embed": jnp.ones((10, 4)), "dense": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}}
    >>> tx = param_groups(
    ...     adamx.adamw,
    ...     [("embed", {"freeze": True}), ("*bias", {"weight_decay": 0.0, "lr_mult": 2.0})],
    ...     learning_rate=1e-3,
    ...     weight_decay=0.1,
    ... )
    >>> print(tx.table(params))
    pattern  settings                       leaves  parameters  e.g.
    embed    freeze=True                         1          40  embed
    *bias    weight_decay=0.0, lr_mult=2.0       1           4  dense/bias
    (rest)                                       1          16  dense/kernel
    """
    if not groups:
        raise ValueError("param_groups needs at least one (pattern, settings), such as ('*bias', {'weight_decay': 0}).")
    for group in groups:
        pair = isinstance(group, (tuple, list)) and len(group) == 2
        if isinstance(groups, (str, Mapping)) or not (
            pair and isinstance(group[0], str) and isinstance(group[1], Mapping)
        ):
            raise TypeError(f"a group is a pair of a pattern and its settings, ('*bias', {{...}}), not {group!r:.60}.")
    patterns = [pattern for pattern, _ in groups]
    txs = [_made(factory, shared, settings, pattern) for pattern, settings in groups] + [factory(**shared)]

    def members(params: PyTree) -> list[int]:
        return tree.first_match(patterns, params, "param_groups")

    grouped = by_leaf(members, *txs)
    out = Grouped(grouped.init, grouped.update, grouped.parts, grouped._step)
    rows = [*groups, ("(rest)", {})]
    out.table = lambda params: _table(rows, members(params), params)
    return out


def _made(factory: Callable[..., Transformation], shared: Mapping[str, Any], settings: Mapping[str, Any], pattern: str):
    own = dict(settings)
    freeze = own.pop("freeze", False)
    if not isinstance(freeze, bool):
        raise TypeError(f"freeze of the group {pattern!r} must be True or False, not {freeze!r}.")
    if freeze:
        if own:
            raise ValueError(f"the group {pattern!r} is frozen, so {tree.some(sorted(own))} would do nothing.")
        return lift(Part("freeze", lambda h, g, slots, p, seen: (jnp.full_like(g, numerics.NO_CHANGE), slots)))
    mult = own.pop("lr_mult", None)
    if mult is not None:
        if "learning_rate" in own or "learning_rate" not in shared:
            raise ValueError(f"lr_mult of the group {pattern!r} multiplies the shared learning_rate: give that one.")
        own["learning_rate"] = _times(shared["learning_rate"], at_least_zero("lr_mult", mult))
    return factory(**{**shared, **own})


def _times(learning_rate: Scalar, mult: Scalar) -> Scalar:
    if isinstance(learning_rate, (int, float)) and isinstance(mult, (int, float)):
        return learning_rate * mult
    return product(learning_rate, mult)


def _table(rows: Sequence[Group], members: Sequence[int], params: PyTree) -> str:
    names, leaves = tree.names(params), tree.flatten(params)[0]
    lines = [("pattern", "settings", "leaves", "parameters", "e.g.")]
    for k, (pattern, settings) in enumerate(rows):
        mine = [i for i, m in enumerate(members) if m == k and leaves[i] is not None]
        says = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        count = sum(int(np.prod(np.shape(leaves[i]), dtype=np.int64)) for i in mine)
        lines.append((pattern, says, f"{len(mine)}", f"{count}", tree.some([names[i] for i in mine], 3)))
    wide = [max(len(line[c]) for line in lines) for c in range(4)]
    made = (
        f"{line[0]:<{wide[0]}}  {line[1]:<{wide[1]}}  {line[2]:>{wide[2]}}  {line[3]:>{wide[3]}}  {line[4]}".rstrip()
        for line in lines
    )
    return "\n".join(made)


def layerwise_lr_decay(layers: Sequence[str], decay: float) -> list[Group]:
    """Groups for :func:`param_groups` in which each layer's learning rate is `decay` times that of the layer above.

    Args:
      layers: patterns from the input to the output: ["embed*", "block_0/*", ..., "head*"]; the last has factor 1.
      decay: above 0, mostly at most 1; 0.65 to 0.9 are usual for fine-tuning.

    Raises:
      ValueError: if decay is not above 0, or there are no layers.

    References: Clark et al., ELECTRA, ICLR 2020; Bao et al., BEiT, ICLR 2022 (arXiv:2106.08254).

    >>> layerwise_lr_decay(["embed", "block*", "head"], 0.5)
    [('embed', {'lr_mult': 0.25}), ('block*', {'lr_mult': 0.5}), ('head', {'lr_mult': 1.0})]
    """
    if not layers or isinstance(layers, str):
        raise ValueError("layerwise_lr_decay needs the patterns of the layers, from the input to the output.")
    if not 0 < decay < float("inf"):
        raise ValueError(f"decay must be above 0, but is {decay!r}.")
    return [(pattern, {"lr_mult": float(decay ** (len(layers) - 1 - i))}) for i, pattern in enumerate(layers)]
