"""A kernel's step is the plain path's step bit for bit, wherever it runs; no hardware here, so by Pallas's interpreter.

Whether the kernels compile is seen as far as a machine without accelerators can: by lowering for them.
"""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import adamx
from adamx.ground import stream
from adamx.kernels.fused import PLATFORMS, fused
from adamx.kernels.grid import pieces
from benchmarks import kernel as benchmark

codecs = adamx.codecs
RATE = adamx.schedules.warmup_cosine(1e-2, 2, 10)
METHODS = {
    "seven bytes": (jnp.bfloat16, lambda: adamx.seven_bytes(adamx.adamw(1e-2))),
    "stochastic": (
        jnp.bfloat16,
        lambda: adamx.store_params(
            adamx.store_state(adamx.adamw(RATE, mask="*w*"), "8bit"), codecs.stochastic(), seed=3
        ),
    ),
    "stochastic residue": (
        jnp.float16,
        lambda: adamx.store_params(
            adamx.store_state(adamx.lion(1e-3), mu=codecs.bfloat16(stochastic=True)), codecs.split8(stochastic=True)
        ),
    ),
    "float32 parameters": (
        jnp.float32,
        lambda: adamx.store_state(adamx.adamw(1e-2), mu=codecs.int8(128), nu=codecs.uint8(128)),
    ),
}
# Rows that no block divides, several columns of tiles, leading axes; and leaves that are none of the kernel's.
SHAPES = {"w": (37, 512), "stack_w": (2, 32, 256), "norm": (512,), "ragged_w": (40, 300), "few": (16, 256)}
each_method = pytest.mark.parametrize(
    ("dtype", "make"),
    [pytest.param(*METHODS["seven bytes"], id="seven bytes")]
    + [pytest.param(*METHODS[name], id=name, marks=pytest.mark.slow) for name in METHODS if name != "seven bytes"],
)
each_platform = pytest.mark.parametrize("platform", PLATFORMS)


def tree(seed, dtype, shapes=SHAPES, spread=0.0):
    normal = np.random.default_rng(seed).standard_normal
    scale = lambda shape: 10.0 ** (spread * normal(shape))
    numbers = {name: np.clip(normal(shape) * scale(shape), -6e4, 6e4) for name, shape in shapes.items()}
    return {name: jnp.asarray(x, dtype) for name, x in numbers.items()}


def assert_same(got, want):
    """Bit for bit, and NaN where NaN is."""
    wide = lambda x: np.asarray(x, np.float32 if x.dtype in (jnp.bfloat16, jnp.float16) else x.dtype)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(wide(a), wide(b)), got, want)


def kernels_in(step, *args):
    return str(jax.make_jaxpr(step)(*args)).count("name=adamx_step")


@each_method
def test_a_kernel_steps_as_the_plain_path_does_bit_for_bit(dtype, make):
    tx = make()
    shapes = {name: SHAPES[name] for name in ("w", "stack_w", "norm")}
    params = tree(0, dtype, shapes)
    by_hand = start = params, jax.jit(tx.init)(params)
    plain, run = jax.jit(tx.step), []
    for seed in (1, 2):
        grads = tree(seed, dtype, shapes, spread=2.0)
        grads["w"] = grads["w"].at[3, 5].set(0).at[30].set(0)
        by_hand = plain(grads, by_hand[1], by_hand[0])
        run.append((grads, by_hand))
    assert bool((by_hand[0]["w"] != params["w"]).any())
    for platform in PLATFORMS:
        step, by_kernel = jax.jit(fused(tx, interpret=platform).step), start
        for grads, want in run:
            by_kernel = step(grads, by_kernel[1], by_kernel[0])
            chex.assert_trees_all_equal_shapes_and_dtypes(by_kernel, want)
            assert_same(by_kernel, want)
        (_, between), (grads, want) = run  # a run may change from one to the other
        assert_same(step(grads, between[1], between[0]), want)


