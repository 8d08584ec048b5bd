"""How a moment is kept between steps, whatever the method."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from adamx.ground import tree
from adamx.ground.transform import Transformation, lift


def store_state(tx: Transformation, **dtypes: Any) -> Transformation:
    """The same method with moments kept in other floating dtypes; each step computes in float32 and sees fresh values.

    Args:
      tx: a method, or a chain of links from adamx only.
      dtypes: for moments by name, a floating dtype such as `jnp.bfloat16` or "float16". Rounding is to nearest: in
        bfloat16 a second moment with 1 - b2 < 2^-9 can never decay, so keep `nu` in float32. Moments of complex leaves
        stay complex64.

    Raises:
      TypeError: if tx is not made of parts, or a dtype is not a real floating one.
      ValueError: if the method keeps no moment of a name.

    >>> import adamx
    >>> tx = store_state(adamx.adam(1e-3), mu=jnp.bfloat16)
    >>> {name: m["w"].dtype.name for name, m in tx.init({"w": jnp.ones(3)}).moments.items()}
    {'mu': 'bfloat16', 'nu': 'float32'}
    """
    if getattr(tx, "parts", None) is None:
        raise TypeError(f"store_state needs a method or a chain made of adamx's links, not {tx!r:.80}.")
    parts = tx.parts or ()
    kept = [name for part in parts for name in part.slots]
    for name, dtype in dtypes.items():
        if name not in kept:
            raise ValueError(f"there is no moment {name!r} to store; this method keeps {tree.some(kept) or 'none'}.")
        if not _is_floating(dtype):
            raise TypeError(f"{name} must be stored in a floating dtype such as 'bfloat16', not {dtype!r}.")

    def stored(make: Callable[..., Array], dtype: Any, p: Any, *label: Any) -> Array:
        slot = make(p, *label)
        return slot if jnp.iscomplexobj(slot) else slot.astype(dtype)

    return lift(
        *(
            part._replace(
                slots={n: partial(stored, make, dtypes[n]) if n in dtypes else make for n, make in part.slots.items()}
            )
            for part in parts
        )
    )


def _is_floating(dtype: Any) -> bool:
    try:
        return dtype is not None and jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        return False
