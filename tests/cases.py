"""The one table of methods. A property that a method lacks is a column here, not an `if` in a test."""

from collections.abc import Callable
from inspect import signature
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from oracles.acprop import acprop
from oracles.adabelief import adabelief
from oracles.adabound import adabound, amsbound
from oracles.adafactor import adafactor
from oracles.adagrad import adagrad
from oracles.adam import adam, adamw
from oracles.adam_atan2 import adam_atan2
from oracles.adam_mini import adam_mini
from oracles.adamax import adamax
from oracles.adamaxw import adamaxw
from oracles.adamc import adamc
from oracles.adamod import adamod
from oracles.adamp import adamp
from oracles.adamx import adamx as adamx_oracle
from oracles.adan import adan
from oracles.adapnm import adapnm
from oracles.adashift import adashift
from oracles.ademamix import ademamix
from oracles.adopt import adopt
from oracles.amsgrad import amsgrad
from oracles.came import came
from oracles.dadapt_adam import dadapt_adam
from oracles.grams import grams
from oracles.lamb import lamb
from oracles.laprop import laprop
from oracles.lion import lion
from oracles.madgrad import madgrad
from oracles.mars import mars
from oracles.muon import muon
from oracles.nadam import nadam, nadamw
from oracles.novograd import novograd
from oracles.padam import padam
from oracles.pnm import pnm
from oracles.prodigy import prodigy
from oracles.qhadam import qhadam
from oracles.radam import radam
from oracles.rmsprop import rmsprop
from oracles.sgd import sgd
from oracles.sign_sgd import sign_sgd
from oracles.signum import signum
from oracles.simplified_ademamix import simplified_ademamix
from oracles.sm3 import sm3
from oracles.soap import soap
from oracles.stable_adamw import stable_adamw
from oracles.tiger import tiger
from oracles.yogi import yogi

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
        and longest update. 16 covers the roundings of 60 steps; a momentum of 0.9 sums ten of them (64, as
        MADGRAD's sums of all steps), a centred second moment is a difference of two (its condition is 1 / eps), AdamX's
        averages are not corrected, so that early steps are several rates long (32), and each of Muon's five iterations
        multiplies the error of a small singular value by up to 3.44 (512, the fifth power).
      wide: compared in float64, at 1e-9 of the longest update: an eigenbasis that is rounded otherwise is as good, but
        another.
      ill_posed: streams of `test_paper` on which the method has no one answer. SOAP's Gram matrices of gradients that
        are always the same have a null space whose basis is rounding: the oracle itself moves by a fifth of a step when
        its gradients change by 1e-15.
      shape: of the leaf that the oracle is compared on.
      linear: whether its update is a multiple of the learning rate.
      contracts: whether it squares a sum with a product in it, which XLA rounds once or twice as it sees fit.
      reduces: over a leaf or the tree (a norm, a mean, a product of matrices), so that sums may round otherwise where
        leaves are sharded, and a device that sees its shard only sees another norm.
      starts_moving: its first moment does not start at 0, so that a gradient of 0 moves it too.
      smaller: those of `moments` that are smaller than the parameters.
      scalars: names of the state's numbers for the whole tree.
    """

    name: str
    factory: Callable[..., Any]
    args: dict[str, Any]
    oracle: Callable[..., Any]
    moments: tuple[str, ...]
    says: dict[str, Any] | None = None
    ulps: float = 16
    wide: bool = False
    ill_posed: tuple[str, ...] = ()
    shape: tuple[int, ...] = (128,)
    linear: bool = True
    contracts: bool = False
    reduces: bool = False
    starts_moving: bool = False
    smaller: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()
    complex_update: bool = True

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
    Case("adabelief", adamx.adabelief, {}, adabelief, ("mu", "nu")),
    Case("adabelief-eps", adamx.adabelief, {"b2": 0.99, "eps": 1e-3, "eps_root": 1e-6}, adabelief, ("mu", "nu")),
    Case("adabelief-nesterov", adamx.adabelief, {"nesterov": True}, adabelief, ("mu", "nu")),
    Case("yogi", adamx.yogi, {}, yogi, ("mu", "nu"), starts_moving=True),
    Case("radam", adamx.radam, {}, radam, ("mu", "nu")),
    Case("radam-b2", adamx.radam, {"b2": 0.9, "eps": 1e-3, "eps_root": 1e-3, "threshold": 4.0}, radam, ("mu", "nu")),
    Case("radam-nesterov", adamx.radam, {"b2": 0.99, "nesterov": True}, radam, ("mu", "nu")),
    Case("adamaxw", adamx.adamaxw, {"weight_decay": 0.1}, adamaxw, ("mu", "nu")),
    Case("adamc", adamx.adamc, {"weight_decay": 0.1, "max_lr": 0.02}, adamc, ("mu", "nu"), linear=False),
    Case("laprop", adamx.laprop, {}, laprop, ("mu", "nu"), scalars=("rate_mean",)),
    Case("laprop-decayed", adamx.laprop, {"eps": 1e-8, "weight_decay": 0.1}, laprop, ("mu", "nu"),
         scalars=("rate_mean",), linear=False),
    Case("adopt", adamx.adopt, {}, adopt, ("mu", "nu")),
    Case("adopt-nesterov", adamx.adopt, {"nesterov": True, "use_clipping": False}, adopt, ("mu", "nu")),
    Case("ademamix", adamx.ademamix, {"b3": 0.99, "weight_decay": 0.1}, ademamix, ("mu", "nu", "slow")),
    Case("simplified_ademamix", adamx.simplified_ademamix, {"alpha": 10.0, "weight_decay": 0.1}, simplified_ademamix,
         ("mu", "nu")),
    Case("adan", adamx.adan, {"weight_decay": 0.1}, adan, ("diff", "mu", "nu", "vel"), contracts=True),
    Case("adan-proximal", adamx.adan, {"eps_root": 0.0, "weight_decay": 0.1, "proximal": True}, adan,
         ("diff", "mu", "nu", "vel"), linear=False, contracts=True),
    Case("acprop", adamx.acprop, {"weight_decay": 0.1}, acprop, ("mu", "nu")),
    Case("adapnm", adamx.adapnm, {"weight_decay": 0.1}, adapnm, ("mu", "mu_even", "nu", "nu_peak")),
    Case("adapnm-plain", adamx.adapnm, {"b3": 0.5, "amsgrad": False}, adapnm, ("mu", "mu_even", "nu")),
    Case("adamod", adamx.adamod, {"b3": 0.9, "weight_decay": 0.1}, adamod, ("limit", "mu", "nu")),
    Case("adabound", adamx.adabound, {"gamma": 0.05}, adabound, ("mu", "nu")),
    Case("amsbound", adamx.amsbound, {"gamma": 0.05}, amsbound, ("mu", "nu", "nu_peak")),
    Case("padam", adamx.padam, {}, padam, ("mu", "nu", "nu_peak")),
    Case("padam-plain", adamx.padam, {"partial": 0.125, "amsgrad": False}, padam, ("mu", "nu")),
    Case("qhadam", adamx.qhadam, {"nu2": 0.9, "weight_decay": 0.1}, qhadam, ("mu", "nu")),
    Case("adam_atan2", adamx.adam_atan2, {"weight_decay": 0.1}, adam_atan2, ("mu", "nu")),
    Case("adashift", adamx.adashift, {"keep_num": 3}, adashift, ("nu", "past", "past_at1", "past_at2"), reduces=True),
    Case("adashift-elementwise", adamx.adashift, {"keep_num": 2, "spatial_max": False}, adashift,
         ("nu", "past", "past_at1")),
    Case("adamx", adamx.adamx, {"b1_decay": 0.9}, adamx_oracle, ("mu", "nu", "nu_peak"), ulps=32),
    Case("lion", adamx.lion, {"weight_decay": 0.1}, lion, ("mu",)),
    Case("signum", adamx.signum, {}, signum, ("mu",)),
    Case("lamb", adamx.lamb, {"weight_decay": 0.1}, lamb, ("mu", "nu"), reduces=True),
    Case("novograd", adamx.novograd, {"weight_decay": 0.1}, novograd, ("mu", "nu"), smaller=("nu",), reduces=True),
    Case("adamp", adamx.adamp, {"weight_decay": 0.1, "channel": 0}, adamp, ("mu", "nu"), {"weight_decay": 0.1},
         shape=(16, 8), reduces=True),
    Case("adamp-nesterov", adamx.adamp, {"delta": 2.0, "nesterov": True, "channel": 0}, adamp, ("mu", "nu"),
         {"delta": 2.0, "nesterov": True}, shape=(16, 8),
         reduces=True),
    Case("stable_adamw", adamx.stable_adamw, {"weight_decay": 0.1}, stable_adamw, ("mu", "nu"), reduces=True),
    Case("mars", adamx.mars, {"weight_decay": 0.1}, mars, ("diff", "mu", "nu"), reduces=True),
    Case("madgrad", adamx.madgrad, {}, madgrad, ("mu", "nu", "origin"), ulps=64, linear=False),
    Case("adafactor", adamx.adafactor, {"min_dim_size_to_factor": 2}, adafactor, ("nu", "nu_col"), shape=(16, 8),
         smaller=("nu", "nu_col"), reduces=True),
    Case("adafactor-whole", adamx.adafactor, {"factored": False}, adafactor, ("nu",), {}, reduces=True),
    Case("came", adamx.came, {"weight_decay": 0.1}, came, ("mu", "nu", "nu_col", "res", "res_col"), shape=(16, 8),
         smaller=("nu", "nu_col", "res", "res_col"), reduces=True),
    Case("sm3", adamx.sm3, {}, sm3, ("mu", "nu"), shape=(16, 8), smaller=("nu",), reduces=True),
    Case("prodigy", adamx.prodigy, {"estim_lr0": 1e-3, "weight_decay": 0.1}, prodigy, ("mu", "nu", "origin", "s"),
         {"d0": 1e-3, "weight_decay": 0.1}, scalars=("d", "d_max", "k", "r"), reduces=True),
    Case("dadapt_adam", adamx.dadapt_adam, {"estim_lr0": 1e-3, "weight_decay": 0.1}, dadapt_adam, ("mu", "nu", "s"),
         {"d0": 1e-3, "weight_decay": 0.1}, scalars=("d", "k", "r"), reduces=True),
    Case("muon", adamx.muon, {"weight_decay": 0.1}, muon, ("mu", "nu"), shape=(16, 8), smaller=("nu",),
         ulps=512, reduces=True),
    Case("soap", adamx.soap, {"precondition_frequency": 5}, soap, ("basis", "gram", "mu", "nu"), wide=True,
         ill_posed=("constant", "sign-flipping"), shape=(4, 4, 8),
         smaller=("basis", "gram"), reduces=True),
    Case("tiger", adamx.tiger, {}, tiger, ("mu",)),
    Case("grams", adamx.grams, {"weight_decay": 0.1}, grams, ("mu", "nu")),
    Case("adam_mini", adamx.adam_mini, {"weight_decay": 0.1, "axes": 1}, adam_mini, ("mu", "nu"), shape=(16, 8),
         smaller=("nu",), reduces=True),
    Case("adam_mini-leaf", adamx.adam_mini, {"axes": None}, adam_mini, ("mu", "nu"), shape=(16, 8), smaller=("nu",),
         reduces=True),
    Case("pnm", adamx.pnm, {"b0": 0.5}, pnm, ("mu", "mu_even"), {"b2": 0.5}),
    Case("sign_sgd", adamx.sign_sgd, {}, sign_sgd, ()),
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
    Wrapped("ema-debiased", lambda: adamx.ema(0.9, debias=True)),
    Wrapped("additive", lambda: adamx.additive(0.9, debias=True), complex_update=False),
    Wrapped("alternating", lambda: adamx.alternating(0.9)),
    Wrapped("cover", lambda: adamx.cover(), complex_update=False),
    Wrapped("origin", lambda: adamx.origin()),
    Wrapped("factored", lambda: adamx.ema(0.9, 2, of=adamx.projections.factored()), complex_update=False),
    Wrapped("decay_after", lambda: adamx.decay_after(LR, 0.1)),
    Wrapped("cautious-decay", lambda: adamx.add_decayed_weights(0.1, cautious=True)),
    Wrapped("clip_by_leaf_rms", lambda: adamx.clip_by_leaf_rms(0.5)),
    Wrapped("scale_by_param_rms", lambda: adamx.scale_by_param_rms()),
    Wrapped("trust_ratio", lambda: adamx.trust_ratio(10.0)),
    Wrapped("centralize", lambda: adamx.centralize()),
    Wrapped("clip_spikes", lambda: adamx.clip_spikes(warmup=1)),
    Wrapped("clip_spikes-leaf", lambda: adamx.clip_spikes(warmup=1, per_leaf=True)),
    Wrapped("add_noise", lambda: adamx.add_noise(1e-4)),
    Wrapped("cautious", lambda: adamx.cautious(adamx.adam(LR))),
    Wrapped("schedule_free", lambda: adamx.schedule_free(adamx.adamw(LR, b1=0.0), LR)),
    Wrapped("lookahead", lambda: adamx.lookahead(adamx.adam(LR), 2)),
    Wrapped("ema_of_params", lambda: adamx.ema_of_params(adamx.adam(LR))),
    Wrapped("accumulate", lambda: adamx.accumulate(adamx.adam(LR), 2)),
    Wrapped("galore", lambda: adamx.galore(adamx.adam(LR), rank=2)),
    Wrapped("by_leaf", lambda: adamx.by_leaf(adamx.matrices(), adamx.adam(LR), adamx.lion(LR))),
    Wrapped("store_state", lambda: adamx.store_state(adamx.adam(LR), mu=jnp.bfloat16, min_size=0)),
]  # fmt: skip

# Made of parts only, none of which reads what another has found out about the tree.
MERGED = [c for c in METHODS + LINKS if c.make().parts is not None and "d" not in getattr(c, "scalars", ())]
ALL = METHODS + LINKS

PROBE = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}


def kind_of(case):
    """What a wrapper can tell a case by: its state's types and number of moments, their shapes, and decay."""
    state = jax.eval_shape(case.make().init, PROBE)
    shapes = sorted({x.shape not in {(4, 3), (3,)} for x in jax.tree.leaves(state) if x.ndim})
    decays = "weight_decay" in signature(case.factory).parameters if isinstance(case, Case) else case.complex_update
    return type(case), type(state), len(jax.tree.leaves(state)), tuple(shapes), decays


def _rows(cases, same):
    """Parameters of a test: the first of each sort, and the others with the slow tests."""
    seen = set()
    for case in cases:
        key = same(case)
        yield pytest.param(case, id=case.name, marks=[pytest.mark.slow] if key in seen else [])
        seen.add(key)


def _parametrize(cases, same):
    return pytest.mark.parametrize("case", list(_rows(cases, same)))


def _own(case):
    return case.factory if isinstance(case, Case) else case.name


# For laws about mathematics and dtypes: every method and wrapper; further conventions of a method run as slow tests.
each = _parametrize(ALL, _own)
each_method = _parametrize(METHODS, _own)
each_convention = pytest.mark.parametrize("case", METHODS, ids=lambda c: c.name)
# For laws about trees and states, which depend on the kind of state only: one of each kind; others run as slow tests.
each_kind = _parametrize(ALL, kind_of)
each_method_kind = _parametrize(METHODS, kind_of)
each_merged = _parametrize(MERGED, kind_of)
# Those whose moments are all shaped like the parameters: what a sharding or `tree.map_params` can follow.
each_shaped_kind = _parametrize([c for c in ALL if True not in kind_of(c)[3]], kind_of)
ELEMENTWISE = [c for c in METHODS if True not in kind_of(c)[3] and not c.reduces]
each_elementwise_kind = _parametrize(ELEMENTWISE, kind_of)
each_linear_kind = _parametrize([c for c in ELEMENTWISE if c.linear], kind_of)
each_reducing = _parametrize([c for c in METHODS if c.reduces], lambda c: len(c.moments) if c.smaller else "whole")
LAYOUTS = [row.values[0] for row in _rows(ELEMENTWISE, kind_of) if not row.marks]
each_layout = pytest.mark.parametrize("case", LAYOUTS, ids=lambda c: c.name)
