"""One link's mathematics for one leaf: what a part is, and what it may look at."""

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, PyTree

from adamx.ground import numerics, tree
from adamx.ground.codec import Storage


class Seen(NamedTuple):
    """What one leaf's mathematics may look at besides its own numbers.

    Attributes:
      t: int32[], this step, counted from 1 as in papers.
      label: the part's static label of this leaf; None where the part has no labels.
      asked: the scalars that the part's `ask` returned; None where it has none.
      moments: what the moments named before this one put out (inside `scale_by_moments`).
      leaf: uint32[], this leaf's position, for parts with `random`; None elsewhere.
      micro: None, or while gradients are accumulated (position, every): int32[], the place of this gradient in its
        step, from 0; and how many make up a step.
    """

    t: Int32[Array, ""]
    label: Hashable
    asked: PyTree
    moments: Mapping[str, Array]
    leaf: Any = None
    micro: tuple[Array, int] | None = None


class Whole(NamedTuple):
    """What `ask` may look at: all trainable leaves, in one order.

    Attributes:
      grads: what the parts before this one put out.
      params: the parameters, or None for each.
      slots: every moment of the chain by name, as stored: of this step where an earlier pass wrote it, else the last.
      told: the scalars remembered from the last step, overwritten by what earlier parts asked in this one.
      t: int32[], this step, counted from 1.
      labels: the part's static label of each leaf.
    """

    grads: list[Array]
    params: list[Any]
    slots: Mapping[str, list[Array]]
    told: Mapping[str, Array]
    t: Int32[Array, ""]
    labels: list[Hashable]


class Part(NamedTuple):
    """One link's mathematics for one leaf.

    Attributes:
      name: what error sentences call it.
      update: `(hyper, g, slots, p, seen) -> (out, slots)`; g, p and slots arrive in the compute dtype (float32, or
        wider where the data are), `p` is None when the caller gave no parameters.
      slots: name -> init(p), or init(p, label) where the part has labels: one array for a leaf; at least float32.
      hyper: a tree of Scalars, Derived and Told; arrives resolved.
      ask: `(hyper, whole) -> scalars` over all trainable leaves; starts a new pass over the tree. A dictionary of
        scalars can be read by later parts as hyper-parameters, see :class:`adamx.ground.hyper.Told`.
      scalars: name -> first value, of those entries of the dictionary that the state remembers.
      labels: `params -> list`, a static label for each leaf, None leaves included; raises on bad masks.
      needs_params: whether `update` reads p.
      random: whether `update` draws random numbers (from `seen.t` and `seen.leaf`).
      accumulates: whether its slots can take one step's gradient in pieces (`seen.micro`).
      positive: the slots that never hold a number below zero.
      exact: the slots that are no averages of gradients but copies of parameters, or numbers whose small changes count:
        presets leave them as they are, and codecs by blocks refuse them.
      tap: what a watch knows the part by, where what reaches it has a meaning: "clip", "moments", "decay", "rate".
      storage: how its slots are kept, if not as they are; with a precision, the part ends a chain, and every part
        before it sees the parameters that the precision decodes.
    """

    name: str
    update: Callable[[Any, Array, dict[str, Array], Any, Seen], tuple[Any, dict[str, Array]]]
    slots: Mapping[str, Callable[..., Array]] = MappingProxyType({})
    hyper: Any = ()
    ask: Callable[[Any, Whole], PyTree] | None = None
    scalars: Mapping[str, Any] = MappingProxyType({})
    labels: Callable[[PyTree], Sequence[Hashable]] | None = None
    needs_params: bool = False
    random: bool = False
    accumulates: bool = False
    positive: frozenset[str] = frozenset()
    exact: frozenset[str] = frozenset()
    tap: str = ""
    storage: Storage = Storage()


class Rule(NamedTuple):
    """How moments become a direction: `call(hyper, g, t, **moments)`, with the numbers that it needs.

    A plain function `rule(g, t, *, mu, nu)` serves where there are none. `of_moments` says that it does not read g;
    with `needs_params` it is called with `p=` too.
    """

    name: str
    call: Callable[..., Array]
    hyper: Mapping[str, Any] = MappingProxyType({})
    of_moments: bool = False
    needs_params: bool = False


def zeros(p: Any, *, real: bool = False, start: Any = 0.0) -> Array:
    """A slot for p: its shape and sharding, at least float32, complex where p is unless `real`.

    It is built from p (an array of JAX or NumPy, or an abstract value) and not from its shape, so that it has p's
    sharding.
    """
    dtype = numerics.real_dtype(p.dtype)
    return jnp.full_like(p, start, dtype=dtype if real else numerics.like(p.dtype, dtype))


def copied(p: Any) -> Array:
    """A slot that starts as p itself, in at least float32; a copy, since state and parameters may both be donated."""
    return zeros(p) if isinstance(p, jax.ShapeDtypeStruct) else jnp.copy(p).astype(zeros(p).dtype)


def check_rule(rule: Rule | Callable[..., Any], moments: Mapping[str, Any]) -> None:
    """Raise a sentence where a rule does not take these moments.

    Raises:
      TypeError: if it wants others.
    """
    call, lead = (rule.call, 3) if isinstance(rule, Rule) else (rule, 2)
    name = rule.name if isinstance(rule, Rule) else getattr(rule, "__name__", repr(rule))
    try:
        extra = {"p": None} if isinstance(rule, Rule) and rule.needs_params else {}
        inspect.signature(call).bind(*range(lead), **moments, **extra)
    except TypeError as error:
        raise TypeError(f"the rule {name} does not fit the moments {tree.some(list(moments))}: {error}.") from error
