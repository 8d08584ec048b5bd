"""How each recorded run is spelled with adamx: a row for each (algorithm, setting), by implementation where they part.

A row takes the run's hyper-parameters by the manifest's names, with `lr` a number or a schedule.
"""

import adamx
from adamx import (
    add_decayed_weights,
    bias_correct,
    chain,
    ema,
    peak,
    rules,
    scale_by_lr,
    scale_by_moments,
)


def corrected(decay, **kwargs):
    return chain(ema(decay, **kwargs), bias_correct(decay))


def l2(factory):
    return lambda *, l2, **h: chain(add_decayed_weights(l2), factory(**h))


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
