"""How the numbers of a run are kept between steps, whatever the method: moments, and parameters."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int32, PyTree

from adamx.ground import codec, numerics, tree
from adamx.ground.codec import Codec, Precision, Storage, nbytes
from adamx.ground.hyper import whole
from adamx.ground.leaf import is_narrow
from adamx.ground.part import Part
from adamx.ground.transform import Transformation, check_transformation, lift
from adamx.parts import codecs
from adamx.wrap.entry import MARK, full_params, narrow

# By preset: the codec of what has both signs, and of what is never below zero.
PRESETS = {
    "8bit": (codecs.int8, codecs.uint8),
    "4bit": (codecs.int4, codecs.uint4),
    "bf16": (codecs.bfloat16, lambda: codecs.bfloat16(stochastic=True)),
}
# Of optax's states: fields that a preset knows.
_FOREIGN = {"mu": False, "trace": False, "nu": True, "nu_max": True, "sum_of_squares": True}
_BY_DTYPE = {
    "float32": codecs.float32,
    "bfloat16": codecs.bfloat16,
    "float16": codecs.float16,
    "float8_e4m3fn": codecs.float8_e4m3fn,
    "float8_e5m2": codecs.float8_e5m2,
    "int8": codecs.int8,
    "uint8": codecs.uint8,
    "int4": codecs.int4,
    "uint4": codecs.uint4,
}


class Stored(NamedTuple):
    """The state of a foreign transformation whose moments are kept encoded.

    Attributes:
      count: int32[], steps taken.
      inner: its own state, with codes in the fields that are stored.
      beside: by field and what is kept ("mu_scale"), trees of the field's structure.
    """

    count: Int32[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride] (it hides tuple.count; optax's name)
    inner: PyTree
    beside: dict[str, PyTree]


class _Foreign(Transformation):
    """Another library's transformation in the storage of this one.

    Attributes:
      rows: `params -> list[Row]`, of a plan.
    """

    rows: Any = None


class _StoreState:
    """See :func:`store_state`; an object so that its plan is found beside it."""

    def __call__(
        self,
        tx: optax.GradientTransformation,
        preset: str | None = None,
        /,
        *,
        min_size: int = 4096,
        keep: tree.Mask | None = None,
        seed: int = 0,
        tile: int | None = None,
        **moments: Codec | Any,
    ) -> Transformation:
        """The same method with its moments kept in fewer bytes; each step computes in float32 and sees fresh values.

        Args:
          tx: a method, a chain of links from adamx, or any transformation of optax.
          preset: "8bit" (`codecs.int8()`, and `uint8()` for what is never negative), "4bit" (`int4()`, `uint4()`) or
            "bf16" (to nearest, and stochastically for what is never negative) for all averages of gradients and their
            squares that are not named. Copies of parameters, as `lookahead` keeps them, stay as they are.
          min_size: leaves of fewer elements keep float32: norms and biases are few bytes and much of the training.
          keep: leaves that keep float32 whatever their size; glob patterns over names, a tree of bools, or a function.
          seed: of the noise of stochastic codecs, which is the same on one device and many, whole and in tiles.
          tile: elements of a leaf that are computed at a time, in place, so that temporaries are a tile and not a leaf;
            by default 2^19 on CPU, 2^22 elsewhere, and of `reduced` codecs (factored, pooled) at least a row. Computed
            whole are leaves that are sharded without `shard_map`, those of methods that reduce over a leaf, and those
            of `reduced` codecs that are no matrices. There is no derivative in reverse through tiles.
          moments: by name, a codec of :mod:`adamx.codecs`, or a dtype for the plain one of that dtype.

        State: codes under the moment's name, of the parameters' shape (4 bits: half its last axis), and with codecs by
        blocks float32 units under "mu_scale"; a leaf that keeps float32 has one number there. A number named after
        each codec travels with checkpoints, so that another configuration refuses them.

        Of foreign transformations the fields of these names are encoded after every step, whole leaves at a time.

        Raises:
          TypeError: if tx is no transformation, or a moment's value no codec.
          ValueError: if there is no such preset or moment, a codec cannot keep numbers below zero where the moment has
            them; at init, if the leaf is sharded such that blocks do not fit.

        >>> import adamx
        >>> tx = adamx.store_state(adamx.adam(1e-3), "8bit")
        >>> state = tx.init({"w": jnp.ones((128, 256)), "b": jnp.ones(256)})
        >>> {name: m["w"].dtype.name for name, m in state.moments.items()}
        {'mu': 'int8', 'mu_scale': 'float32', 'nu': 'uint8', 'nu_scale': 'float32'}
        >>> print(adamx.store_state.plan(tx, {"w": jnp.ones((128, 256)), "b": jnp.ones(256)}))
        leaf    shape     mu                nu                 before   after
        b       256       float32           float32              2048    2056
        w       128x256   int8(block=256)   uint8(block=256)   262144   66560
        total                                                  264192   68616
        a parameter of 33024: 8.00 bytes before, 2.08 after
        """
        check_transformation(tx, "store_state")
        whole("min_size", min_size, 0)
        _check_noise(seed, tile)
        if preset is not None and (not isinstance(preset, str) or preset not in PRESETS):
            raise ValueError(
                f"there is no preset {preset!r:.60}; there are {', '.join(map(repr, PRESETS))}, and codecs go by name,"
                " as in mu=int8()."
            )
        if preset is None and not moments:
            raise ValueError(
                "store_state needs a preset or a moment, as in store_state(tx, '8bit') or (tx, mu=int8())."
            )
        named = {name: _as_codec(name, value) for name, value in moments.items()}

        def plain(params: PyTree) -> list[bool]:
            kept = [False] * len(tree.flatten(params)[0]) if keep is None else tree.selected(keep, params, "keep")
            small = (x is not None and int(np.prod(np.shape(x))) < min_size for x in tree.flatten(params)[0])
            return [a or b for a, b in zip(kept, small, strict=True)]

        parts = getattr(tx, "parts", None)
        if parts is None:
            if isinstance(tx, Transformation):
                raise TypeError(
                    "store_state stands around a method or a chain of links, and wrappers stand around it:"
                    " skip_nonfinite(store_state(adam(...), ...)), store_params(accumulate(store_state(...), 4), ...)."
                )
            return _foreign(tx, PRESETS.get(preset or ""), named, plain, seed)
        kept = {name: name in part.positive for part in parts for name in part.slots if not _is_residue(part)}
        exact = {name for part in parts for name in part.exact}
        chosen = _chosen({n: x for n, x in kept.items() if n in named or n not in exact}, preset, named, kept)
        for name, c in chosen.items():
            if not c.signed and not kept[name]:
                raise ValueError(f"{c.name} keeps no number below zero, but {name} has some; choose a signed codec.")
            if name in exact and (len(c.cuts) > 1 or c.smallest_step > 2.0**-8):
                raise ValueError(
                    f"{name} is no average of gradients but a copy of parameters, or grows by small steps, which"
                    f" {c.name} would lose; leave it as it is."
                )

        def stored(part: Part) -> Part:
            mine = {name: c for name, c in chosen.items() if name in part.slots}
            if not mine:
                return part
            if part.storage.codecs:
                raise ValueError(
                    f"{tree.some(list(part.storage.codecs))} is stored already; name all codecs in one call."
                )
            marks = {f"{name} as {c.name}": 1 for name, c in mine.items()}
            return part._replace(storage=Storage(mine, None, plain, seed, tile), scalars={**part.scalars, **marks})

        return lift(*map(stored, parts))

    def plan(self, tx: Transformation, params: PyTree) -> "Plan":
        """What is kept of each leaf, and in how many bytes; print it before training.

        Args:
          tx: a method, chain, `store_state(...)` or `store_params(...)` of such. Of a foreign transformation under
            `store_state` the fields that are stored are told and counted.
          params: arrays or their descriptions; nothing is allocated.

        Raises:
          TypeError: if tx is none of these.
        """
        parts = getattr(tx, "parts", None)
        if parts is None:
            rows = getattr(tx, "rows", None)
            if rows is None:
                raise TypeError(
                    f"the plan of {tx!r:.60} is not known: pass the store_state(...) itself, or the store_params(...)"
                    " of one."
                )
            return Plan(tuple(rows(params)))
        bare = lift(*(part._replace(storage=Storage()) for part in parts if not _is_residue(part)))
        shapes = jax.eval_shape(lambda p: p, params)
        before, after = (jax.eval_shape(t.init, shapes).moments for t in (bare, tx))
        columns = [name for part in parts if not _is_residue(part) for name in part.slots]
        found = {name: c for part in parts for name, c in part.storage.codecs.items()}
        precision = parts[-1].storage.precision if parts else None
        leaf = lambda of, name, i: tree.flatten(of[name])[0][i]
        rows = []
        for i, (name, p) in enumerate(zip(tree.names(params), tree.flatten(shapes)[0], strict=True)):
            if p is None:
                continue
            says = {}
            for slot in columns:
                first = leaf(after, slot, i)
                c = found.get(slot)
                is_code = c is not None and c.encoded({"": first}, p.shape)
                says[slot] = c.name if c is not None and is_code else first.dtype.name
            if precision is not None:
                says["parameter"] = f"{p.dtype.name} {precision.name}" if is_narrow(p.dtype) else p.dtype.name
            size = lambda of, i=i: sum(nbytes(leaf(of, n, i)) for n in of)
            rows.append(Row(name, p.shape, says, size(before), size(after), nbytes(p)))
        return Plan(tuple(rows))


store_state = _StoreState()


class Row(NamedTuple):
    """One leaf of a plan: how each moment (and the parameter) is kept, and the state's bytes."""

    leaf: str
    shape: tuple[int, ...]
    kept: Mapping[str, str]
    before: int
    after: int
    parameter: int


