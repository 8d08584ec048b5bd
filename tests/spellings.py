"""How each recorded run is spelled with adamx: a row for each (algorithm, setting), by implementation where they part.

A row takes the run's hyper-parameters by the manifest's names, with `lr` a number or a schedule.
"""

import math

import jax.numpy as jnp
import numpy as np

import adamx
from adamx import (
    Derived,
    Part,
    add_decayed_weights,
    bias_correct,
    chain,
    clip_by_global_norm,
    clip_by_leaf_norm,
    difference,
    ema,
    lift,
    mix,
    peak,
    rules,
    scale_by_lr,
    scale_by_moments,
    schedules,
)
from adamx.ground.hyper import product
from adamx.ground.numerics import norm, one_minus_power
from adamx.parts import links, moments, projections


def corrected(decay, **kwargs):
    return chain(ema(decay, **kwargs), bias_correct(decay))


def of(factory, **conventions):
    return lambda lr, **h: factory(lr, **h, **conventions)


def after(eps, b2):
    return eps  # added to the corrected root, as rules.before(eps, b2) to the raw one


def l2(factory):
    return lambda *, l2, **h: chain(add_decayed_weights(l2), factory(**h))


def decoupled(factory):
    return lambda *, lr, weight_decay, max_lr=None, **h: chain(
        factory(lr=-1.0, **h), add_decayed_weights(weight_decay, base_lr=max_lr), scale_by_lr(lr)
    )


def adam(lr, b1, b2, eps, **h):
    return adamx.adam(lr, b1, b2, eps, **h)


def adamw(lr, b1, b2, eps, weight_decay, max_lr=None):
    return adamx.adamw(lr, b1, b2, eps, weight_decay=weight_decay, base_lr=max_lr)


def adamw_amsgrad(lr, b1, b2, eps, weight_decay):
    nu = chain(ema(b2, power=2), peak(), bias_correct(b2))
    return chain(
        scale_by_moments(rules.ratio(eps), mu=corrected(b1), nu=nu),
        add_decayed_weights(weight_decay),
        scale_by_lr(lr),
    )


def adamw_rms_clip(lr, b1, b2, eps, weight_decay, clipping_threshold):
    rule = rules.ratio_rms_clipped(eps, clipping_threshold)
    return chain(
        scale_by_moments(rule, mu=corrected(b1), nu=corrected(b2, power=2)),
        add_decayed_weights(weight_decay),
        scale_by_lr(lr),
    )


def amsgrad(**conventions):
    return lambda lr, b1, b2, eps: adamx.amsgrad(lr, b1, b2, eps, **conventions)


def nadam(lr, b1, b2, eps, momentum_decay=None):
    return adamx.nadam(lr, b1, b2, eps, momentum_decay=momentum_decay)


def nadamw(lr, b1, b2, eps, weight_decay, momentum_decay=None):
    return adamx.nadamw(lr, b1, b2, eps, weight_decay=weight_decay, momentum_decay=momentum_decay)


def nadamw_simplified(lr, b1, b2, eps, weight_decay=0.0):
    rule = rules.nesterov_ratio(b1, 1 - b1, rules.hat(eps, b2))
    return chain(
        scale_by_moments(rule, mu=ema(b1), nu=ema(b2, power=2)),
        bias_correct(b1, b2),
        add_decayed_weights(weight_decay),
        scale_by_lr(lr),
    )


def adamax(lr, b1, b2, eps):
    return adamx.adamax(lr, b1, b2, eps)


def adagrad(eps_in_sqrt):
    return lambda lr, initial_accumulator_value, eps: adamx.adagrad(
        lr, initial_accumulator_value, eps, eps_in_sqrt=eps_in_sqrt
    )


def adagrad_lr_decay(lr, lr_decay, **h):
    return adagrad(False)(lr=lambda n: lr / (1 + n * lr_decay), **h)


def rmsprop(**conventions):
    return lambda lr, decay, eps, **h: adamx.rmsprop(lr, decay, eps, **h, **conventions)


def sgd(lr, momentum, nesterov=False, dampening=0.0):
    return adamx.sgd(lr, momentum, nesterov, dampening=dampening)


