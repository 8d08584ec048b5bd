"""Moments of a low-rank projection instead of the whole matrix."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int32, PyTree

from adamx.ground import hyper, numerics, tree
from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, check_transformation


class GaloreState(NamedTuple):
    """The state of :func:`galore`.

    Attributes:
      count: int32[], steps taken.
      bases: a tree of the parameters' structure: float32[min(m, n), rank] for a projected m by n matrix, a single
        number of the leaf's rank for the rest.
      inner: the wrapped transformation's state, for the projected gradients.
    """

    count: Int32[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride] (it hides tuple.count; optax's name)
    bases: PyTree
    inner: PyTree


@method
def galore(
    tx: optax.GradientTransformation,
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: Scalar = 0.25,
    *,
    matrices: tree.Mask | None = None,
) -> Transformation:
    """Any method, run on gradients projected to the span of their largest singular vectors.

    For a matrix g of m by n, m <= n, with P the first `rank` left singular vectors of a recent gradient (right ones
    where m > n): the method sees P^T g and its update u becomes scale P u. Other leaves pass through.

    Args:
      tx: any optax transformation that does not read the parameters; put weight decay behind, as in
        `chain(galore(adam(lr)), decay_after(lr, wd))`.
      rank: of the projection; matrices whose shorter side is not longer are left whole.
      update_proj_gap: steps between two projections, each a singular value decomposition.
      scale: factor on projected updates.
      matrices: which leaves, of those with two axes; all when left out.

    State: bases, min(m, n) rank numbers a matrix; tx's of rank max(m, n) numbers in place of m n.
    Differs from optax: which wraps Adam unless told otherwise and turns the update round itself.

    Raises:
      ValueError: if rank or update_proj_gap is not a whole number above 0, or tx reads the parameters.

    References: Zhao et al., ICML 2024, Algorithm 2 (arXiv:2403.03507).
    """
    check_transformation(tx, "galore", alters=True)
    hyper.whole("rank", rank)
    hyper.whole("update_proj_gap", update_proj_gap)
    every = getattr(tx, "every", 1)
    if every > 1:
        raise ValueError(
            f"galore may change its basis at every update, but this method takes {every} gradients to a step; write"
            f" optax.MultiSteps(galore(...), {every})."
        )
    readers = [part.name for part in getattr(tx, "parts", None) or () if part.needs_params]
    if readers:
        raise ValueError(
            f"galore projects gradients only, but {tree.some(readers)} reads the parameters; put it behind, as in"
            " chain(galore(adam(lr)), decay_after(lr, weight_decay))."
        )
    inner = optax.with_extra_args_support(tx)
    factor = hyper.finite("scale", scale)

    def chosen(params: PyTree) -> list[bool]:
        leaves = tree.flatten(params)[0]
        wanted = [True] * len(leaves) if matrices is None else tree.selected(matrices, params, "matrices")
        return [w and _is_matrix(x) and min(x.shape) > rank for w, x in zip(wanted, leaves, strict=True)]

    def init(params: PyTree) -> GaloreState:
        leaves, treedef = tree.flatten(params)
        small, bases = [], []
        for x, low in zip(leaves, chosen(params), strict=True):
            if not low:
                small.append(x)
                bases.append(None if x is None else jnp.zeros((1,) * np.ndim(x), numerics.real_dtype()))
                continue
            short = 0 if x.shape[0] <= x.shape[1] else 1
            dtype = numerics.like(x.dtype, numerics.real_dtype(x.dtype))
            small.append(jax.lax.slice_in_dim(x, 0, rank, axis=short).astype(dtype))
            bases.append(jnp.zeros((x.shape[short], rank), dtype))
        low = treedef.unflatten(small)
        state = inner.init(low)
        if any(x is not y for x, y in zip(small, leaves, strict=True)):
            _check_reads(inner, low, state)
        return GaloreState(jnp.zeros((), jnp.int32), treedef.unflatten(bases), state)

    def update(updates: PyTree, state: GaloreState, params: PyTree = None, **extra: Any) -> tuple[PyTree, GaloreState]:
        gs, treedef = tree.flatten(updates)
        lows, bases = chosen(updates), treedef.flatten_up_to(state.bases)
        renew = state.count % update_proj_gap == 0
        small = list(gs)
        for i, low in enumerate(lows):
            if low:
                wide = _upright(gs[i].astype(bases[i].dtype))
                bases[i] = jax.lax.cond(renew, _singular, lambda g, basis: basis, wide, bases[i])
                small[i] = _upright(jnp.conj(bases[i].T) @ wide, gs[i].shape)
        out, after = inner.update(treedef.unflatten(small), state.inner, None, **extra)
        us = treedef.flatten_up_to(out)
        ps = [None] * len(us) if params is None else treedef.flatten_up_to(params)
        step = hyper.resolve(factor, state.count, state.count + 1, numerics.real_dtype())
        for i, low in enumerate(lows):
            p = ps[i]
            if p is not None and getattr(us[i], "dtype", None) == jax.dtypes.float0:
                us[i] = jnp.zeros_like(p)  # what apply_updates can add to an integer
            if low:
                u = _upright(us[i], gs[i].shape)
                us[i] = _upright(step * (bases[i] @ u), gs[i].shape).astype(gs[i].dtype)
        return treedef.unflatten(us), GaloreState(numerics.increment(state.count), treedef.unflatten(bases), after)

    return Transformation(init, update)


def _check_reads(inner: optax.GradientTransformationExtraArgs, low: PyTree, state: PyTree) -> None:
    """Raise galore's sentence at init where the wrapped transformation cannot do without parameters."""
    try:
        jax.eval_shape(lambda g, s: inner.update(g, s, None), low, state)
    except Exception as error:
        raise ValueError(
            "galore projects gradients only and hands on no parameters, without which this method does not run; put"
            f" what reads them behind, as in chain(galore(adam(lr)), decay_after(lr, weight_decay)). It says: {error}"
        ) from error


def _is_matrix(x: Any) -> bool:
    return getattr(x, "ndim", 0) == 2 and numerics.is_inexact(x.dtype)


def _upright(x: Array, of: tuple[int, ...] | None = None) -> Array:
    """The matrix, or its transpose where the leaf (x itself, or one of shape `of`) has more rows than columns."""
    shape = x.shape if of is None else of
    return x if shape[0] <= shape[1] else x.T


def _singular(g: Array, basis: Array) -> Array:
    return jnp.linalg.svd(g, full_matrices=False)[0][:, : basis.shape[1]]
