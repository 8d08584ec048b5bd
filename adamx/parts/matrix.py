"""What matrices can do that their elements cannot: orthogonal steps, and Adam in a rotated basis."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from adamx.ground import hyper, numerics, tree
from adamx.ground.hyper import Scalar
from adamx.ground.part import Part, Seen, zeros
from adamx.ground.transform import Transformation, lift

# Jordan et al. 2024: a quintic whose five-fold composition lifts all singular values in [1e-3, 1] near 1.
QUINTIC = (3.4445, -4.7750, 2.0315)


def _h(x: Array) -> Array:
    return jnp.conj(jnp.swapaxes(x, -1, -2))


def orthogonalise(
    steps: int = 5, coefficients: tuple[float, float, float] = QUINTIC, eps: Scalar = 1e-8, *, floored: bool = False
) -> Transformation:
    """A matrix replaced by nearly U V^H of its singular value decomposition: Newton-Schulz iterations; 2-D leaves only.

    x_0 = u / (||u||_F + eps), then x <- a x + (b x x^H + c (x x^H)^2) x, on the side with fewer rows. Matrix products
    run in float32 at the platform's default precision, which the iteration was made for.

    Args:
      steps: iterations.
      coefficients: (a, b, c).
      eps: added to the norm, in units of what is fed.
      floored: divide by max(||u||, eps) instead (PyTorch).

    Raises:
      ValueError: if steps is not a whole number above 0; while tracing, if a leaf is not a matrix.

    References: Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024.
    """
    hyper.whole("ns_steps", steps)
    if len(coefficients) != 3 or not all(map(numerics.is_number, coefficients)):
        raise ValueError(f"coefficients must be three numbers, but are {coefficients!r}.")
    a, b, c = coefficients

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        if g.ndim != 2:
            raise ValueError(f"orthogonalise takes matrices, but a leaf has the shape {g.shape}; choose with by_leaf.")
        length = numerics.norm(g).astype(g.real.dtype)
        x = numerics.divide(g, jnp.maximum(length, h["eps"]) if floored else length + h["eps"])
        tall = g.shape[0] > g.shape[1]
        x = _h(x) if tall else x
        for _ in range(steps):
            gram = x @ _h(x)
            x = a * x + (b * gram + c * (gram @ gram)) @ x
        return (_h(x) if tall else x), slots

    return lift(Part("orthogonalise", update, hyper={"eps": hyper.at_least_zero("eps", eps)}))


def scale_by_shape(*, rows_out: bool = False) -> Transformation:
    """U * sqrt(max(1, outputs / inputs)), so that an orthogonal step changes outputs by as much in every layer.

    Args:
      rows_out: matrices are (outputs, inputs) as in PyTorch; Flax kernels are (inputs, outputs).
    """

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        rows, cols = g.shape
        ratio = (rows / max(cols, 1)) if rows_out else (cols / max(rows, 1))
        return g * math.sqrt(max(1.0, ratio)), slots

    return lift(Part("scale_by_shape", update))


def matrices(which: tree.Mask | None = None) -> Callable[[PyTree], Sequence[int]]:
    """For `by_leaf`: 0 for matrices (all, or those of the mask `which`), 1 for the rest."""

    def choose(params: PyTree) -> list[int]:
        leaves = tree.flatten(params)[0]
        chosen = [True] * len(leaves) if which is None else tree.selected(which, params, "matrices")
        return [0 if c and getattr(x, "ndim", 0) == 2 else 1 for c, x in zip(chosen, leaves, strict=True)]

    return choose


class _Rotation:
    """The square matrices of a leaf, one for each axis that is rotated, packed into an array of the leaf's rank."""

    def __init__(self, max_size: int):
        self.max_size = max_size

    def axes(self, shape: tuple[int, ...]) -> list[int]:
        return [i for i, n in enumerate(shape) if len(shape) > 1 and 0 < n <= self.max_size]

    def start(self, p: Any) -> Array:
        n = sum(p.shape[i] ** 2 for i in self.axes(p.shape)) or 1
        one = jnp.sum(zeros(p), keepdims=True).reshape((1,) * len(p.shape))
        return jnp.broadcast_to(one, (*one.shape[:-1], n)) + 0 if p.shape else one

    def unpack(self, packed: Array, shape: tuple[int, ...]) -> list[Array]:
        out, at, flat = [], 0, packed.reshape(-1)
        for i in self.axes(shape):
            n = shape[i]
            out.append(flat[at : at + n * n].reshape(n, n))
            at += n * n
        return out

    def pack(self, squares: list[Array], packed: Array) -> Array:
        return jnp.concatenate([s.reshape(-1) for s in squares]).reshape(packed.shape) if squares else packed

    def turn(self, x: Array, bases: list[Array], *, back: bool = False) -> Array:
        """Each axis into its basis, or back."""
        for i, q in zip(self.axes(x.shape), bases, strict=True):
            x = jnp.moveaxis(jnp.tensordot(x, q.T if back else jnp.conj(q), ([i], [0])), -1, i)
        return x