class Plan(NamedTuple):
    """What a state holds, leaf by leaf; prints as a table.

    Attributes:
      rows: one for each leaf.
    """

    rows: tuple[Row, ...]

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(int(np.prod(row.shape)) for row in self.rows)

    @property
    def state_bytes(self) -> int:
        """Of the optimiser's state: moments, units, residues."""
        return sum(row.after for row in self.rows)

    @property
    def training_bytes(self) -> int:
        """Of parameters, their gradients in the same dtype, and the state."""
        return self.state_bytes + 2 * sum(row.parameter for row in self.rows)

    def __str__(self) -> str:
        """The table, and what a parameter takes."""
        kinds = list(dict.fromkeys(k for row in self.rows for k in row.kept))
        head = ["leaf", "shape", *kinds, "before", "after"]
        lines = [
            [
                r.leaf,
                "x".join(map(str, r.shape)) or "()",
                *(r.kept.get(k, "") for k in kinds),
                str(r.before),
                str(r.after),
            ]
            for r in self.rows
        ]
        before, after = (
            (str(sum(x)) for x in zip(*((r.before, r.after) for r in self.rows), strict=True)) if lines else ("0",) * 2
        )
        lines.append(["total", "", *("" for _ in kinds), before, after])
        widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
        right = len(head) - 2
        row = lambda cells: "   ".join(
            c.rjust(w) if i >= right else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        n = max(self.parameters, 1)
        end = f"a parameter of {self.parameters}: {int(before) / n:.2f} bytes before, {int(after) / n:.2f} after"
        if "parameter" in kinds:
            weights = sum(r.parameter for r in self.rows) / n
            end += f"; in training {self.training_bytes / n:.2f} with weights and gradients of {weights:.2f} each"
        return "\n".join([row(head), *map(row, lines), end])


def _check_noise(seed: Any, tile: Any) -> None:
    if tile is not None:
        whole("tile", tile)
    if whole("seed", seed, 0) >= 2**32:
        raise ValueError(f"seed must be below 2^32, but is {seed}.")


def _is_residue(part: Part) -> bool:
    return part.storage.precision is not None


def _as_codec(name: str, value: Any) -> Codec:
    if isinstance(value, Codec):
        return value
    if hasattr(value, "share"):
        return codecs.reduced(value)
    try:
        made = None if value is None else _BY_DTYPE.get(jnp.dtype(value).name)
    except TypeError:
        made = None
    if made is None:
        raise TypeError(f"{name} must be stored by a codec such as codecs.int8(), or in a dtype, not {value!r:.60}.")
    return made()


def _chosen(
    kept: Mapping[str, bool], preset: str | None, named: Mapping[str, Codec], slots: Mapping[str, bool]
) -> dict[str, Codec]:
    """The codec of each moment, of those that a preset may choose for and those that are named."""
    for name in named:
        if name not in slots:
            raise ValueError(
                f"there is no moment {name!r} to store; this method keeps {tree.some(list(slots)) or 'none'}."
            )
    both = PRESETS.get(preset or "")
    rest = {} if both is None else {name: both[positive]() for name, positive in kept.items() if name not in named}
    return {**rest, **named}


def _foreign(tx: Any, preset: Any, named: Mapping[str, Codec], plain: Any, seed: int) -> Transformation:
    """Another library's transformation, whose fields are decoded before each step and encoded after it."""
    tx = optax.with_extra_args_support(tx)

    def fields(state: PyTree) -> dict[str, Codec]:
        def has(name: str) -> bool:
            try:
                return optax.tree.get(state, name, None) is not None
            except KeyError:  # several
                return False

        known = {name: preset[positive]() for name, positive in _FOREIGN.items() if preset is not None and has(name)}
        if not known and not named:
            raise ValueError(
                f"a preset knows the fields {tree.some(list(_FOREIGN))} of optax's states, and this one has none of"
                " them (or several of one name); name the fields, as in store_state(tx, mu=int8())."
            )
        for name, c in named.items():
            if not has(name):
                raise ValueError(f"there is no field {name!r} to store in the state of {type(state).__name__}.")
            if not c.signed and not _FOREIGN.get(name, False):
                says = "has some" if name in _FOREIGN else "may have some"
                raise ValueError(f"{c.name} keeps no number below zero, but {name} {says}; choose a signed codec.")
        return {**known, **named}

    def init(params: PyTree) -> Stored:
        state = tx.init(params)
        keeps, beside = plain(params), {}
        for name, c in fields(state).items():
            leaves, treedef = tree.flatten(optax.tree.get(state, name))
            if len(leaves) != len(keeps):
                raise ValueError(f"the field {name!r} is not shaped like the parameters, so that it cannot be stored.")
            each = [None if x is None else c.start(x, k) for x, k in zip(leaves, keeps, strict=True)]
            beside |= {
                c.names(name)[w]: treedef.unflatten(None if k is None else k[w] for k in each) for w in c.cuts if w
            }
            state = optax.tree.set(state, **{name: treedef.unflatten(None if k is None else k[""] for k in each)})
            beside[f"{name} as {c.name}"] = jnp.ones((), jnp.int32)
        return Stored(jnp.zeros((), jnp.int32), state, beside)

    def update(updates: PyTree, state: Stored, params: PyTree = None, **extra: Any) -> tuple[PyTree, Stored]:
        if not isinstance(state, Stored):
            raise TypeError(
                f"this state was not made by store_state: {state!r:.60}; make it with this optimiser's init."
            )
        inner, chosen = state.inner, fields(state.inner)
        wanted = {f"{name} as {c.name}" for name, c in chosen.items()}
        wanted |= {c.names(name)[w] for name, c in chosen.items() for w in c.cuts if w}
        if wanted != state.beside.keys():
            raise TypeError(
                f"this state holds {tree.some([*state.beside]) or 'nothing encoded'}, but the optimiser keeps"
                f" {tree.some(sorted(wanted))}; make it with this optimiser's init, or restore the checkpoint that it"
                " wrote."
            )
        shapes = [None if g is None else jnp.shape(g) for g in tree.flatten(updates)[0]]
        kept: dict[str, list] = {}
        for name, c in chosen.items():
            leaves, treedef = tree.flatten(optax.tree.get(inner, name))
            others = {w: treedef.flatten_up_to(state.beside[c.names(name)[w]]) for w in c.cuts if w}
            kept[name] = [{"": x} | {w: o[i] for w, o in others.items()} for i, x in enumerate(leaves)]
            wide = [None if s is None else c.load(k, s) for k, s in zip(kept[name], shapes, strict=True)]
            inner = optax.tree.set(inner, **{name: treedef.unflatten(wide)})
        out, inner = tx.update(updates, inner, params, **extra)
        beside = dict(state.beside)
        count = numerics.increment(state.count)
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), count)
        for place, (name, c) in enumerate(chosen.items()):
            leaves, treedef = tree.flatten(optax.tree.get(inner, name))
            own = [
                jax.random.key_data(jax.random.fold_in(jax.random.fold_in(key, place), i)) for i in range(len(leaves))
            ]
            bits = lambda i, own=own: lambda: codec.noise(own[i], shapes[i] or ())
            each = [None if x is None else c.save(x, kept[name][i], bits(i)) for i, x in enumerate(leaves)]
            beside |= {
                c.names(name)[w]: treedef.unflatten(None if k is None else k[w] for k in each) for w in c.cuts if w
            }
            inner = optax.tree.set(inner, **{name: treedef.unflatten(None if k is None else k[""] for k in each)})
        return out, Stored(count, inner, beside)

    def rows(params: PyTree) -> list[Row]:
        before, after = (jax.eval_shape(of, params) for of in (tx.init, init))
        leaf = lambda of, i: tree.flatten(of)[0][i]
        found = []
        for i, (name, p) in enumerate(zip(tree.names(params), tree.flatten(params)[0], strict=True)):
            if p is None:
                continue
            says, size = {}, [0, 0]
            for field, c in fields(before).items():
                kept = {w: leaf(after.beside[c.names(field)[w]], i) for w in c.cuts if w}
                kept[""] = leaf(optax.tree.get(after.inner, field), i)
                says[field] = c.name if c.encoded(kept, np.shape(p)) else kept[""].dtype.name
                size[0] += nbytes(leaf(optax.tree.get(before, field), i))
                size[1] += sum(map(nbytes, kept.values()))
            found.append(Row(name, np.shape(p), says, size[0], size[1], nbytes(p)))
        return found

    made = _Foreign(init, update)
    made.rows = rows
    return made


