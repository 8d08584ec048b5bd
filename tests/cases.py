"""The one table of methods. A property that a method lacks is a column here, not an `if` in a test."""

from collections.abc import Callable
from inspect import signature
from typing import Any, NamedTuple

import jax.numpy as jnp
import pytest
from oracles.adagrad import adagrad
from oracles.adam import adam, adamw
from oracles.adamax import adamax
from oracles.amsgrad import amsgrad
from oracles.nadam import nadam, nadamw
from oracles.rmsprop import rmsprop
from oracles.sgd import sgd

import adamx

LR = 0.01


class Case(NamedTuple):
    """One row.

    Attributes:
      name: of the test.
      factory: the public factory; called with `LR` first and `args`.
      args: keyword arguments of the factory.
      oracle: float64 NumPy, called with lr and the keywords in `says`.
      says: the oracle's keywords, where they differ from `args`.
      moments: names of the state's moments, with float32 parameters' bytes in `4 * len(moments)`.
      ulps: how far float32 may be from the oracle, in units of the last place (2^-24) of the larger of learning rate
        and longest update. 16 covers the roundings of 60 steps; a momentum of 0.9 sums ten of them, and a centred
        second moment is a difference of two (its condition is 1 / eps).
    """

    name: str
    factory: Callable[..., Any]
    args: dict[str, Any]
    oracle: Callable[..., Any]
    moments: tuple[str, ...]
    says: dict[str, Any] | None = None
    ulps: float = 16

    def make(self, learning_rate=LR):
        return self.factory(learning_rate, **self.args)

    def expect(self, grads, p, lr=LR):
        return list(self.oracle(grads, p, lr=lr, **(self.args if self.says is None else self.says)))


METHODS = [
    Case("sgd", adamx.sgd, {}, sgd, ()),
    Case("sgd-momentum", adamx.sgd, {"momentum": 0.9}, sgd, ("trace",), ulps=64),
    Case("sgd-nesterov", adamx.sgd, {"momentum": 0.9, "nesterov": True}, sgd, ("trace",), ulps=64),
    Case("sgd-dampened", adamx.sgd, {"momentum": 0.9, "dampening": 0.5}, sgd, ("trace",), ulps=64),
    Case("adagrad", adamx.adagrad, {}, adagrad, ("nu",)),
    Case("adagrad-torch", adamx.adagrad, {"initial_accumulator_value": 0.0, "eps": 1e-10, "eps_in_sqrt": False},
         adagrad, ("nu",), {"start": 0.0, "eps": 1e-10, "eps_in_sqrt": False}),
    Case("rmsprop", adamx.rmsprop, {}, rmsprop, ("nu",)),
    Case("rmsprop-centered", adamx.rmsprop, {"centered": True, "eps": 0.1}, rmsprop, ("mu", "nu"), ulps=256),
    Case("rmsprop-momentum", adamx.rmsprop, {"momentum": 0.9, "eps_in_sqrt": False}, rmsprop, ("nu", "trace"), ulps=64),
    Case("rmsprop-nesterov", adamx.rmsprop, {"momentum": 0.9, "nesterov": True}, rmsprop, ("nu", "trace"), ulps=64),
    Case("adam", adamx.adam, {}, adam, ("mu", "nu")),
    Case("adam-eps", adamx.adam, {"b1": 0.8, "b2": 0.95, "eps": 1e-2, "eps_root": 1e-3}, adam, ("mu", "nu")),
    Case("adam-no-b1", adamx.adam, {"b1": 0.0}, adam, ("mu", "nu")),
    Case("adam-no-eps", adamx.adam, {"eps": 0.0}, adam, ("mu", "nu")),
    Case("adamw", adamx.adamw, {"weight_decay": 0.1}, adamw, ("mu", "nu")),
    Case("adamw-paper", adamx.adamw, {"weight_decay": 1e-3, "base_lr": 0.1}, adamw, ("mu", "nu")),
    Case("amsgrad", adamx.amsgrad, {"b2": 0.9}, amsgrad, ("mu", "nu", "nu_peak")),
    Case("amsgrad-torch", adamx.amsgrad, {"b2": 0.9, "peak_of": "raw"}, amsgrad, ("mu", "nu", "nu_peak")),
    Case("amsgrad-paper", adamx.amsgrad, {"b2": 0.9, "bias_correction_mu": False, "bias_correction_nu": False},
         amsgrad, ("mu", "nu", "nu_peak"), {"b2": 0.9, "corrected": False}),
    Case("nadam", adamx.nadam, {}, nadam, ("mu", "nu")),
    Case("nadam-torch", adamx.nadam, {"momentum_decay": 0.004}, nadam, ("mu", "nu")),
    Case("nadamw", adamx.nadamw, {"weight_decay": 0.1}, nadamw, ("mu", "nu")),
    Case("adamax", adamx.adamax, {}, adamax, ("mu", "nu")),
]  # fmt: skip


