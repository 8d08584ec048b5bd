"""Hyper-parameters: checked at construction, resolved once a step, never compared when traced."""

import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float

from adamx.ground.numerics import as_array, is_number, one_minus_power

Schedule = Callable[[Any], Any]  # of the 0-based step
F = TypeVar("F", bound=Callable[..., Any])


class Derived:
    """A hyper-parameter computed once a step, outside all leaves: `f(t, *args)`.

    Args:
      f: takes t = 1, 2, ... as a float scalar, and each of `args` resolved for this step.
      args: Scalars, or further Derived.
      positive: whether it is known to be above 0, in float32 too.
      gap: for decays, the function of the same arguments that is 1 - f without cancellation.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        *args: "Scalar",
        positive: bool = False,
        gap: Callable[..., Any] | None = None,
    ):
        self.f, self.args, self.positive, self.gap = f, args, positive, gap


def product(*scalars: "Scalar") -> "Scalar":
    """The product of hyper-parameters, such as learning rate times weight decay; 0.0 where one is the number 0."""
    if any(isinstance(s, (int, float)) and s == 0 for s in scalars):
        return 0.0
    return Derived(lambda t, *values: functools.reduce(operator.mul, values), *scalars)


def one_minus(decay: "Scalar") -> "Scalar":
    """1 - decay: exact for a number, and for a Derived that knows its gap."""
    if isinstance(decay, (int, float)):
        return 1 - decay
    if isinstance(decay, Derived) and decay.gap is not None:
        return Derived(decay.gap, *decay.args)
    return Derived(lambda t, b: 1 - b, decay)


def correction(b1: "Scalar", b2: "Scalar | None" = None) -> "Derived":
    """The bias correction 1 / (1 - b1^t) of one average, or sqrt(1 - b2^t) / (1 - b1^t) of the ratio of two.

    Args:
      b1: the decay of the average in the numerator, in [0, 1).
      b2: the decay of the average under the root in the denominator.
    """
    if b2 is None:
        return Derived(lambda t, b1: 1 / one_minus_power(b1, t), decay("b1", b1))
    ratio = lambda t, b1, b2: jnp.sqrt(one_minus_power(b2, t)) / one_minus_power(b1, t)
    return Derived(ratio, decay("b1", b1), decay("b2", b2))


class Told:
    """A hyper-parameter that a part's `ask` finds out about the whole tree, by name; the parts after it may read it.

    Before the first `ask` of a step that returns it, it has the value of the last step.
    """

    def __init__(self, name: str):
        self.name = name


Scalar = float | int | Array | Schedule | Derived | Told


def resolve(
    scalar: Scalar,
    count: Array,
    t: Array,
    dtype: Any,
    told: Mapping[str, Array] = MappingProxyType({}),
) -> float | Float[Array, ""]:
    """The value for this step: a Python number as it is, anything else as an array of `dtype`.

    Args:
      scalar: what a method was given.
      count: int32[], steps taken before this one; what schedules see.
      t: int32[], count + 1; what Derived sees, as a float.
      dtype: float32 or float64.
      told: what :class:`Told` reads.
    """
    if isinstance(scalar, (int, float)):
        return scalar
    if isinstance(scalar, Told):
        value = told[scalar.name]
    elif isinstance(scalar, Derived):
        value = scalar.f(t.astype(dtype), *(resolve(a, count, t, dtype, told) for a in scalar.args))
    elif callable(scalar):
        value = scalar(count)
        if not is_number(value) and getattr(value, "shape", None) != ():
            raise ValueError(f"a schedule must return one number for each step, but returned {value!r:.80}.")
    else:
        value = scalar
    return jnp.asarray(value, dtype)


def scalar(name: str, value: Any) -> Any:
    """`value` if it can be a hyper-parameter: a number, a real scalar array or a schedule of the 0-based step.

    Integers, NumPy scalars and 0-d NumPy arrays become Python floats.

    Raises:
      TypeError: if it is something else.
      ValueError: if it is an array with more than one element's shape.

    >>> scalar("eps", np.float64(1e-8))
    1e-08
    >>> scalar("learning_rate", "1e-3")
    Traceback (most recent call last):
    TypeError: learning_rate must be a number, a scalar array or a schedule of the step, not the str '1e-3'.
    """
    if isinstance(value, (Derived, Told)):
        return value
    if isinstance(value, (np.generic, np.ndarray)) and value.shape == () and value.dtype.kind in "fiu":
        return float(value)
    if isinstance(value, jax.Array):
        if value.shape != ():
            raise ValueError(f"{name} must be one number, but its shape is {value.shape}; sweep with jax.vmap.")
        if not jnp.issubdtype(value.dtype, jnp.floating) and not jnp.issubdtype(value.dtype, jnp.integer):
            raise TypeError(f"{name} must be real, but its dtype is {value.dtype}.")
        return value
    if is_number(value):
        return float(value)
    if callable(value) and not isinstance(value, type):
        return value
    raise TypeError(
        f"{name} must be a number, a scalar array or a schedule of the step, not the {type(value).__name__} {value!r}."
    )


def _within(name: str, value: Any, ok: Callable[[float], bool], says: str) -> Any:
    value = scalar(name, value)
    known = value
    if isinstance(value, jax.Array) and not isinstance(value, Tracer) and value.is_fully_addressable:
        known = float(value)
    if is_number(known) and not ok(known):
        raise ValueError(f"{name} must be {says}, but is {known!r}.")
    return value


def whole(name: str, value: Any, least: int = 1) -> int:
    """`value`, a whole number of at least `least`: a count that decides loops or shapes, never traced.

    >>> whole("rank", 1.5)
    Traceback (most recent call last):
    ValueError: rank must be a whole number above 0, but is 1.5.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        says = "above 0" if least == 1 else f"of at least {least}"
        raise ValueError(f"{name} must be a whole number {says}, but is {value!r}.")
    return int(value)