def sgd_ema(lr, momentum, dampening):
    assert dampening == momentum  # a plain average: its buffer starts at 0
    return chain(scale_by_moments(mu=ema(momentum)), scale_by_lr(lr))


def adabelief(lr, b1, b2, eps, eps_in_s=None, **conventions):
    return adamx.adabelief(lr, b1, b2, eps, eps if eps_in_s is None else eps_in_s, **conventions)


def surprise(b2, eps):
    return chain(mix(rules.difference_from_mean, "mu"), ema(b2, power=2, plus=rules.each_step(eps, b2)))


def adabelief_rectify(lr, b1, b2, eps, rectify):
    rule = rules.rectified(rules.rectification(b2, 5.0), rules.before(eps, b2))
    nu = chain(surprise(b2, eps), bias_correct(b2))
    return chain(scale_by_moments(rule, mu=ema(b1), nu=nu), bias_correct(b1), scale_by_lr(lr))


def adabelief_amsgrad(lr, b1, b2, eps):
    nu = chain(surprise(b2, eps), peak(), bias_correct(b2))
    return chain(scale_by_moments(rules.ratio(eps), mu=ema(b1), nu=nu), bias_correct(b1), scale_by_lr(lr))


def yogi(lr, b1, b2, eps, initial_accumulator):
    return adamx.yogi(lr, b1, b2, eps, initial_accumulator_value=initial_accumulator)


def radam_eps_before(lr, b1, b2, eps, threshold=5.0):
    rule = rules.rectified(rules.rectification(b2, threshold), rules.before(eps, b2))
    return chain(scale_by_moments(rule, mu=corrected(b1), nu=corrected(b2, power=2)), scale_by_lr(lr))


def radam_no_sgd_phase(lr, b1, b2, eps):
    rule = rules.ratio(rules.before(eps, b2))
    return chain(
        scale_by_moments(rule, mu=corrected(b1), nu=corrected(b2, power=2)),
        adamx.scale(rules.rectification(b2, 5.0)),
        scale_by_lr(lr),
    )


def laprop_amsgrad(lr, b1, b2, eps):
    nu = chain(ema(b2, power=2), peak(), bias_correct(b2))
    return chain(scale_by_moments(rules.normalise(eps), nu=nu), corrected(b1), scale_by_lr(lr))


def laprop_centered(lr, b1, b2, eps):
    known = Derived(lambda t, b2: jnp.where(t > 10, one_minus_power(b2, t) ** -0.5, 0), b2)
    mean = chain(ema(b2), adamx.scale(known))  # subtracted from step 11 on, and corrected as a square
    return chain(
        scale_by_moments(rules.normalise(eps), nu=corrected(b2, power=2), mu=mean), corrected(b1), scale_by_lr(lr)
    )


def adopt(**conventions):
    def made(lr, b1, b2, eps, clip=None):
        return adamx.adopt(lr, b1, b2, eps, use_clipping=clip is not None, **conventions)

    return made


def adopt_decoupled(weight_decay, **h):
    return decoupled(adopt())(weight_decay=links.after_first(weight_decay), **h)


def ademamix_schedules(lr, b1, b2, b3, alpha, eps, alpha_warmup, beta3_warmup):
    b3_t, alpha_t = schedules.half_life_warmup(b1, b3, beta3_warmup), schedules.linear_warmup(alpha, alpha_warmup)
    return adamx.ademamix(lr, b1, b2, b3_t, alpha_t, eps)


def ademamix_schedules_authors(lr, b1, b2, b3, alpha, eps, alpha_warmup, beta3_warmup):
    half_life = lambda b: math.log(0.5) / math.log(b + 1e-8) - 1

    def decay(n):
        way = (n + 1.0) / beta3_warmup
        grown = 0.5 ** (1 / (1 + (1 - way) * half_life(b1) + way * half_life(b3)))
        return jnp.where(way < 1, grown, b3)

    return adamx.ademamix(lr, b1, b2, decay, schedules.linear_warmup(alpha, alpha_warmup), eps)