def test_only_leaves_that_fit_go_through_the_kernel():
    tx = METHODS["seven bytes"][1]()

    def taken(platform, **shapes):
        params = {name: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for name, shape in shapes.items()}
        return kernels_in(fused(tx, interpret=platform).step, params, jax.eval_shape(tx.init, params), params)

    for name, shape in SHAPES.items():
        assert (taken("tpu", **{name: shape}) > 0) == (name in ("w", "stack_w"))
    assert taken("cuda", even=(40, 256)) == 1
    assert taken("cuda", odd=(41, 256)) == 2  # the last row by itself
    assert taken("tpu", odd=(41, 256)) == 1
    assert taken("tpu", odd=(2, 33, 256)) == 0


def test_a_method_that_reduces_over_a_leaf_keeps_the_plain_path():
    tx = adamx.seven_bytes(adamx.chain(adamx.clip_by_leaf_norm(1.0), adamx.adamw(1e-2)))
    params = {"w": jax.ShapeDtypeStruct((64, 256), jnp.bfloat16)}
    assert kernels_in(fused(tx, interpret="tpu").step, params, jax.eval_shape(tx.init, params), params) == 0


def test_leaves_without_gradients_and_integers_stay_as_they_are():
    tx = METHODS["seven bytes"][1]()
    params = tree(0, jnp.bfloat16, {"w": (32, 256)}) | {"steps": jnp.int32(3), "frozen": jnp.ones((32, 256))}
    state = jax.jit(tx.init)(params)
    grads = {"w": params["w"], "steps": np.zeros((), jax.dtypes.float0), "frozen": None}
    kernel = fused(tx, interpret="tpu")
    assert kernels_in(lambda s: kernel.step(grads, s, params), state) == 1
    got, want = (jax.jit(lambda s, t=t: t.step(grads, s, params))(state) for t in (kernel, tx))
    chex.assert_trees_all_equal(got, want)
    assert got[0]["steps"] == 3


def test_a_platform_without_a_kernel_and_update_take_the_plain_path():
    tx = METHODS["seven bytes"][1]()
    kernel = fused(tx)
    assert (kernel.init, kernel.update, kernel.parts) == (tx.init, tx.update, tx.parts)
    params = tree(0, jnp.bfloat16, {"w": (32, 256), "norm": (256,)})
    state = jax.jit(tx.init)(params)
    got, want = (jax.jit(t.step)(params, state, params) for t in (kernel, tx))
    chex.assert_trees_all_equal(got, want)
    for platform in ("cpu", "rocm"):
        assert "adamx_step" not in lowered(kernel, platform, params)


def lowered(tx, platform, params):
    kinds = {"tpu": ("TPU v5e", 1, "tpu"), "cuda": ("NVIDIA H100 80GB HBM3", None, "gpu")}
    args = jax.eval_shape(lambda: (params, tx.init(params), params))
    trace = lambda: jax.jit(lambda p, s, g: tx.step(g, s, p), donate_argnums=(0, 1)).trace(*args)
    if platform not in kinds:
        return trace().lower(lowering_platforms=(platform,)).as_text()
    kind, cores, name = kinds[platform]
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=cores, platform=name)
    mesh = AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        return trace().lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@each_platform
@each_method
def test_the_kernel_lowers_for_its_platform_from_this_machine_and_works_in_place(dtype, make, platform):
    tx = make()
    params = tree(0, dtype, {"w": (64, 512)})
    text = lowered(fused(tx), platform, params)
    target = {"tpu": "tpu_custom_call", "cuda": "__gpu$xla.gpu.triton"}[platform]
    calls = [line for line in text.splitlines() if "custom_call" in line and target in line]
    assert len(calls) == 1
    # Everything but the gradient, and what is one number, is written where it was read.
    written = sum(x.size > 1 for x in jax.tree.leaves((params, tx.init(params).moments)))
    assert calls[0].count("output_operand_alias<") == written