class Wrapped(NamedTuple):
    """A link or wrapper that must keep the same contracts but has no oracle of its own."""

    name: str
    make: Callable[[], Any]
    complex_update: bool = True  # whether its output is an update for a complex parameter


def adam_from_links():
    return adamx.chain(
        adamx.scale_by_moments(adamx.rules.ratio(1e-8), mu=adamx.ema(0.9), nu=adamx.ema(0.999, power=2)),
        adamx.bias_correct(0.9, 0.999),
        adamx.scale_by_lr(LR),
    )


LINKS = [
    Wrapped("ema", lambda: adamx.ema(0.9)),
    Wrapped("ema-lag", lambda: adamx.ema(0.9, power=2, lag=True), complex_update=False),
    Wrapped("trace", lambda: adamx.trace(0.9)),
    Wrapped("decayed_max", lambda: adamx.decayed_max(0.9)),
    Wrapped("difference", lambda: adamx.difference()),
    Wrapped("scale_by_moments", lambda: adamx.scale_by_moments(mu=adamx.ema(0.9))),
    Wrapped("mix", lambda: adamx.scale_by_moments(
        adamx.rules.ratio(1e-8), mu=adamx.ema(0.9), nu=adamx.chain(adamx.mix(jnp.subtract, "mu"), adamx.ema(0.9, 2)))),
    Wrapped("bias_correct", lambda: adamx.bias_correct(0.9, 0.999)),
    Wrapped("scale_by_lr", lambda: adamx.scale_by_lr(LR)),
    Wrapped("scale_by_lr-schedule", lambda: adamx.scale_by_lr(adamx.schedules.warmup_cosine(LR, 2, 10))),
    Wrapped("add_decayed_weights", lambda: adamx.add_decayed_weights(0.1)),
    Wrapped("clip", lambda: adamx.clip(0.5)),
    Wrapped("clip_by_global_norm", lambda: adamx.clip_by_global_norm(0.5)),
    Wrapped("clip_by_leaf_norm", lambda: adamx.clip_by_leaf_norm(0.5)),
    Wrapped("adaptive_grad_clip", lambda: adamx.adaptive_grad_clip(0.01)),
    Wrapped("adam-from-links", adam_from_links),
    Wrapped("clipped-twice", lambda: adamx.chain(
        adamx.clip_by_global_norm(1.0), adamx.adam(LR), adamx.clip_by_global_norm(0.01))),
    Wrapped("all-scheduled", lambda: adamx.adamw(
        lambda n: LR / (n + 1), lambda n: 0.9 - 0.1 / (n + 1), lambda n: 0.99, lambda n: 1e-8,
        weight_decay=lambda n: LR)),
    Wrapped("skip_nonfinite", lambda: adamx.skip_nonfinite(adamx.adam(LR))),
    Wrapped("store_state", lambda: adamx.store_state(adamx.adam(LR), mu=jnp.bfloat16)),
]  # fmt: skip

MERGED = [case for case in METHODS + LINKS if case.make().parts is not None]  # made of parts only
ALL = [Wrapped(case.name, case.make) for case in METHODS] + LINKS

# One method for each layout of the state, with and without weight decay: enough where a test depends on nothing else.
LAYOUTS = list({(c.moments, "weight_decay" in signature(c.factory).parameters): c for c in reversed(METHODS)}.values())

each_layout = pytest.mark.parametrize("case", LAYOUTS, ids=lambda c: c.name)
each_method = pytest.mark.parametrize("case", METHODS, ids=lambda c: c.name)
each = pytest.mark.parametrize("case", ALL, ids=lambda c: c.name)