def adan(**conventions):
    return lambda lr, eps_root=0.0, **h: adamx.adan(lr, eps_root=eps_root, **h, **conventions)


def adan_optax(lr, b1, b2, b3, eps, eps_root):
    k = 1 - b2  # where the paper has b2
    return chain(
        scale_by_moments(
            rules.adan(k, eps, eps_root=eps_root),
            diff=difference(),
            mu=corrected(b1),
            vel=chain(mix(rules.same, "diff"), corrected(b2)),
            nu=chain(mix(rules.ahead(k), "diff"), corrected(b3, power=2)),
        ),
        scale_by_lr(lr),
    )


def adan_max_grad_norm(max_grad_norm, **h):
    def ask(_, whole):  # clip_by_global_norm, but for the eps
        return jnp.minimum(1, max_grad_norm / (norm(*whole.grads) + h["eps"]))

    clip = lift(Part("clip", lambda _, g, slots, p, seen: (g * seen.asked, slots), ask=ask))
    return chain(clip, adan()(**h))


def acprop(lr, b1, b2, eps, eps_in_s):
    return adamx.acprop(lr, b1, b2, eps, eps_in_s)


def adabound_schedule(lr, **h):
    return adamx.adabound(lr, base_lr=lr(4), **h)  # its peak


def lion(lr, b1, b2, weight_decay=0.0):
    return adamx.lion(lr, b1, b2, weight_decay=weight_decay)


def lion_smooth(lr, b1, b2, mode, smooth_beta):
    rule = lambda g, t, *, mu: jnp.tanh(smooth_beta * (b1 * mu + (1 - b1) * g))
    return chain(scale_by_moments(rule, mu=ema(b2, lag=True)), scale_by_lr(lr))


def lion_refined(lr, b1, b2, mode):
    rule = lambda g, t, *, mu: jnp.clip(b1 * mu + (1 - b1) * g, -1, 1)
    return chain(scale_by_moments(rule, mu=ema(b2, lag=True)), scale_by_lr(lr))


def lamb_clipped(lr, b1, b2, eps, weight_decay, max_grad_norm, trust_clip):
    return chain(
        clip_by_global_norm(max_grad_norm),
        scale_by_moments(rules.ratio(eps), mu=corrected(b1), nu=corrected(b2, power=2)),
        add_decayed_weights(weight_decay),
        adamx.trust_ratio(1.0),
        scale_by_lr(lr),
    )


def mars_matrices(lr, b1, b2, gamma, eps, weight_decay, lr_1d, b1_1d, b2_1d, weight_decay_1d):
    plain = adamx.adamw(lr_1d, b1_1d, b2_1d, eps, weight_decay=weight_decay_1d)
    return adamx.by_leaf(adamx.matrices(), adamx.mars(lr, b1, b2, eps, gamma, weight_decay), plain)


def mars_timm(lr, b1, b2, gamma, eps, weight_decay=0.0, optimize_1d=False, **rest):
    from_g1 = chain(
        scale_by_moments(rules.ahead(rules.mars_weight(gamma, b1)), diff=difference()),
        clip_by_leaf_norm(1.0),
        adamx.adamw(lr, b1, b2, eps, weight_decay=weight_decay),
    )
    if optimize_1d:
        return from_g1
    plain = adamx.adamw(rest["lr_1d"], rest["b1_1d"], rest["b2_1d"], eps, weight_decay=rest["weight_decay_1d"])
    vectors = lambda params: [int(params[name].ndim < 2) for name in sorted(params)]
    return adamx.by_leaf(vectors, from_g1, plain)


def mars_lion(lr, b1, b2, gamma, optimize_1d, mars_type):
    return chain(
        scale_by_moments(rules.ahead(rules.mars_weight(gamma, b1)), diff=difference(from_zero=True)),
        clip_by_leaf_norm(1.0),
        adamx.signum(lr, b1),
    )


def squares(decay_rate, of, plus=1e-30, **kwargs):
    return ema(moments.power_decay(decay_rate, **kwargs), power=2, plus=plus, of=of)