def test_blocks_cover_every_row_once_and_fit_a_tpu():
    for rows, columns in ((32, 256), (33, 256), (4100, 14336), (40, 128256), (128256, 512), (1000, 1 << 20)):
        cut = type("", (), {"shape": (rows, columns), "unit": 256})
        (tpu,) = pieces("tpu", rows, cut)
        assert 0 <= tpu.block * tpu.blocks - rows < tpu.block
        # Seven arrays of 1 to 2 bytes in, five out, and two rows of float32 scales each way, all twice.
        assert 2 * tpu.block * (256 * 12 + -(-columns // 256 // 128) * 128 * 4 * 4) <= 16 << 20
        gpu = pieces("cuda", rows, cut)
        assert sum(piece.block * piece.blocks for piece in gpu) == rows
        assert [piece.block * piece.skipped for piece in gpu] == [0, rows // 8 * 8][: len(gpu)]


SHARDED = {"stack_w": (8, 32, 256), "columns_w": (32, 2048), "norm": (512,)}
SPECS = {"stack_w": P("d"), "columns_w": P(None, "d"), "norm": P("d")}


def collectives(text):
    return re.findall(r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter", text)


@pytest.mark.parametrize(("name", "kind"), [("seven bytes", AxisType.Explicit), ("stochastic", AxisType.Auto)], ids=str)
def test_on_shards_the_kernel_talks_to_nobody_and_computes_the_same(name, kind):
    dtype, make = METHODS[name]
    tx = make()
    mesh = jax.make_mesh((8,), ("d",), axis_types=(kind,))
    params, grads = (tree(seed, dtype, SHARDED) for seed in (0, 1))
    state = jax.jit(tx.init)(params)
    at = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    where = optax.tree.map_params(tx, lambda x, s: s if x.size > 1 else NamedSharding(mesh, P()), state, at)
    where = jax.tree.map(lambda x: x if isinstance(x, NamedSharding) else NamedSharding(mesh, P()), where)
    args = tuple(map(jax.device_put, (grads, state, params), (at, where, at)))
    kernel = fused(tx, specs=SPECS, mesh=mesh, interpret="tpu")
    with jax.set_mesh(mesh):
        assert kernels_in(kernel.step, *args) == 2
        compiled = jax.jit(kernel.step).lower(*args).compile()
        assert not collectives(compiled.as_text())
        got = compiled(*args)
    want = jax.jit(tx.step)(grads, state, params)
    assert_same(got, want)
    for name, spec in SPECS.items():
        assert got[0][name].sharding.is_equivalent_to(NamedSharding(mesh, spec), got[0][name].ndim)


def test_without_specifications_shards_keep_the_plain_path_for_a_kernel_would_gather_them(monkeypatch):
    tx = METHODS["seven bytes"][1]()
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    params = tree(0, jnp.bfloat16, {"w": (256, 512)})
    place = lambda x: jax.device_put(x, NamedSharding(mesh, P("d") if x.ndim else P()))
    args = jax.tree.map(place, (params, jax.jit(tx.init)(params), params))
    gathers = lambda tx: bool(collectives(jax.jit(tx.step).lower(*args).compile().as_text()))
    kernel = fused(tx, interpret="tpu")
    assert kernels_in(kernel.step, *args) == 0
    assert not gathers(kernel)
    with jax.set_mesh(mesh):  # one specification for all, and the mesh around
        assert kernels_in(fused(tx, specs=P("d"), interpret="tpu").step, *args) == 1
        assert not gathers(fused(tx, specs=P("d"), interpret="tpu"))
    monkeypatch.setattr(stream, "is_local", lambda *_: True)
    assert gathers(fused(tx, interpret="tpu"))


def test_inside_shard_map_the_kernel_runs_as_it_is():
    tx = METHODS["seven bytes"][1]()
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    params = {"w": tree(0, jnp.bfloat16)["stack_w"].reshape(64, 256).repeat(4, 0)}
    state = jax.jit(tx.init)(params)
    spread = jax.tree.map(lambda x: P("d") if x.ndim == 2 else P(), state)
    specs = {"in_specs": (P("d"), spread, P("d")), "out_specs": (P("d"), spread), "check_vma": False}
    kernel, plain = (jax.shard_map(t.step, mesh=mesh, **specs) for t in (fused(tx, interpret="tpu"), tx))
    assert kernels_in(kernel, params, state, params) == 1
    assert_same(jax.jit(kernel)(params, state, params), jax.jit(plain)(params, state, params))


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        ({"w": P("d")}, r"specs must be PartitionSpecs of axes' names in a tree of.* parameters are b, w"),
        ({"w": P("d"), "b": "d"}, r"specs must be PartitionSpecs of axes' names"),
        (P(P.UNCONSTRAINED), r"specs must be PartitionSpecs of axes' names"),
        (P(None, "d"), r"\(None, 'd'\) cuts 2 axes, but b has the shape \(256,\)"),
        (P("model"), r"b is cut along model, but the mesh has the axes d\."),
    ],
)
def test_specifications_that_do_not_fit_are_refused_at_init(specs, says):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    params = tree(0, jnp.bfloat16, {"w": (256, 512), "b": (256,)})
    with pytest.raises(ValueError, match=says):
        fused(METHODS["seven bytes"][1](), specs=specs, mesh=mesh).init(params)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=says):
        jax.eval_shape(fused(METHODS["seven bytes"][1](), specs=specs).init, params)


def test_specifications_need_a_mesh_and_no_leaf():
    kernel = fused(METHODS["seven bytes"][1](), specs=P("d"), interpret="tpu")
    params = {"w": jnp.ones((256, 512), jnp.bfloat16), "b": None}
    state = kernel.init(params)
    with pytest.raises(ValueError, match=r"w is cut along d, but there is no mesh: pass mesh= or jax\.set_mesh"):
        kernel.step(params, state, params)
    with jax.set_mesh(jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))):
        assert kernels_in(kernel.step, params, state, params) == 1