def store_params(
    tx: optax.GradientTransformation, precision: Precision, *, seed: int = 0, tile: int | None = None
) -> Transformation:
    """A method for bfloat16 or float16 parameters that loses no step to their rounding.

    tx sees the parameters in float32, as `precision` keeps them; the update that comes out is the float32 difference
    between the next visible parameter and this one, so that `optax.apply_updates` lands on it bit for bit. Leaves of
    other dtypes are trained as ever.

    Args:
      tx: any transformation; if it is made of adamx's links, each leaf is computed tile by tile, in place.
      precision: of :mod:`adamx.codecs`: `split8()`, `split16()`, `kahan()`, `stochastic()`, `master()`, `nearest()`.
      seed: of the noise of stochastic ones.
      tile: as in :func:`store_state`.

    State: that of tx, and one slot ("residue_int8", "residue_int16", "residue_kahan" or "master") of the parameters'
    shape. Start from float32 parameters with :func:`split_params`, and get them back with :func:`full_params`.

    It must come last: nothing may change an update behind it. Parameters below 3e-36 become 0. Derivatives do not go
    through the rounding (they are 0), nor in reverse through leaves that are computed in tiles.

    Raises:
      TypeError: if tx is no transformation, or precision none of the six.
      ValueError: if it stands inside another.

    >>> import adamx
    >>> def hundred_steps(tx, p):
    ...     state = tx.init(p)
    ...     for _ in range(100):
    ...         updates, state = tx.update({"w": jnp.ones(1, jnp.bfloat16)}, state, p)
    ...         p = optax.apply_updates(p, updates)
    ...     return float(p["w"][0])
    >>> p = {"w": jnp.ones(1, jnp.bfloat16)}
    >>> hundred_steps(adamx.sgd(1e-3), p), hundred_steps(adamx.store_params(adamx.sgd(1e-3), adamx.codecs.split8()), p)
    (1.0, 0.8984375)
    """
    check_transformation(tx, "store_params", alters=True)
    if not isinstance(precision, Precision):
        raise TypeError(
            f"precision must be one such as codecs.split8(), not {precision!r:.60}; moments are store_state's."
        )
    _check_noise(seed, tile)

    def start(p: Any) -> Array:
        if not is_narrow(p.dtype) or precision.start is None:
            return jnp.zeros((1,) * len(p.shape), jnp.float32)
        return precision.start(jnp.asarray(p).astype(jnp.float32), p.dtype)

    slots = {} if precision.keeps is None else {precision.keeps: start}
    marks = {MARK + precision.name: 1}
    keep = lambda h, g, slots, p, seen: (g, slots)
    storage = Storage(precision=precision, seed=seed, tile=tile)
    end = Part("store_params", keep, slots, scalars=marks, needs_params=True, storage=storage)
    parts = getattr(tx, "parts", None)
    if parts is not None:
        return lift(*parts, end)
    landing, inner = lift(end), optax.with_extra_args_support(tx)

    def init(params: PyTree) -> tuple[PyTree, PyTree]:
        wide = jax.tree.map(lambda p: p.astype(jnp.float32) if narrow(p) else p, params)
        return inner.init(wide), landing.init(params)

    def update(updates: PyTree, state: Any, params: PyTree = None, **extra: Any) -> tuple[PyTree, Any]:
        if params is None:
            raise ValueError("store_params reads the parameters: call update(grads, state, params).")
        wide = jax.tree.map(lambda g: g.astype(jnp.float32) if narrow(g) else g, updates)
        out, after = inner.update(wide, state[0], full_params(state[1], params), **extra)
        out, landed = landing.update(out, state[1], params)
        return out, (after, landed)

    inner_rows: Any = getattr(tx, "rows", None)

    def rows(params: PyTree) -> list[Row]:
        wide = jax.eval_shape(lambda p: jax.tree.map(lambda x: x.astype(jnp.float32) if narrow(x) else x, p), params)
        residues = jax.eval_shape(landing.init, params).moments.values()
        live = [(i, p) for i, p in enumerate(tree.flatten(params)[0]) if p is not None]
        found = []
        for row, (i, p) in zip(inner_rows(wide), live, strict=True):
            how = f"{p.dtype.name} {precision.name}" if narrow(p) else p.dtype.name
            beside = sum(nbytes(tree.flatten(of)[0][i]) for of in residues)
            found.append(
                row._replace(kept={**row.kept, "parameter": how}, after=row.after + beside, parameter=nbytes(p))
            )
        return found

    made = _Foreign(init, update, every=getattr(tx, "every", 1))
    made.lands, made.rows = True, rows if inner_rows else None
    return made