def relative(lr):
    return Derived(lambda t, lr: jnp.minimum(lr, 1 / jnp.sqrt(t)), lr)


def adafactor_torch(lr, beta2_decay, eps1, eps2, d, weight_decay=0.0):
    eps1 = float(np.finfo(np.float64).eps) if eps1 == "finfo.eps" else eps1
    nu = squares(-beta2_decay, projections.factored("last", floor=eps1), plus=0.0)
    return chain(
        scale_by_moments(lambda g, t, *, nu: g / jnp.maximum(jnp.sqrt(nu), eps1), nu=nu),
        adamx.clip_by_leaf_rms(d),
        adamx.scale(relative(lr)),
        adamx.scale_by_param_rms(eps2),
        add_decayed_weights(lr * weight_decay),
        scale_by_lr(1.0),
    )


def adafactor_noam(axes):
    def made(beta2_decay, eps1, eps2, clip_threshold, relative_step):
        return chain(
            scale_by_moments(rules.normalise(), nu=squares(-beta2_decay, projections.factored(axes), eps1)),
            adamx.clip_by_leaf_rms(clip_threshold),
            adamx.scale_by_param_rms(eps2),
            scale_by_lr(relative(1e-2)),
        )

    return made


def adafactor_optax(lr, eps1, min_scale=1e-3, **h):
    assert min_scale == 1e-3
    return adamx.adafactor(lr, eps=eps1, **h)


def adafactor_bigvision(lr, decay_rate, beta2_cap, eps1, min_dim_size_to_factor, weight_decay):
    of = projections.factored("largest", min_size=min_dim_size_to_factor)
    return chain(
        scale_by_moments(rules.normalise(), nu=squares(decay_rate, of, eps1, most=beta2_cap)),
        add_decayed_weights(weight_decay),
        scale_by_lr(lr),
    )


def prodigy(**conventions):
    def made(lr, b1, b2, eps, d0, d_coef, b3=None, **h):
        return adamx.prodigy(lr, (b1, b2), b3, eps, d0, d_coef, **h, **conventions)

    return made


def dadapt_adam(**conventions):
    return lambda lr, b1, b2, eps, d0, **h: adamx.dadapt_adam(lr, (b1, b2), eps, d0, **h, **conventions)


def muon_uncorrected(floored):
    def made(lr, momentum, weight_decay, ns_steps, eps):
        return chain(
            scale_by_moments(rules.interpolated(momentum), mu=ema(momentum)),
            adamx.orthogonalise(ns_steps, eps=eps, floored=floored),
            adamx.scale_by_shape(rows_out=True),
            add_decayed_weights(weight_decay),
            scale_by_lr(lr),
        )

    return made


def muon(lr, momentum, weight_decay, ns_steps, eps):
    return adamx.muon(lr, ns_steps, momentum, weight_decay=weight_decay)  # optax's own eps, 1e-8


def schedule_free_adamw(lr, b1, b2, eps, weight_decay=0.0):
    return adamx.schedule_free(adamx.adamw(lr, 0.0, b2, eps, weight_decay=weight_decay), lr, b1)


def schedule_free_adamw_warmup(late):
    def made(lr, b1, b2, eps, warmup_steps):
        warm = lambda t: lr * jnp.minimum(t / float(warmup_steps), 1)
        tx = adamx.adamw(lambda n: warm(n + 1.0 - late), 0.0, b2, eps, weight_decay=0.0)
        return adamx.schedule_free(tx, lambda n: warm(n + 1.0), b1)

    return made


def schedule_free_radam(lr, b1, b2, eps):
    rate = product(lr, rules.rectification(b2, 4.0))
    tx = chain(scale_by_moments(rules.normalise(eps), nu=corrected(b2, power=2)), scale_by_lr(rate))
    return adamx.schedule_free(tx, rate, b1)


def schedule_free_sgd(lr, momentum):
    return adamx.schedule_free(adamx.sgd(lr), lr, momentum)


def grams(eps_of):
    def made(lr, b1, b2, eps):
        rule = rules.gradient_signed(eps_of(eps, b2))
        return chain(scale_by_moments(rule, mu=corrected(b1), nu=corrected(b2, power=2)), scale_by_lr(lr))

    return made


