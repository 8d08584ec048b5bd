"""Learning rates that find themselves: estimates of how far the solution is, made from the whole tree."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from adamx.ground import numerics
from adamx.ground.hyper import Derived, Scalar, above_zero, at_least_zero, constant, decay, factor_up, finite
from adamx.ground.numerics import divide, one_minus_power
from adamx.ground.part import Part, Seen, Whole, copied, zeros
from adamx.ground.transform import Transformation, lift


def _two(betas: Any) -> tuple[Scalar, Scalar]:
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"betas must be the two decays (b1, b2), but are {betas!r}.")
    return betas[0], betas[1]


def root_of(b2: Scalar) -> Derived:
    """Sqrt(b2), Prodigy's default for beta3."""
    return Derived(lambda t, b2: b2**0.5, decay("b2", b2))


def _wide(x: Array) -> Array:
    return x.astype(numerics.like(x.dtype, numerics.real_dtype(x.dtype)))


def _rate(h: Any, told: Any, bias_correction: bool) -> Array:
    """D lr_k, with Adam's bias corrections of the k-th step that counts."""
    d, k = told["d"], (told["k"] + 1).astype(told["d"].dtype)
    if not bias_correction:
        return d * h["lr"]
    return d * h["lr"] * jnp.sqrt(one_minus_power(h["b2"], k)) / one_minus_power(h["b1"], k)


def _sum(numbers: Any, like: Array) -> Array:
    return sum((x.astype(like.dtype) for x in numbers), jnp.zeros((), like.dtype))


def _grown(d: Array, goal: Array, growth_rate: Any) -> Array:
    """The goal, or d times growth_rate if that is less; without a limit, no product with infinity to differentiate."""
    unlimited = numerics.is_number(growth_rate) and growth_rate == float("inf")
    return goal if unlimited else jnp.minimum(goal, d * growth_rate)


def _kept(found: Array, new: dict[str, Any], told: Any) -> dict[str, Array]:
    """The new numbers where something was found, else those of the last step: the step was never counted."""
    return {name: jnp.where(found, x, told[name]).astype(told[name].dtype) for name, x in new.items()}


def prodigy_distance(
    learning_rate: Scalar,
    betas: tuple[Scalar, Scalar],
    b3: Scalar | None,
    d0: Scalar,
    coefficient: Scalar,
    growth_rate: Scalar,
    safeguard_warmup: bool,
    bias_correction: bool,
) -> Transformation:
    """Prodigy's estimate d of the distance to the solution; the gradient passes unchanged.

    It tells later links `d` (as it is now), `d_last` (as it was), and `rate` (d_last times the learning rate, bias
    corrections included; 0 as long as every gradient was 0, and such steps do not count).

    State: s and origin, float32[params]; d, d_max, r and k, numbers for the whole tree.

    References: Mishchenko & Defazio, ICML 2024, Algorithm 4 (arXiv:2306.06101).
    """
    b1, b2 = _two(betas)
    b3 = root_of(b2) if b3 is None else b3

    def weight(h: Any, told: Any, rate: Array) -> Array:
        return told["d"] / h["d0"] * (told["d"] if safeguard_warmup else rate)

    def grown(h: Any, s: Array, g: Array, weight: Array) -> Array:
        return h["b3"] * s + weight * g

    def ask(h: Any, whole: Whole):
        told, d = whole.told, whole.told["d"]
        rate = _rate(h, told, bias_correction)
        gs, ps, ss = ([_wide(x) for x in xs] for xs in (whole.grads, whole.params, whole.slots["s"]))
        along = _sum(
            (numerics.inner(g, _wide(p0) - p) for g, p, p0 in zip(gs, ps, whole.slots["origin"], strict=True)), d
        )
        r = h["b3"] * told["r"] + d / h["d0"] * rate * along
        w = weight(h, told, rate)
        length = _sum((jnp.sum(numerics.magnitude(grown(h, s, g, w))) for s, g in zip(ss, gs, strict=True)), d)
        found = length > 0
        guess = h["coefficient"] * divide(r, length)
        most = jnp.maximum(told["d_max"], guess)
        start = jnp.where(d == h["d0"], jnp.maximum(d, guess), d)
        new = {"d": _grown(start, most, h["growth_rate"]), "d_max": most, "r": r, "k": told["k"] + 1}
        return _kept(found, new, told) | {"d_last": d, "rate": jnp.where(found, rate, 0), "s_weight": w}

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        return g, {"s": grown(h, slots["s"], g, seen.asked["s_weight"].astype(g.real.dtype)), "origin": slots["origin"]}

    hypers = {
        "lr": finite("learning_rate", learning_rate),
        "b1": decay("b1", b1),
        "b2": decay("b2", b2),
        "b3": decay("beta3", b3),
        "d0": above_zero("estim_lr0", d0),
        "coefficient": above_zero("estim_lr_coef", coefficient),
        "growth_rate": factor_up("growth_rate", growth_rate),
    }
    constant("estim_lr0", d0)
    numbers = {"d": d0, "d_max": d0, "r": 0.0, "k": 0}
    slots = {"s": zeros, "origin": copied}
    exact = frozenset(slots)
    return lift(Part("prodigy_distance", update, slots, hypers, ask, numbers, needs_params=True, exact=exact))


