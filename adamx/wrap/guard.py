"""Steps that must not happen."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int32, PyTree

from adamx.ground import numerics, tree
from adamx.ground.hyper import whole
from adamx.ground.transform import Transformation, check_transformation


class SkipState(NamedTuple):
    """The state of :func:`skip_nonfinite`.

    Attributes:
      inner: the wrapped transformation's state.
      skipped: int32[], steps skipped so far.
      streak: int32[], steps skipped in a row, 0 after a good step.
      leaf: int32[], position of the first offending leaf of the last skipped step; -1 before there is one.
      limit: int32[], the streak at which :func:`skip_report` gives up; 0 for never.
    """

    inner: PyTree
    skipped: Int32[Array, ""]
    streak: Int32[Array, ""]
    leaf: Int32[Array, ""]
    limit: Int32[Array, ""]


class SkipReport(NamedTuple):
    """What :func:`skip_report` says: steps skipped, steps skipped in a row, the last offending leaf's name or None."""

    skipped: int
    streak: int
    leaf: str | None


class NonFiniteGradients(RuntimeError):  # noqa: N818 (it names what was found)
    """Too many steps in a row had a gradient with infinity or NaN."""


def skip_nonfinite(tx: optax.GradientTransformation, give_up_after: int | None = None) -> Transformation:
    """A step whose gradient holds infinity or NaN changes neither parameters nor state, and is counted.

    The update of a skipped step is -0.0 everywhere, which `optax.apply_updates` adds without changing a bit (of normal
    numbers: XLA on CPU flushes subnormal parameters to zero in any addition). Inside `shard_map` each device judges
    its own shard.

    Args:
      tx: any optax transformation.
      give_up_after: the number of skipped steps in a row at which :func:`skip_report` raises; never when left out.
        It is raised on the host, by that call, so that a training step never waits for the host. It is kept in the
        state, so a restored checkpoint brings its own.

    Raises:
      ValueError: if give_up_after is not a whole number above 0, or (at init, where it is hidden in another) tx is
        `loss_scaling`, which skips by itself.

    >>> import adamx
    >>> tx = skip_nonfinite(adamx.sgd(1.0))
    >>> params = {"w": jnp.ones(2), "b": jnp.ones(1)}
    >>> updates, state = tx.update({"w": jnp.array([1.0, jnp.nan]), "b": jnp.ones(1)}, tx.init(params))
    >>> skip_report(state, params)
    SkipReport(skipped=1, streak=1, leaf='w')
    """
    if give_up_after is not None:
        whole("give_up_after", give_up_after)
    check_transformation(tx, "skip_nonfinite")
    _refuse_scaling(tx)
    inner, guarded = optax.with_extra_args_support(tx), getattr(tx, "guarded", None)

    def init(params: PyTree) -> SkipState:
        def number(n: int) -> Array:
            return jnp.full((), n, jnp.int32)

        kept = inner.init(params)
        _refuse_scaling(kept)
        return SkipState(kept, number(0), number(0), number(-1), number(give_up_after or 0))

    def update(updates: PyTree, state: SkipState, params: PyTree = None, **extra: Any) -> tuple[PyTree, SkipState]:
        # Leaves that optax.masked hides count, so that positions are those in the whole tree.
        leaves = jax.tree.leaves(updates, is_leaf=lambda x: x is None or isinstance(x, optax.MaskedNode))
        positions = [i for i, g in enumerate(leaves) if is_trained(g)]
        bad = [~jnp.all(jnp.isfinite(leaves[i])) for i in positions]
        flags = jnp.stack(bad) if bad else jnp.zeros((1,), bool)
        skip = jnp.any(flags)
        if guarded is not None:
            out, after = guarded(skip, updates, state.inner, params)
            return out, counted(after, skip, flags, positions, state)
        # The inner transformation sees zeros instead, so that derivatives through a skipped step stay finite too.
        calm = jax.tree.map(lambda g: jnp.where(skip, jnp.zeros_like(g), g) if is_trained(g) else g, updates)
        out, after = inner.update(calm, state.inner, params, **extra)
        out = jax.tree.map(
            lambda u: jnp.where(skip, jnp.full_like(u, numerics.NO_CHANGE), u) if is_trained(u) else u, out
        )
        after = jax.tree.map(lambda new, old: jnp.where(skip, old, new), after, state.inner)
        return out, counted(after, skip, flags, positions, state)

    def counted(after: PyTree, skip: Array, flags: Array, positions: list[int], state: SkipState) -> SkipState:
        first = jnp.asarray(positions or [-1], jnp.int32)[jnp.argmax(flags)]
        return SkipState(
            after,
            jnp.where(skip, numerics.increment(state.skipped), state.skipped),
            jnp.where(skip, numerics.increment(state.streak), 0),
            jnp.where(skip, first, state.leaf),
            state.limit,
        )

    made = Transformation(init, update, every=getattr(tx, "every", 1))
    made.lands = getattr(tx, "lands", False)
    seen = getattr(tx, "seen", None)
    if seen is not None:
        made.seen = lambda see, grads, state, params=None: seen(see, grads, state.inner, params)
        made.inside = getattr(tx, "inside", ())
    return made