def scale_by_soap(
    b1: Scalar = 0.95,
    b2: Scalar = 0.95,
    eps: Scalar = 1e-8,
    *,
    shampoo_beta: Scalar | None = None,
    every: int = 10,
    max_size: int = 10_000,
) -> Transformation:
    """Adam in the eigenbasis of Shampoo's Gram matrices; the first step only builds the basis and moves nothing.

    Args:
      b1, b2, eps: Adam's; eps is added to the raw root.
      shampoo_beta: share of the Gram matrices kept a step; b2 when left out.
      every: steps between two renewals of the basis (one power iteration and a QR decomposition).
      max_size: longer axes are not rotated.

    State: mu and nu, float32[params], in the basis; gram and basis, the sum of n^2 numbers over the axes each.

    Under `vmap` on CPU, XLA (jax 0.10.2) may run two batched decompositions at once and wait for ever; the flag
    `--xla_cpu_enable_concurrency_optimized_scheduler=false` in XLA_FLAGS keeps it from that.

    References: Vyas et al., SOAP, ICLR 2025, Algorithm 3 (arXiv:2409.11321).
    """
    hyper.whole("precondition_frequency", every)
    hyper.whole("max_size", max_size)
    rotation = _Rotation(max_size)

    def gram(g: Array, axis: int) -> Array:
        rest = [i for i in range(g.ndim) if i != axis]
        return jnp.tensordot(g, jnp.conj(g), (rest, rest))

    def same(grams: list[Array], bases: list[Array], mu: Array, nu: Array) -> tuple[list[Array], Array, Array]:
        return bases, mu, nu

    def first(grams: list[Array], bases: list[Array], mu: Array, nu: Array) -> tuple[list[Array], Array, Array]:
        tiny = lambda m: m + 1e-30 * jnp.eye(len(m), dtype=m.dtype)
        return [jnp.linalg.eigh(tiny(m))[1][:, ::-1] for m in grams], mu, nu

    def renewed(grams: list[Array], bases: list[Array], mu: Array, nu: Array) -> tuple[list[Array], Array, Array]:
        mu, out = rotation.turn(mu, bases, back=True), []
        for axis, m, q in zip(rotation.axes(nu.shape), grams, bases, strict=True):
            order = jnp.argsort(-jnp.real(jnp.sum(jnp.conj(q) * (m @ q), 0)))
            nu = jnp.take(nu, order, axis)
            out.append(jnp.linalg.qr(m @ q[:, order])[0])
        return out, rotation.turn(mu, out), nu

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        bases, grams = (rotation.unpack(slots[name], g.shape) for name in ("basis", "gram"))
        opening = seen.t == 1
        # Both moments are of the turned gradient, as the authors keep them: where the basis is rounding, so are both,
        # and their ratio stays bounded.
        turned = rotation.turn(g, bases)
        mu = jnp.where(opening, slots["mu"], numerics.lerp(slots["mu"], turned, h["b1"]))
        nu = jnp.where(opening, slots["nu"], numerics.lerp(slots["nu"], numerics.abs_square(turned), h["b2"]))
        out = jnp.where(opening, 0, rotation.turn(numerics.divide(mu, numerics.sqrt(nu) + h["eps"]), bases, back=True))
        if bases:
            axes = rotation.axes(g.shape)
            grams = [numerics.lerp(m, gram(g, i), h["shampoo"]) for i, m in zip(axes, grams, strict=True)]
            which = jnp.where(opening, 1, jnp.where((seen.t - 1) % every == 0, 2, 0))
            bases, mu, nu = jax.lax.switch(which, [same, first, renewed], grams, bases, mu, nu)
        return out * h["correct"], {
            "mu": mu,
            "nu": nu,
            "gram": rotation.pack(grams, slots["gram"]),
            "basis": rotation.pack(bases, slots["basis"]),
        }

    def correct(t: Array, b1: Any, b2: Any) -> Array:  # the first step does not count
        k = jnp.maximum(t - 1, 1)
        return jnp.sqrt(numerics.one_minus_power(b2, k)) / numerics.one_minus_power(b1, k)

    kept = b2 if shampoo_beta is None else shampoo_beta
    hypers: dict[str, Any] = {"b1": hyper.decay("b1", b1), "b2": hyper.decay("b2", b2)}
    hypers["correct"] = hyper.Derived(correct, hypers["b1"], hypers["b2"])
    hypers |= {"eps": hyper.at_least_zero("eps", eps), "shampoo": hyper.decay("shampoo_beta", kept)}
    slots = {
        "mu": zeros,
        "nu": lambda p: zeros(p, real=True),
        "gram": rotation.start,
        "basis": rotation.start,
    }
    return lift(Part("scale_by_soap", update, slots, hypers, positive=frozenset({"nu"})))