def axes(name: str, value: Any) -> tuple[int, ...]:
    """`value`, one axis or several, as a tuple of whole numbers; negative ones count from the end.

    >>> axes("axes", "x")
    Traceback (most recent call last):
    ValueError: axes must be a whole number or several, but is 'x'.
    """
    many = tuple(value) if isinstance(value, Iterable) else (value,)
    if any(isinstance(a, bool) or not isinstance(a, (int, np.integer)) for a in many):
        raise ValueError(f"{name} must be a whole number or several, but is {value!r}.")
    return tuple(int(a) for a in many)


def at_least_zero(name: str, value: Any) -> Any:
    """`value`, a finite Scalar; a number must be >= 0.

    >>> at_least_zero("eps", -1e-8)
    Traceback (most recent call last):
    ValueError: eps must be finite and at least 0, but is -1e-08.
    """
    return _within(name, value, lambda x: 0 <= x < float("inf"), "finite and at least 0")


def above_zero(name: str, value: Any) -> Any:
    """`value`, a finite Scalar; a number must be > 0."""
    return _within(name, value, lambda x: 0 < x < float("inf"), "finite and above 0")


def finite(name: str, value: Any) -> Any:
    """`value`, a Scalar; a number must be finite."""
    return _within(name, value, lambda x: abs(x) < float("inf"), "finite")


def factor_up(name: str, value: Any) -> Any:
    """`value`, a Scalar; a number must be >= 1, and infinity means no limit."""
    return _within(name, value, lambda x: x >= 1, "at least 1")


def half(name: str, value: Any) -> Any:
    """`value`, a Scalar; a number must lie in (0, 1/2]."""
    return _within(name, value, lambda x: 0 < x <= 0.5, "above 0 and at most 1/2")


def share(name: str, value: Any) -> Any:
    """`value`, a Scalar; a number must lie in [0, 1]."""
    return _within(name, value, lambda x: 0 <= x <= 1, "in [0, 1]")


def limit(name: str, value: Any) -> Any:
    """`value`, a Scalar; a number must be >= 0, and infinity means no limit."""
    return _within(name, value, lambda x: x >= 0, "at least 0")


def constant(name: str, value: Any) -> Any:
    """`value`, a finite number or scalar array, but no schedule: what is read once, at init.

    >>> constant("start", lambda step: 0.0)
    Traceback (most recent call last):
    TypeError: start is read once, at init, so it cannot be a schedule.
    """
    if callable(value) or isinstance(value, (Derived, Told)):
        raise TypeError(f"{name} is read once, at init, so it cannot be a schedule.")
    return finite(name, value)


def decay(name: str, value: Any) -> Any:
    """`value`, a share kept a step; a number must lie in [0, 1), an array must have more than 16 bits.

    >>> decay("b1", 1.0)
    Traceback (most recent call last):
    ValueError: b1 must be in [0, 1) (at 1 nothing new is averaged in), but is 1.0.
    """
    value = scalar(name, value)
    if isinstance(value, jax.Array) and value.dtype.itemsize < 4:
        raise TypeError(
            f"{name} arrived as {value.dtype}, in which 0.999 is {float(jnp.asarray(0.999, value.dtype)):g}; pass a"
            " Python number or a float32 array (optax.inject_hyperparams: hyperparam_dtype=jnp.float32)."
        )
    return _within(name, value, lambda x: 0 <= x < 1, "in [0, 1) (at 1 nothing new is averaged in)")