def is_trained(g: Any) -> bool:
    """Whether this leaf of a gradient tree holds floating or complex numbers."""
    return isinstance(g, (float, complex)) or (hasattr(g, "dtype") and numerics.is_inexact(g.dtype))


def skip_report(state: PyTree, params: PyTree) -> SkipReport:
    """What the guard has skipped; waits for the device, so call it every so many steps.

    Args:
      state: a state with a :class:`SkipState` somewhere in it, such as that of a chain or of `nnx.Optimizer`. Where
        there are several (one for each part of `optax.partition`), the one with the longest streak is reported.
      params: the tree that the optimiser was made for; only its structure is read, for the leaf's name.

    Raises:
      NonFiniteGradients: if as many steps in a row as `give_up_after` said were skipped, by any of them.
      ValueError: if there is no SkipState, it is swept by vmap, or params has too few leaves.
    """
    found = [s for s in jax.tree.leaves(state, is_leaf=_is_guard) if _is_guard(s)]
    if not found:
        raise ValueError("this state holds no SkipState: wrap the transformation in skip_nonfinite(...) first.")
    arrays = [[np.asarray(jax.tree.leaves(x)[0]) for x in guard[1:]] for guard in found]
    if any(x.shape for guard in arrays for x in guard):
        raise ValueError("this state is swept by vmap: report on one of its runs, jax.tree.map(lambda x: x[i], state).")
    guards = [[int(x) for x in guard] for guard in arrays]
    stuck = [guard for guard in guards if guard[3] and guard[1] >= guard[3]]
    skipped, streak, leaf, limit = max(stuck or guards, key=lambda guard: (guard[1], guard[0]))
    names = tree.names(params)
    if leaf >= len(names):
        raise ValueError(f"leaf {leaf} was not finite, but params has {len(names)} leaves; pass the whole tree.")
    name = names[leaf] if leaf >= 0 else None
    if stuck:
        raise NonFiniteGradients(
            f"{streak} steps in a row had non-finite gradients (limit {limit}, {skipped} skipped in all), the last"
            f" first in leaf {name!r}; parameters and state are those before the first of them. Lower the learning"
            " rate, clip, or look at that layer's inputs."
        )
    return SkipReport(skipped, streak, name)


def _refuse_scaling(x: Any) -> None:
    """Raise where x, a transformation or a state, is that of loss_scaling or holds it."""
    scales_loss = lambda node: hasattr(node, "scales_loss")
    if any(map(scales_loss, jax.tree.leaves(x, is_leaf=scales_loss))):
        raise ValueError(
            "what skips steps around loss_scaling would hide from it the gradients that lower its scale; it skips those"
            " steps itself: leave the outer skip_nonfinite or loss_scaling out, and say give_up_after to loss_scaling."
        )


def _is_guard(x: Any) -> bool:
    return isinstance(x, SkipState)