def adam_mini(axes):
    def made(lr, b1, b2, eps):
        nu = corrected(b2, power=2, of=projections.pooled(axes))
        return chain(scale_by_moments(rules.ratio(eps), mu=corrected(b1), nu=nu), scale_by_lr(lr))

    return made


def adam_mini_rows(lr, weight_decay, **h):
    bias = lambda params: [int(name == "b") for name in sorted(params)]
    rows = decoupled(adam_mini(1))(lr=lr, weight_decay=weight_decay, **h)
    return adamx.by_leaf(bias, rows, adam(lr, **h))


def pnm(lr, b1, b2):
    return chain(adamx.alternating(b1 * b1, b2), scale_by_lr(lr))


def c_adamw(eps_of):
    def made(lr, b1, b2, eps, weight_decay):
        adam = scale_by_moments(rules.ratio(eps_of(eps, b2)), mu=corrected(b1), nu=corrected(b2, power=2))
        return chain(adamx.cautious(adam, of="direction"), add_decayed_weights(weight_decay), scale_by_lr(lr))

    return made


def c_lion(rescale):
    return lambda **h: adamx.cautious(lion(**h), rescale=rescale)


SPELLINGS = {
    "adam/default": adam,
    "adam/big_eps": adam,
    "adam/eps_root": adam,
    "adam/l2": l2(adam),
    "adam/lr_schedule": adam,
    "adam/b1_zero": adam,
    "adamw/default": adamw,
    "adamw/big_eps": adamw,
    "adamw/lr_schedule": adamw,
    "adamw/decouple_lr_schedule": adamw,
    "adamw/decouple_lr_const": adamw,
    "adamw/amsgrad": adamw_amsgrad,
    "adamw/rms_clip": adamw_rms_clip,
    "amsgrad/default/optax.amsgrad": amsgrad(),
    "amsgrad/default": amsgrad(peak_of="raw"),
    "amsgrad/b2_0.9/optax.amsgrad": amsgrad(),
    "amsgrad/b2_0.9": amsgrad(peak_of="raw"),
    "amsgrad/no_bias_correction": amsgrad(bias_correction_mu=False, bias_correction_nu=False),
    "amsgrad/mu_correction_only": amsgrad(bias_correction_nu=False),
    "nadam/mu_schedule": nadam,
    "nadam/const_mu": nadam,
    "nadam/simplified": nadamw_simplified,
    "nadam/l2_mu_schedule": l2(nadam),
    "nadamw/mu_schedule": nadamw,
    "nadamw/const_mu": nadamw,
    "nadamw/simplified": nadamw_simplified,
    "adamax/default": adamax,
    "adamax/big_eps": adamax,
    "adamax/b2_0.9": adamax,
    "adamax/l2": l2(adamax),
    "adagrad/torch/optax.adagrad": adagrad(True),
    "adagrad/torch": adagrad(False),
    "adagrad/torch_default": l2(adagrad_lr_decay),
    "rmsprop/eps_outside": rmsprop(eps_in_sqrt=False),
    "rmsprop/eps_in_sqrt": rmsprop(),
    "rmsprop/eps_in_sqrt_init1": rmsprop(),
    "rmsprop/centered": rmsprop(eps_in_sqrt=False, centered=True),
    "rmsprop/momentum": rmsprop(eps_in_sqrt=False),
    "rmsprop/centered_momentum_l2": l2(rmsprop(eps_in_sqrt=False, centered=True)),
    "rmsprop/bias_correction_nesterov": rmsprop(eps_in_sqrt=False, bias_correction=True),
    "sgd/momentum": sgd,
    "sgd/nesterov": sgd,
    "sgd/dampening_l2": l2(sgd),
    "sgd/ema_momentum/optimi.SGD-zero_init": sgd_ema,
    "sgd/ema_momentum": sgd,
    "adabelief/default": adabelief,
    "adabelief/eps_1e-8": adabelief,
    "adabelief/rectify": adabelief_rectify,
    "adabelief/amsgrad": adabelief_amsgrad,
    "adabelief/decoupled_wd": decoupled(adabelief),
    "adabelief/nesterov": of(adabelief, nesterov=True),
    "yogi/default": yogi,
    "yogi/b2_0.9": yogi,
    "radam/default/optax.radam": of(adamx.radam),
    "radam/default/optimi.RAdam": of(adamx.radam),
    "radam/default": radam_eps_before,
    "radam/b2_0.9/optax.radam": of(adamx.radam),
    "radam/b2_0.9/optimi.RAdam": of(adamx.radam),
    "radam/b2_0.9": radam_eps_before,
    "radam/big_eps/optax.radam": of(adamx.radam),
    "radam/big_eps/optimi.RAdam": of(adamx.radam),
    "radam/big_eps": radam_eps_before,
    "radam/no_sgd_phase": radam_no_sgd_phase,
    "radam/decoupled_wd/optimi.RAdam": decoupled(of(adamx.radam)),
    "radam/decoupled_wd": decoupled(radam_eps_before),
    "radam/l2/optimi.RAdam": l2(of(adamx.radam)),
    "radam/l2": l2(radam_eps_before),
    "adamaxw/default": of(adamx.adamaxw),
    "adamc/lr_schedule": of(adamx.adamc),
    "laprop/default": of(adamx.laprop),
    "laprop/eps_1e-4": of(adamx.laprop),
    "laprop/lr_schedule": of(adamx.laprop),
    "laprop/wd": of(adamx.laprop),
    "laprop/amsgrad": laprop_amsgrad,
    "laprop/centered": laprop_centered,
    "adopt/default": adopt(),
    "adopt/no_clip": adopt(),
    "adopt/decoupled_wd/optax.contrib.adopt": decoupled(adopt()),
    "adopt/decoupled_wd": adopt_decoupled,
    "adopt/l2": l2(adopt()),
    "adopt/nesterov": adopt(nesterov=True),
    "ademamix/default": of(adamx.ademamix),
    "ademamix/schedules/po.AdEMAMix": ademamix_schedules,
    "ademamix/schedules": ademamix_schedules_authors,
    "ademamix/wd": of(adamx.ademamix),
    "simplified_ademamix/default": of(adamx.simplified_ademamix),
    "simplified_ademamix/alpha_10": of(adamx.simplified_ademamix),
    "adan/default/optax.adan": adan_optax,
    "adan/default": adan(),
    "adan/eps_root": adan_optax,
    "adan/wd_prox": adan(proximal=True),
    "adan/wd_no_prox": adan(),
    "adan/max_grad_norm": adan_max_grad_norm,
    "acprop/default": acprop,
    "adamod/default": of(adamx.adamod),
    "adabound/default": of(adamx.adabound),
    "adabound/amsbound": of(adamx.amsbound),
    "adabound/lr_schedule_l2": l2(adabound_schedule),
    "padam/no_amsgrad": of(adamx.padam, amsgrad=False),
    "padam/amsgrad": of(adamx.padam),
    "qhadam/nu_0.7_1.0": of(adamx.qhadam),
    "qhadam/nu_0.7_0.9": of(adamx.qhadam),
    "qhadam/decoupled_wd": of(adamx.qhadam),
    "adam_atan2/default": of(adamx.adam_atan2),
    "adam_atan2/a_1": of(adamx.adam_atan2),
    "adashift/max": of(adamx.adashift),
    "adashift/elementwise": of(adamx.adashift, spatial_max=False),
    "adapnm/amsgrad": of(adamx.adapnm),
    "adapnm/no_amsgrad": of(adamx.adapnm),
    "lion/default": lion,
    "lion/wd": lion,
    "lion/decouple_lr_schedule": decoupled(lion),
    "lion/refined": lion_refined,
    "lion/smooth": lion_smooth,
    "signum/default": of(adamx.signum),
    "lamb/default": of(adamx.lamb),
    "lamb/no_wd": of(adamx.lamb),
    "lamb/global_clip_trust_clip": lamb_clipped,
    "novograd/default": of(adamx.novograd),
    "adamp/default": of(adamx.adamp, channel=0),
    "adamp/projected": of(adamx.adamp, channel=0),
    "adamp/nesterov": of(adamx.adamp, channel=0),
    "stableadamw/default": of(adamx.stable_adamw),
    "stableadamw/no_wd_big_eps": of(adamx.stable_adamw),
    "mars/adamw/timm.optim.mars.Mars": mars_timm,
    "mars/adamw": mars_matrices,
    "mars/adamw_all_leaves/timm.optim.mars.Mars": mars_timm,
    "mars/adamw_all_leaves": lambda optimize_1d, **h: of(adamx.mars)(**h),
    "mars/lion_all_leaves": mars_lion,
    "madgrad/default": of(adamx.madgrad),
    "adafactor/torch_default": adafactor_torch,
    "adafactor/torch_eps_wd": adafactor_torch,
    "adafactor/noam/timm.optim.adafactor.Adafactor": adafactor_noam((0, 1)),
    "adafactor/noam": adafactor_noam("last"),
    "adafactor/optax_default": adafactor_optax,
    "adafactor/optax_factored": adafactor_optax,
    "adafactor/optax_momentum_wd": adafactor_optax,
    "adafactor/bigvision": adafactor_bigvision,
    "came/default": of(adamx.came),
    "came/wd": of(adamx.came),
    "prodigy/bias_correction": prodigy(),
    "prodigy/bias_correction_d0_0.01": prodigy(),
    "prodigy/default": prodigy(bias_correction=False),
    "prodigy/wd_safeguard_growth": prodigy(bias_correction=False, safeguard_warmup=True),
    "prodigy/wd_bias_correction": prodigy(),
    "dadapt_adam/bias_correction": dadapt_adam(),
    "dadapt_adam/default": dadapt_adam(bias_correction=False),
    "dadapt_adam/decoupled_wd_growth": dadapt_adam(bias_correction=False),
    "soap/freq_5": of(adamx.soap),
    "muon/torch/optax.contrib.muon": muon,
    "muon/torch/author-muon.SingleDeviceMuon": muon_uncorrected(floored=False),
    "muon/torch": muon_uncorrected(floored=True),
    "tiger/default": of(adamx.tiger),
    "grams/default/po.Grams": of(adamx.grams),
    "grams/default": decoupled(grams(rules.before)),
    "adam_mini/per_tensor": decoupled(adam_mini(None)),
    "adam_mini/per_row": adam_mini_rows,
    "pnm/default": pnm,
    "schedule_free_adamw/default": schedule_free_adamw,
    "schedule_free_adamw/wd": schedule_free_adamw,
    "schedule_free_adamw/warmup/optax.contrib.schedule_free_adamw": schedule_free_adamw_warmup(late=1),
    "schedule_free_adamw/warmup": schedule_free_adamw_warmup(late=0),
    "schedule_free_radam/default": schedule_free_radam,
    "schedule_free_sgd/default": schedule_free_sgd,
    "c_adamw/default/timm.optim.adamw.AdamWLegacy": c_adamw(after),
    "c_adamw/default": c_adamw(rules.before),
    "c_lion/default/author-c_lion.Lion": c_lion("count"),
    "c_lion/default/po.Lion": c_lion("count"),
    "c_lion/default": c_lion("mean"),
}


def row_of(case):
    """The row's name: that of the implementation where there is one, else of the setting; KeyError without either."""
    key = f"{case['algorithm']}/{case['setting']}"
    own = f"{key}/{case['case'].split('__')[2]}"
    if own not in SPELLINGS and key not in SPELLINGS:
        raise KeyError(f"no spelling for {case['case']}: add {key!r} to SPELLINGS")
    return own if own in SPELLINGS else key


def spell(spelling, lr_mult):
    """The transformation for {"row", "hyper", "lr_schedule"}."""
    hyper = dict(spelling["hyper"])
    if spelling["lr_schedule"] != "constant":
        base = hyper["lr"]
        hyper["lr"] = lambda n: base * lr_mult[n]
    return SPELLINGS[spelling["row"]](**hyper)
