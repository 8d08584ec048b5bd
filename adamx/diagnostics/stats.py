"""The statistics of one leaf inside jit: sums and maxima over its numbers, and what is made of them. No trees.

Every statistic of :mod:`adamx.diagnostics.metrics` is a function of sums (squares, products, counts) and of maxima, all
in float32, so that tiles and devices add up and nothing as large as a leaf is held.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from adamx.diagnostics.metrics import EDGES, LEAF
from adamx.ground import numerics
from adamx.ground.leaf import Glance
from adamx.ground.part import Part

Sums = dict[str, Float32[Array, "..."]]
TINY = 1e-30  # what norms that are divided by are at least
SATURATED = 0.9
COASTING = 0.1


def squares(x: Array) -> Array:
    """The sum of |x|^2, float32[]."""
    return jnp.sum(numerics.abs_square(x), dtype=jnp.float32)


def _dot(a: Array, b: Array) -> Array:
    return jnp.sum(_product(a, b), dtype=jnp.float32)


def _product(a: Array, b: Array) -> Array:
    return jnp.real(jnp.conj(a) * b)


def _count(where: Array) -> Array:
    return jnp.sum(where, dtype=jnp.float32)


def _bad(x: Array) -> Array:
    return _count(~jnp.isfinite(x))


def wide(x: Array) -> Array:
    """X in at least float32."""
    return x.astype(numerics.like(x.dtype, numerics.real_dtype(x.dtype)))


def _spread(of: str, x: Array) -> Sums:
    """How many numbers are at most each of the edges; NaN is above all."""
    edges = jnp.asarray(EDGES[of], x.dtype)
    return {f"spread {of}": jnp.sum(x.reshape(-1)[:, None] <= edges, axis=0, dtype=jnp.float32)}


def of_any(grad: Array, update: Array, param: Any) -> tuple[Sums, Sums]:
    """`(sums, maxima)` of what any optimiser has: the gradient, the update and the parameter of one leaf."""
    grad, update = wide(grad), wide(update)
    after = None
    if param is not None:  # as apply_updates adds
        added = param.astype(jnp.promote_types(param.dtype, update.dtype)) + update
        after = wide(jax.lax.optimization_barrier(added.astype(param.dtype)))
        param = wide(param)
    return _of_step(grad, update, param, after), _of_grad_most(grad)


def of_step(glance: Glance, parts: Sequence[Part], hyper: Sequence[Any], t: Array) -> tuple[Sums, Sums]:
    """`(sums, maxima)` of one stage of a method made of adamx's parts; as `Program.seen` calls it.

    Args:
      glance: the stage on one leaf or tile.
      parts: the stage's.
      hyper: of each part, in this step.
      t: int32[], this step, from 1.
    """
    return _of_stage(glance, parts, hyper, t, deep=False)


def of_step_deep(glance: Glance, parts: Sequence[Part], hyper: Sequence[Any], t: Array) -> tuple[Sums, Sums]:
    """As :func:`of_step`, with distributions."""
    return _of_stage(glance, parts, hyper, t, deep=True)


def _of_stage(glance: Glance, parts: Sequence[Part], hyper: Sequence[Any], t: Array, deep: bool) -> tuple[Sums, Sums]:
    sums: Sums = {}
    maxima = _of_grad_most(glance.grad)
    fed = [x for tap, x in glance.taps if tap == "moments"]
    keepers = [(part, h) for part, h in zip(parts, hyper, strict=True) if part.tap == "moments"]
    for g, (part, h) in zip(fed, keepers, strict=True):
        sums = {"entering": squares(g)} | sums | _of_moments(glance, part, h, g, t, deep)
    rate = next((h["factor"] for part, h in zip(parts, hyper, strict=True) if part.tap == "rate"), None)
    if rate is not None:
        maxima["rate"] = jnp.abs(jnp.asarray(rate, jnp.float32))
        direction, decay = _direction(glance)
        sums |= {"direction": squares(direction), "saturated": _count(jnp.abs(direction) > SATURATED)}
        sums |= {} if decay is None else {"decay": squares(decay * rate)}
        sums |= _spread("direction", jnp.real(direction)) if deep else {}
    if glance.ends:
        sums |= _of_step(glance.grad, glance.update, glance.param, glance.after)
        sums |= _spread("log2_grad", _log2(glance.grad)) if deep else {}
        if deep and glance.param is not None:
            sums |= _spread("log2_ratio", _log2(glance.update) - _log2(glance.param))
    return sums, maxima


def _log2(x: Array) -> Array:
    """Of the magnitude; -inf for zero, and for what is subnormal, which compilers may read as zero."""
    return jnp.log2(numerics.magnitude(x))


def _of_grad_most(grad: Array) -> Sums:
    size = numerics.magnitude(grad)
    return {"grad": jnp.max(size, initial=0).astype(jnp.float32)}


def _of_step(grad: Array, update: Array, param: Any, after: Any) -> Sums:
    """What needs no moments."""
    sums = {
        "grad": squares(grad),
        "zero_grad": _count(grad == 0),
        "bad_grad": _bad(grad),
        "update": squares(update),
        "bad_update": _bad(update),
        "update_grad": -_dot(update, grad),
    }
    if param is None:
        return sums
    moves = update != 0
    return sums | {
        "param": squares(param),
        "bad_param": _bad(param),
        "moves": _count(moves),
        "stalled": _count(moves & (after == param)),
        "lost": squares((after - param) - update),
    }


def _direction(glance: Glance) -> tuple[Array, Any]:
    """What reaches the learning rate, without the decay that was added to it; and that decay."""
    taps = [tap for tap, _ in glance.taps]
    behind = len(taps) - 1 - taps[::-1].index("moments") if "moments" in taps else -1
    at_rate = taps.index("rate")
    at_decay = next((i for i in range(behind + 1, at_rate) if taps[i] == "decay"), None)
    end = glance.taps[at_rate][1]
    if at_decay is None:
        return end, None
    direction = glance.taps[at_decay][1]
    return direction, end - direction


class _Average(NamedTuple):
    """A moment that is an exponential mean: its decay, and whether it is fed the gradient itself and corrected."""

    decay: Any
    direct: bool
    corrected: bool


def _average(h: Any) -> _Average | None:
    """What its hyper-parameters say of a moment; None where it is no exponential mean."""
    for i, own in enumerate(h):
        if isinstance(own, Mapping) and {"decay", "gap"} <= own.keys():
            return _Average(own["decay"], i == 0, len(h) > i + 1 or "debias" in own)
    return None


def _of_moments(glance: Glance, part: Part, h: Any, g: Array, t: Array, deep: bool) -> Sums:
    """What one `scale_by_moments` keeps, under the names mu and nu."""
    time = t.astype(jnp.float32)
    shaped = lambda slot: slot in part.slots and glance.new[slot].shape == g.shape
    means = {slot: _average(h["moments"].get(slot, ())) for slot in ("mu", "nu") if shaped(slot)}
    mu, nu = means.get("mu"), means.get("nu") if "nu" in part.positive else None
    sums: Sums = {}
    stored = {slot for slot in ("mu", "nu") if slot in part.storage.codecs and shaped(slot)}
    if mu is not None:
        sums |= _of_mean(g, glance.old["mu"]) | _stale("mu", glance)
    if nu is not None:
        root = jnp.sqrt(numerics.one_minus_power(nu.decay, time))  # of the correction
        eps = h["rule"].get("eps", 0.0)
        eps = eps if nu.corrected else eps / root
        sums |= _of_second(g, glance, nu, eps, root, time) | _stale("nu", glance)
        sums |= _spread("log2_root_nu", _log2(glance.new["nu"]) / 2 - jnp.log2(root)) if deep else {}
        if mu is not None:
            mean = numerics.magnitude(glance.new["mu"]) / numerics.one_minus_power(mu.decay, time)
            sums["ratio"] = jnp.sum(_over(mean, jnp.sqrt(glance.new["nu"]) / root), dtype=jnp.float32)
            if stored:
                sums |= _of_codecs(glance, eps * root)
    for slot in stored:
        sums |= {f"{slot} error": squares(_rooted(slot, glance.stored[slot]) - _rooted(slot, glance.new[slot]))}
        sums |= {f"{slot} size": squares(_rooted(slot, glance.new[slot]))}
    return sums


def _rooted(slot: str, x: Array) -> Array:
    return jnp.sqrt(x) if slot == "nu" else x


def _over(a: Array, b: Array) -> Array:
    return a / jnp.maximum(b, TINY)


def _of_mean(g: Array, before: Array) -> Sums:
    product = _product(before, g)
    return {
        "mean_grad": jnp.sum(product, dtype=jnp.float32),
        "mean": squares(before),
        "signed": _count(product != 0),
        "agreeing": _count(product > 0),
    }


def _stale(slot: str, glance: Glance) -> Sums:
    should = glance.new[slot] != glance.old[slot]
    return {
        f"{slot} moves": _count(should),
        f"{slot} stale": _count(should & (glance.stored[slot] == glance.old[slot])),
    }


def _of_second(g: Array, glance: Glance, nu: _Average, eps: Any, root: Array, time: Array) -> Sums:
    v = glance.new["nu"]
    corrected = jnp.sqrt(v) / root
    sums = {
        "eps_half": _count(corrected < eps),
        "eps_tenth": _count(corrected < 10 * eps),
        "nu_zero": _count((glance.stored["nu"] == 0) & (v != 0)),
    }
    if not nu.direct:
        return sums
    least = jnp.square(jnp.maximum(eps, TINY**0.5))
    square, now = numerics.abs_square(g), v / jnp.square(root)
    earlier = glance.old["nu"] / numerics.one_minus_power(nu.decay, jnp.maximum(time - 1, 1))
    before = jnp.where(time > 1, jnp.sum(square / jnp.maximum(earlier, least), dtype=jnp.float32), jnp.nan)
    return sums | {
        "surprise": jnp.sum(square / jnp.maximum(now, least), dtype=jnp.float32),
        "surprise_before": before.astype(jnp.float32),
        "coasting": _count(square < COASTING * now),
    }


def _of_codecs(glance: Glance, eps: Any) -> Sums:
    ratio = lambda slots: _over(slots["mu"], jnp.sqrt(slots["nu"]) + eps)
    exact = ratio(glance.new)
    return {"ratio error": squares(ratio(glance.stored) - exact), "ratio size": squares(exact)}


def finished(sums: Mapping[str, Array], maxima: Mapping[str, Array], n: Array) -> dict[str, Array]:
    """The statistics of :data:`adamx.diagnostics.metrics.LEAF` from sums over whole leaves; NaN where there is none.

    Args:
      sums, maxima: by name, float32[...]; with nan where a leaf has none.
      n: float32[...], how many numbers each leaf has.
    """
    nan = jnp.full_like(n, jnp.nan)
    s = lambda name: sums.get(name, nan)
    norm = lambda name: jnp.sqrt(s(name))
    share = lambda a, b: jnp.where(b > 0, a / jnp.maximum(b, 1), jnp.where(jnp.isnan(b), jnp.nan, 0))
    ratio = lambda a, b: jnp.where(a == 0, 0, a / jnp.maximum(b, TINY))
    rms = lambda name: jnp.sqrt(share(s(name), n))
    of = {
        "grad_rms": rms("grad"),
        "grad_max": maxima.get("grad", nan),
        "zero_grad": share(s("zero_grad"), n),
        "bad_grad": s("bad_grad"),
        "bad_update": s("bad_update"),
        "bad_param": s("bad_param"),
        "clipped": jnp.where(s("grad") == 0, 1, norm("entering") / norm("grad")),
        "param_rms": rms("param"),
        "update_ratio": ratio(norm("update"), norm("param")),
        "update_cosine": ratio(s("update_grad"), norm("update") * norm("grad")),
        "decay_share": ratio(norm("decay"), norm("update")),
        "direction_rms": rms("direction"),
        "saturated": share(s("saturated"), n),
        "momentum_cosine": ratio(s("mean_grad"), norm("mean") * norm("entering")),
        "sign_agreement": jnp.where(s("signed") == 0, 0.5, s("agreeing") / s("signed")),
        "signal_to_noise": share(s("ratio"), n),
        "surprise": rms("surprise"),
        "surprise_before": rms("surprise_before"),
        "coasting": share(s("coasting"), n),
        "eps_half": share(s("eps_half"), n),
        "eps_tenth": share(s("eps_tenth"), n),
        "nu_zero": share(s("nu_zero"), n),
        "nu_stale": share(s("nu stale"), s("nu moves")),
        "mu_stale": share(s("mu stale"), s("mu moves")),
        "mu_error": ratio(norm("mu error"), norm("mu size")),
        "nu_error": ratio(norm("nu error"), norm("nu size")),
        "direction_error": ratio(norm("ratio error"), norm("ratio size")),
        "stalled": share(s("stalled"), s("moves")),
        "lost": ratio(norm("lost"), norm("update")),
    }
    assert of.keys() == LEAF.keys()
    return of