def test_a_leaf_that_the_mesh_does_not_divide_keeps_the_plain_path():
    tx, params = METHODS["seven bytes"][1](), tree(0, jnp.bfloat16, {"w": (257, 512)})
    kernel = fused(tx, specs=P("d"), mesh=jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,)), interpret="tpu")
    assert kernels_in(kernel.step, params, tx.init(params), params) == 0


def test_what_cannot_be_fused_is_refused_with_a_reason():
    with pytest.raises(TypeError, match=r"fused takes a method or a chain of links, with its storage inside, not "):
        fused(adamx.skip_nonfinite(adamx.adamw(1e-3)))
    with pytest.raises(ValueError, match=r"clip_by_global_norm asks about the whole tree, which a kernel for one leaf"):
        fused(adamx.seven_bytes(adamx.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(1e-3))))
    with pytest.raises(ValueError, match="interpret must be one of 'tpu', 'cuda', but is 'gpu'"):
        fused(adamx.adamw(1e-3), interpret="gpu")
    tx = METHODS["seven bytes"][1]()
    params = {"w": jnp.ones((32, 256), jnp.bfloat16)}
    with pytest.raises(ValueError, match="only in the gradients: v"):
        fused(tx, interpret="tpu").step({"v": params["w"]}, jax.eval_shape(tx.init, params), params)
    with pytest.raises(TypeError, match=r"make it with this optimiser's init"):
        fused(tx, interpret="tpu").step(params, jax.eval_shape(adamx.adamw(1e-3).init, params), params)


@pytest.mark.slow
def test_the_benchmark_says_that_no_accelerator_is_here(capsys):
    shares = benchmark.main(["--short"])
    assert np.isfinite(list(shares.values())).all()
    assert shares["copy"] == 1
    out = capsys.readouterr().out
    assert "no TPU or CUDA device is here" in out
    for name, size in (("optax.adamw float32", "28.00"), ("seven bytes, kernel, interpreted", "12.06")):
        assert f"{name:34}" in out
        assert size in next(line for line in out.splitlines() if line.startswith(f"{name:34}"))