def spelled_otherwise(method: str, argument: str, value: Any, spelling: str) -> None:
    """Refuse an optax argument that is expressed by other means here.

    Raises:
      TypeError: if it was given (is neither None nor False).
    """
    if value is not None and value is not False:
        given = "" if value is True else f" (got {value!r})"
        raise TypeError(f"{method} takes no {argument}{given}: write {spelling}.")


class _ExactSignature(inspect.Signature):
    """A signature whose bound Python floats, and what bound schedules return, arrive as strongly typed arrays."""

    def bind(self, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        bound = super().bind(*args, **kwargs)
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            numeric = float in get_args(self.parameters[name].annotation)
            if isinstance(value, type) or (isinstance(value, int) and not numeric):
                bound.arguments[name] = _Static(value)
            elif callable(value) and not isinstance(value, (type, optax.schedules.StatefulSchedule)):
                bound.arguments[name] = _strong_schedule(value)
            else:
                bound.arguments[name] = _strong(value)
        return bound


class _Static:
    """A dtype, or a whole number that decides shapes or loops: wrapped, so that `inject_hyperparams` lets it be."""

    def __init__(self, value: Any):
        self.value = value


def _strong(value: Any) -> Any:
    """A Python float or weakly typed array as an array that no wrapper takes for a Python float; else unchanged."""
    if isinstance(value, float):
        return jnp.asarray(value, jax.dtypes.canonicalize_dtype(np.float64))
    return as_array(value) if getattr(value, "weak_type", False) else value


def _strong_schedule(schedule: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(schedule)
    def strong(*args: Any, **kwargs: Any) -> Any:
        return _strong(schedule(*args, **kwargs))

    return strong


# What the field's names of hyper-parameters may be; an argument of a method with one of them is checked by it.
CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "learning_rate": finite,
    "base_lr": above_zero,
    "b1": decay,
    "b2": decay,
    "decay": decay,
    "beta": decay,
    "rho": decay,
    "momentum": at_least_zero,
    "dampening": finite,
    "momentum_decay": at_least_zero,
    "eps": at_least_zero,
    "eps_root": at_least_zero,
    "eps1": at_least_zero,
    "eps2": at_least_zero,
    "weight_decay": at_least_zero,
    "weight_decay_rate": at_least_zero,
    "alpha": finite,
    "nu1": share,
    "nu2": share,
    "b1_decay": share,
    "a": above_zero,
    "b": above_zero,
    "gamma": at_least_zero,
    "final_lr": above_zero,
    "max_lr": above_zero,
    "partial": half,
    "delta": at_least_zero,
    "wd_ratio": at_least_zero,
    "decay_rate": above_zero,
    "estim_lr0": above_zero,
    "estim_lr_coef": above_zero,
    "growth_rate": factor_up,
    "threshold": limit,
    "clipping_threshold": limit,
    "clip_threshold": limit,
    "initial_accumulator_value": at_least_zero,
    "initial_scale": at_least_zero,
    "max_delta": limit,
    "max_norm": limit,
    "clipping": limit,
}


def method(factory: F) -> F:
    """A public factory whose numbers are checked by the names that its user gave them, and stay exact if injected.

    `optax.inject_hyperparams` casts Python floats to the parameters' dtype, which turns b2 = 0.999 into 1.0 for
    bfloat16 parameters, but leaves strongly typed arrays alone (optax 0.2.8, `_convert_floats`). It reads the
    factory's signature to bind the arguments, so a signature that binds floats as arrays is all that it takes (it is
    `inspect.signature(factory).bind` only that differs; calls see what they were given).
    """
    signature = inspect.signature(factory)
    optional = {name for name, p in signature.parameters.items() if p.default is None}

    @functools.wraps(factory)
    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{factory.__name__}({', '.join(signature.parameters)}): {error}.") from error
        for name, value in bound.arguments.items():
            value = bound.arguments[name] = value.value if isinstance(value, _Static) else value
            if name in ("mu_dtype", "dtype_momentum") and value is not signature.parameters[name].default:
                spelled_otherwise(factory.__name__, name, value, f"store_state({factory.__name__}(...), mu=dtype)")
            if name in CHECKS and not (value is None and name in optional):
                bound.arguments[name] = CHECKS[name](name, value)
        return factory(*bound.args, **bound.kwargs)

    checked.__signature__ = _ExactSignature(  # pyright: ignore[reportAttributeAccessIssue]
        list(signature.parameters.values()), return_annotation=signature.return_annotation
    )
    return cast(F, checked)
