"""Trees and the names of their leaves. No optimisation."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

# A choice of leaves: a tree of bools (or a prefix of one), a function of the parameters that returns one, or one or
# several glob patterns over leaf names.
Mask = PyTree | Callable[[PyTree], PyTree] | str | Sequence[str]


def is_none(x: Any) -> bool:
    """Whether x is None: filtered models have it where nothing is trained."""
    return x is None


def flatten(tree: PyTree) -> tuple[list[Any], Any]:
    """The leaves, with None kept as a leaf, and the structure."""
    return jax.tree.flatten(tree, is_leaf=is_none)


def _part(key: Any) -> str:
    return str(next((getattr(key, a) for a in ("key", "idx", "name") if hasattr(key, a)), key))


def names(tree: PyTree) -> list[str]:
    """The names of all leaves in order, such as "dense/kernel", None leaves included.

    Flax's `nnx.Optimizer` shows variables at init and their arrays at update; both must read the same, so an attribute
    `value` that is all there is in its node is not named.

    >>> names({"dense": {"kernel": 1, "bias": 2}, "scale": [3, None]})
    ['dense/bias', 'dense/kernel', 'scale/0', 'scale/1']
    """
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(_bare(tree), is_leaf=is_none)[0]]
    return ["/".join(map(_part, path)) for path in paths]


def some(words: Sequence[str], most: int = 6) -> str:
    """A short list for an error sentence, with how many more there are.

    >>> some(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    head = ", ".join(repr(w) if w == "" else w for w in words[:most])
    return head if len(words) <= most else f"{head} and {len(words) - most} more"


def _patterns(mask: Mask) -> list[str] | None:
    if isinstance(mask, str):
        return [mask]
    if isinstance(mask, (list, tuple)) and mask and all(isinstance(m, str) for m in mask):
        return list(mask)
    return None


def selected(mask: Mask, tree: PyTree, who: str) -> list[bool]:
    """Which leaves of `tree` a mask chooses, in the order of :func:`flatten`.

    Args:
      mask: glob patterns over names (`*` also matches `/`), a tree of bools or a prefix of one, or a function that
        makes one from `tree`.
      tree: parameters or gradients; its values are not read.
      who: the argument's name in error sentences.

    Raises:
      ValueError: if the mask has another structure than the tree, or a pattern or the whole mask chooses nothing.
      TypeError: if an entry is not a bool.

    >>> selected("*kernel", {"dense": {"kernel": 1, "bias": 2}}, "mask")
    [False, True]
    """
    words = names(tree)
    patterns = _patterns(mask)
    if patterns is not None:
        for pattern in patterns:
            if words and not any(fnmatchcase(w, pattern) for w in words):
                raise ValueError(
                    f"{who}={pattern!r} matches none of the {len(words)} leaves ({some(words)}); patterns are globs"
                    ' over the whole name, such as "*kernel" or "decoder/*".'
                )
        return [any(fnmatchcase(w, p) for p in patterns) for w in words]
    if not words:  # the placeholder of optax.tree.map_params and empty trees have nothing to choose from
        return []
    # A filtered Equinox model of bools is callable too, but its leaves are not.
    is_function = callable(mask) and all(map(callable, jax.tree.leaves(mask)))
    chosen: Any = mask(_bare(tree)) if is_function else mask  # pyright: ignore[reportCallIssue]
    leaves, structure = flatten(tree)
    marked = structure.unflatten(None if leaf is None else i for i, leaf in enumerate(leaves))
    out = [False] * len(leaves)
    try:
        pairs = jax.tree.leaves(
            jax.tree.map(lambda m, sub: _Pair(m, sub), chosen, marked), is_leaf=lambda x: isinstance(x, _Pair)
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{who} must be a tree of bools with the structure of the parameters ({some(words)}), or a prefix of it,"
            f" but has the leaves {some(names(chosen))}."
        ) from error
    for pair in pairs:
        if not isinstance(pair.chosen, (bool, np.bool_)):
            raise TypeError(f"{who} must hold bools, not {pair.chosen!r}: it says for each leaf whether it is chosen.")
        for i in jax.tree.leaves(pair.leaves):
            out[i] = bool(pair.chosen)
    if not any(out):
        raise ValueError(
            f"{who} chooses none of the {len(words)} leaves ({some(words)}); leave the link out, or mend the mask."
        )
    return out


def first_match(patterns: Sequence[str], tree: PyTree, who: str) -> list[int]:
    """For each leaf the position of the first pattern that matches its name, len(patterns) where none does.

    Raises:
      ValueError: if a pattern matches no leaf, or only leaves that an earlier one has.

    >>> first_match(["*bias", "dense/*"], {"dense": {"kernel": 1, "bias": 2}, "scale": 3}, "groups")
    [0, 1, 2]
    """
    words = names(tree)
    first = [next((i for i, p in enumerate(patterns) if fnmatchcase(w, p)), len(patterns)) for w in words]
    for i, pattern in enumerate(patterns):
        if words and i not in first:
            earlier = [patterns[k] for w, k in zip(words, first, strict=True) if fnmatchcase(w, pattern)]
            says = f"only leaves that {some(sorted(set(earlier)))} took before it, among" if earlier else "none of"
            raise ValueError(
                f"the pattern {pattern!r} of {who} matches {says} the {len(words)} leaves ({some(words)})."
            )
    return first


def _bare(tree: PyTree) -> PyTree:
    """The tree with Flax's variables replaced by what they hold, so that paths are the same at init and at update."""
    value = (jax.tree_util.GetAttrKey("value"),)

    def holds(x: Any) -> bool:
        below = jax.tree_util.tree_flatten_with_path(x, is_leaf=lambda y: y is not x)[0]
        return len(below) == 1 and below[0][0] == value

    def held(x: Any) -> Any:  # an array, or the node that hides one from a mask
        return jax.tree_util.tree_flatten_with_path(x, is_leaf=lambda y: y is not x)[0][0][1]

    return jax.tree.map(lambda x: held(x) if holds(x) else x, tree, is_leaf=holds)


class _Pair:
    """A mask's entry with the leaves below it; not a pytree, so that it stands as one leaf."""

    def __init__(self, chosen: Any, leaves: PyTree):
        self.chosen, self.leaves = chosen, leaves
