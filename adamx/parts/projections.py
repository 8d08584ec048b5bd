"""Something smaller that stands for a leaf: what factored and pooled second moments keep instead of every element."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array

from adamx.ground.hyper import axes as check_axes
from adamx.ground.hyper import whole
from adamx.ground.numerics import divide

Axes = int | Sequence[int] | Literal["inputs"] | None


class Pooled:
    """See :func:`pooled`."""

    def __init__(self, axes: tuple[int, ...] | Literal["inputs"] | None, total: bool):
        self.axes, self.sum = axes, total
        self.slots: tuple[str, ...] = ("mean",)
        self.name = "total" if total else "pooled" if axes is None else f"pooled(axes={axes})"

    def start(self, name: str, make: Callable[[Any], Array], p: Any) -> Array:
        """The first value, reduced."""
        return self.reduce(make(p))[name]

    def over(self, ndim: int) -> tuple[int, ...]:
        """The axes that a leaf of this rank is averaged over."""
        if self.axes is None:
            return tuple(range(ndim))
        if isinstance(self.axes, str):  # "inputs"
            return tuple(range(ndim - 1))
        return tuple({a % ndim for a in self.axes if -ndim <= a < ndim})

    def reduce(self, x: Array) -> dict[str, Array]:
        """The mean or sum over the axes, which stay with length 1; 0 where there is nothing."""
        return self.share(x, x.shape)

    def share(self, x: Array, shape: tuple[int, ...]) -> dict[str, Array]:
        """What some whole rows of a leaf of `shape` contribute to that."""
        axes = self.over(x.ndim)
        size = math.prod(shape[a] for a in axes)
        return {"mean": jnp.sum(x, axes, keepdims=True) / (1 if self.sum else max(size, 1))}

    def expand(self, kept: dict[str, Array], shape: tuple[int, ...]) -> Array:
        """What was kept, which broadcasts."""
        return self.spread(self.ready(kept, shape))

    def ready(self, kept: dict[str, Array], shape: tuple[int, ...]) -> dict[str, Array]:
        """What :meth:`spread` takes, computed once for a leaf; of the same shapes."""
        return kept

    def spread(self, ready: dict[str, Array]) -> Array:
        """An array that broadcasts to the leaf, or, from some rows of what is ready, to these."""
        return ready["mean"]


def pooled(axes: Axes = None) -> Pooled:
    """One number for all elements along `axes`: their mean (Adam-mini).

    Args:
      axes: the axes averaged over, all when left out; axes that a leaf does not have are ignored. "inputs" are all
        but the last: one number for each output of a Flax kernel, and for each element of a vector.

    Kept: float32, of the leaf's rank, with length 1 along `axes`.
    """
    chosen = None if axes is None else "inputs" if axes == "inputs" else check_axes("axes", axes)
    return Pooled(chosen, total=False)


def total() -> Pooled:
    """One number for a leaf: the sum of its elements (NovoGrad's squared norm)."""
    return Pooled(None, total=True)


class Factored:
    """See :func:`factored`."""

    def __init__(self, axes: str | tuple[int, int], least: int, floor: float, rest: str):
        self.axes, self.least, self.floor, self.rest = axes, least, floor, rest
        self.slots: tuple[str, ...] = ("row", "col")
        chosen = {"axes": axes, "min_size": least, "floor": floor, "rest": rest}
        plain = {"axes": "last", "min_size": 1, "floor": 0.0, "rest": "whole"}
        said = ", ".join(f"{name}={value}" for name, value in chosen.items() if value != plain[name])
        self.name = f"factored({said})" if said else "factored"

    def pair(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """The two axes factored: the one that columns run along (averaged for rows), and rows; None for neither."""
        if len(shape) < 2:
            return None
        if self.axes == "last":
            row, col = len(shape) - 2, len(shape) - 1
        elif self.axes == "largest":  # ties go to the later axis, as in a stable sort
            row, col = sorted(range(len(shape)), key=lambda i: shape[i])[-2:]
        else:
            if not all(-len(shape) <= int(a) < len(shape) for a in self.axes):
                return None
            row, col = (int(a) % len(shape) for a in self.axes)
        return (row, col) if min(shape[row], shape[col]) >= self.least else None

    def start(self, name: str, make: Callable[[Any], Array], p: Any) -> Array:
        """The first value of a slot, reduced; a single number where a leaf does not need the slot."""
        return self.reduce(make(p))[name]

    def reduce(self, x: Array) -> dict[str, Array]:
        """The means over columns and over rows; a leaf that is not factored is kept whole, or not at all."""
        return self.share(x, x.shape)

    def share(self, x: Array, shape: tuple[int, ...]) -> dict[str, Array]:
        """What some whole rows of a leaf of `shape` contribute to that."""
        pair = self.pair(shape)
        if pair is None:
            nothing = jnp.zeros((1,) * x.ndim, x.dtype)
            return {"row": x if self.rest == "whole" else nothing, "col": nothing}
        row, col = pair
        mean = lambda axis: jnp.sum(x, axis, keepdims=True) / shape[axis]
        return {"row": mean(col), "col": mean(row)}

    def expand(self, kept: dict[str, Array], shape: tuple[int, ...]) -> Array:
        """Rows times columns over the mean of the rows: the matrix of rank one with these means; else what is kept."""
        return self.spread(self.ready(kept, shape))

    def ready(self, kept: dict[str, Array], shape: tuple[int, ...]) -> dict[str, Array]:
        """What :meth:`spread` takes, computed once for a leaf; of the same shapes."""
        pair = self.pair(shape)
        if pair is None:
            return kept | {"col": jnp.ones_like(kept["col"])}
        mean = jnp.mean(kept["row"], pair[0], keepdims=True)
        return kept | {"row": divide(kept["row"], jnp.maximum(mean, self.floor) if self.floor else mean)}

    def spread(self, ready: dict[str, Array]) -> Array:
        """An array that broadcasts to the leaf, or, from some rows of what is ready, to these."""
        return ready["row"] * ready["col"]


def factored(
    axes: Literal["last", "largest"] | tuple[int, int] = "last",
    *,
    min_size: int = 1,
    floor: float = 0.0,
    rest: Literal["whole", "nothing"] = "whole",
) -> Factored:
    """Row and column means instead of a matrix: what Adafactor and CAME keep of a squared gradient.

    Args:
      axes: which two axes are factored: the last two, the two largest, or a pair.
      min_size: leaves whose smaller of the two axes is shorter are not factored.
      floor: the least mean that rows are divided by, in the units of what is averaged.
      rest: whether leaves that are not factored are kept whole or not at all (then 0 is put out).

    Kept: two slots, float32, of the leaf's rank; for an m by n matrix m + n numbers.

    References: Shazeer & Stern 2018, Algorithm 2 (arXiv:1804.04235).
    """
    if axes not in ("last", "largest") and not (isinstance(axes, tuple) and len(axes) == 2):
        raise ValueError(f"axes must be 'last', 'largest' or a pair of axes, but is {axes!r}.")
    if isinstance(axes, tuple) and (not all(type(a) is int for a in axes) or axes[0] == axes[1]):
        raise ValueError(f"the two axes must be different whole numbers, but are {axes!r}.")
    whole("the least size to factor", min_size)
    if rest not in ("whole", "nothing"):
        raise ValueError(f"rest must be 'whole' or 'nothing', but is {rest!r}.")
    return Factored(axes, min_size, floor, rest)