def dadapt_distance(
    learning_rate: Scalar,
    betas: tuple[Scalar, Scalar],
    eps: Scalar,
    d0: Scalar,
    growth_rate: Scalar,
    bias_correction: bool,
) -> Transformation:
    """D-Adaptation's estimate d of the distance to the solution, for Adam; the gradient passes unchanged.

    It reads the second moment `nu` of the chain that it stands in, as it was before this step, and tells later links
    `d`, `rate` (the last d times the learning rate, bias corrections included) and `moves` (1; 0 as long as every
    gradient was 0, and such steps do not count).

    State: s, float32[params]; d, r and k, numbers for the whole tree.

    References: Defazio & Mishchenko, ICML 2023, Algorithm 5 (arXiv:2301.07733).
    """
    b1, b2 = _two(betas)

    def ask(h: Any, whole: Whole):
        told, d, kept = whole.told, whole.told["d"], h["b2"] ** 0.5
        rate = _rate(h, told, bias_correction)
        gs, ss, nus = ([_wide(x) for x in xs] for xs in (whole.grads, whole.slots["s"], whole.slots["nu"]))
        scaled = (divide(s, numerics.sqrt(nu) + h["eps"]) for s, nu in zip(ss, nus, strict=True))
        along = rate * _sum((numerics.inner(g, x) for g, x in zip(gs, scaled, strict=True)), d)
        grown = (kept * s + (1 - kept) * rate * g for s, g in zip(ss, gs, strict=True))
        length = _sum((jnp.sum(numerics.magnitude(s)) for s in grown), d)
        r = kept * told["r"] + (1 - kept) * along
        found = length > 0
        guess = divide(r, (1 - kept) * length)
        new = {"d": jnp.maximum(d, _grown(d, guess, h["growth_rate"])), "r": r, "k": told["k"] + 1}
        return _kept(found, new, told) | {"rate": rate, "moves": jnp.where(found, 1, 0).astype(d.dtype)}

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        kept = h["b2"] ** 0.5
        return g, {"s": kept * slots["s"] + (1 - kept) * seen.asked["rate"].astype(g.real.dtype) * g}

    hypers = {
        "lr": finite("learning_rate", learning_rate),
        "b1": decay("b1", b1),
        "b2": decay("b2", b2),
        "eps": at_least_zero("eps", eps),
        "growth_rate": factor_up("growth_rate", growth_rate),
    }
    numbers = {"d": above_zero("estim_lr0", constant("estim_lr0", d0)), "r": 0.0, "k": 0}
    return lift(Part("dadapt_distance", update, {"s": zeros}, hypers, ask, numbers, exact=frozenset({"s"})))
