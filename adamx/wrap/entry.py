"""Into a run with parameters in low precision from float32 ones, and out of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from adamx.ground import numerics, tree
from adamx.ground.codec import Precision
from adamx.ground.leaf import is_narrow
from adamx.ground.transform import State, Transformation, check_transformation, states
from adamx.parts import codecs

_PRECISIONS = {str(p.keeps): p for p in (codecs.kahan(), codecs.split8(), codecs.split16(), codecs.master())}
MARK = "parameters as "  # and the precision's name: a number in the state


def split_params(
    tx: Transformation, params: PyTree, dtype: Any = jnp.bfloat16, keep: tree.Mask | None = None
) -> tuple[PyTree, PyTree]:
    """Start a run of :func:`store_params` from float32 parameters: the visible ones, and a state that holds the rest.

    Args:
      tx: a transformation with `store_params` in it, or several (the parts of `optax.partition`).
      params: float32[...] leaves of any shapes are split, others are left as they are; so are those that `optax.masked`
        hides from it, if it keeps something beside the parameters.
      dtype: of the visible parameters: bfloat16, or float16, in which what is above 65504 becomes infinite.
      keep: leaves that stay float32; glob patterns over names, a tree of bools, or a function.

    Returns:
      (params, state), new arrays all, so that both may be donated. `full_params(state, params)` gives back what
      precision keeps of them: all, bit for bit, for `split16()` in bfloat16 and `master()`. `nnx.Optimizer` and
      `TrainState` call init themselves; give them `optax.GradientTransformation(lambda _: state, tx.update)`.

    Raises:
      TypeError: if tx is no transformation.
      ValueError: if dtype is another, a parameter is float64, or there is no `store_params` in tx.
    """
    check_transformation(tx, "split_params")
    try:
        known = is_narrow(jnp.dtype(dtype))
    except TypeError:
        known = False
    if not known:
        raise ValueError(f"dtype must be jnp.bfloat16 or jnp.float16, but is {dtype!r:.60}.")
    dtype = jnp.dtype(dtype)
    leaves, treedef = _flat(params)
    wide = [name for name, x in zip(tree.names(params), tree.flatten(params)[0], strict=True) if _is_double(x)]
    if wide:
        raise ValueError(
            f"split_params splits float32 parameters, but {', '.join(wide[:3])} {'are' if wide[1:] else 'is'} float64:"
            " cast with .astype(jnp.float32)."
        )
    kept = [False] * len(leaves) if keep is None else tree.selected(keep, params, "keep")
    splits = [not k and getattr(x, "dtype", None) == jnp.float32 for k, x in zip(kept, leaves, strict=True)]
    leaves = [jnp.copy(x) if hasattr(x, "dtype") else x for x in leaves]
    seen = lambda: treedef.unflatten(
        numerics.rounded(x, dtype).astype(dtype) if s else x for x, s in zip(leaves, splits, strict=True)
    )
    like = jax.eval_shape(tx.init, jax.eval_shape(seen))
    marks = [name for s in states(like) for name in s.scalars if name.startswith(MARK)]
    if not marks:
        raise ValueError("split_params starts runs of store_params, and there is none in this transformation.")
    ways = _beside(like, params)
    if not {MARK + codecs.nearest().name, MARK + codecs.stochastic().name}.intersection(marks):
        splits = [s and way is not None for s, way in zip(splits, ways, strict=True)]
    none = lambda: jnp.uint32(1 << 31)
    both = [
        way.precision.encode(x, dtype, none) if s and way else None
        for x, s, way in zip(leaves, splits, ways, strict=True)
    ]
    near = treedef.unflatten(
        x if b is None else b[0].astype(dtype) for x, b in zip(_flat(seen())[0], both, strict=True)
    )
    state = tx.init(near)

    def filled(x: Any) -> Any:
        if not isinstance(x, State):
            return x
        moments = dict(x.moments)
        for name in moments.keys() & _PRECISIONS.keys():
            slots, where = _flat(moments[name])
            mine = (s if b is None or _hidden(s) else b[1] for s, b in zip(slots, both, strict=True))
            moments[name] = where.unflatten(mine)
        return x._replace(moments=moments)

    exact = treedef.unflatten(
        x if b is None or way is None else way.precision.decode(b[0].astype(dtype), b[1])
        for x, b, way in zip(leaves, both, ways, strict=True)
    )
    state = _started_exactly(tx, state, exact)
    return near, jax.tree.map(filled, state, is_leaf=lambda x: isinstance(x, State))


def _started_exactly(tx: Any, state: PyTree, exact: PyTree) -> PyTree:
    """The state, with copies of the parameters (as averages of them start with) taken from the exact ones."""

    def taken(path: Any, rounded: Any, full: Any) -> Any:
        of_residue = any(getattr(key, "key", None) in _PRECISIONS for key in path)
        same = jnp.shape(rounded) == jnp.shape(full) and rounded.dtype == full.dtype
        return full if same and not of_residue else rounded

    return jax.tree_util.tree_map_with_path(taken, state, tx.init(exact))


def full_params(state: PyTree, params: PyTree) -> PyTree:
    """The float32 parameters that a run with :func:`store_params` has, for evaluation or a checkpoint.

    Args:
      state: one with the state of `store_params` somewhere in it, or several (the parts of `optax.partition`).
      params: the visible ones; bfloat16 and float16 leaves of any shapes become float32, others stay as they are.

    Raises:
      ValueError: if the state holds none of `store_params`, was made for other parameters, or keeps one of them in two
        ways.
    """
    if not any(name.startswith(MARK) for s in states(state) for name in s.scalars):
        raise ValueError("full_params(state, params) reads a state of store_params, and there is none in this one.")
    leaves, treedef = _flat(params)
    ways = _beside(state, params)
    return treedef.unflatten(
        x if not narrow(x) else x.astype(jnp.float32) if way is None else way.precision.decode(x, way.beside)
        for x, way in zip(leaves, ways, strict=True)
    )


class _Way(NamedTuple):
    """How one parameter is kept, and what lies beside it."""

    precision: Precision
    beside: Any


def _beside(state: PyTree, params: PyTree) -> list[_Way | None]:
    """For each leaf of the parameters the way in which a state keeps it, where something lies beside it."""
    leaves = _flat(params)[0]
    found: list[_Way | None] = [None] * len(leaves)
    for of in states(state):
        for name in of.moments.keys() & _PRECISIONS.keys():
            slots = _flat(of.moments[name])[0]
            if len(slots) != len(leaves):
                raise ValueError(
                    f"the state keeps {name} of {len(slots)} leaves, but params has {len(leaves)}; pass the tree that"
                    " it was made for."
                )
            for i, (x, slot) in enumerate(zip(leaves, slots, strict=True)):
                if _hidden(slot):
                    continue
                if found[i] is not None:
                    raise ValueError(f"this state keeps the parameter {tree.names(params)[i]!r} in two ways.")
                if narrow(x) and x.shape != slot.shape:
                    raise ValueError(
                        f"the parameter {tree.names(params)[i]!r} has shape {x.shape}, but its {name} {slot.shape};"
                        " pass the tree that the state was made for."
                    )
                found[i] = _Way(_PRECISIONS[name], slot)
    return found


def _hidden(x: Any) -> bool:
    return x is None or isinstance(x, optax.MaskedNode)


def _flat(of: PyTree) -> tuple[list[Any], Any]:
    """The leaves, with None and what `optax.masked` hides kept as leaves, and the structure."""
    return jax.tree.flatten(of, is_leaf=_hidden)


def _is_double(x: Any) -> bool:
    return getattr(x, "dtype", None) == np.float64


def narrow(x: Any) -> bool:
    """Whether x is an array of bfloat16 or float16."""
    return hasattr(x, "dtype") and is_narrow(x.dtype)