def seven_bytes(
    tx: optax.GradientTransformation, *, min_size: int = 4096, keep: tree.Mask | None = None, seed: int = 0
) -> Transformation:
    """Training in 7 bytes a parameter: bfloat16 weights (2) and gradients (2), a residue (1), 8-bit moments (1 + 1).

    It is `store_params(store_state(tx, "8bit"), codecs.split8(stochastic=True))`: steps too small for the 16 bits of
    weight and residue are not lost on average. Units add 2 * 4 / 256 bytes; methods with more or fewer moments than
    Adam take as many more or fewer.

    Args:
      tx: a method; see :func:`store_state`.
      min_size, keep: leaves whose moments keep float32.
      seed: of the residue's rounding.

    State: tx's with codes for moments, "mu_scale" and "nu_scale" beside them, "residue_int8": int8[params].

    Raises:
      TypeError, ValueError: as :func:`store_state` and :func:`store_params`.

    >>> import adamx
    >>> print(adamx.store_state.plan(adamx.seven_bytes(adamx.adam(1e-3)), {"w": jnp.ones((64, 256), jnp.bfloat16)}))
    leaf    shape    mu                nu                 parameter                    before   after
    w       64x256   int8(block=256)   uint8(block=256)   bfloat16 split8 stochastic   131072   49664
    total                                                                              131072   49664
    a parameter of 16384: 8.00 bytes before, 3.03 after; in training 7.03 with weights and gradients of 2.00 each
    """
    stored = store_state(tx, "8bit", min_size=min_size, keep=keep)
    return store_params(stored, codecs.split8(stochastic=True), seed=seed)
