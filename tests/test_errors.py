"""Bad input is one sentence with the numbers and the remedy, before anything is lost."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import adamx

PARAMS = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
GRADS = jax.tree.map(jnp.ones_like, PARAMS)


def said(error, call):
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith((".", "..."))
    return text


AT_CONSTRUCTION = [
    (lambda: adamx.adam(1e-3, b1=1.0), ValueError, "b1 must be in [0, 1) (at 1 nothing new is averaged in), but is 1.0."),
    (lambda: adamx.adam(1e-3, b2=-0.1), ValueError, "b2 must be in [0, 1) (at 1 nothing new is averaged in), but is -0.1."),
    (lambda: adamx.adam(1e-3, eps=-1e-8), ValueError, "eps must be finite and at least 0, but is -1e-08."),
    (lambda: adamx.adam(1e-3, eps=float("nan")), ValueError, "eps must be finite and at least 0, but is nan."),
    (lambda: adamx.adam("1e-3"), TypeError, "learning_rate must be a number, a scalar array or a schedule of the step, not the str '1e-3'."),
    (lambda: adamx.adam(True), TypeError, "learning_rate must be a number, a scalar array or a schedule of the step, not the bool True."),
    (lambda: adamx.adam(None), TypeError, "learning_rate must be a number, a scalar array or a schedule of the step, not the NoneType None."),
    (lambda: adamx.adam(float("inf")), ValueError, "learning_rate must be finite, but is inf."),
    (lambda: adamx.adam(jnp.ones(3)), ValueError, "learning_rate must be one number, but its shape is (3,); sweep with jax.vmap."),
    (lambda: adamx.adam(jnp.complex64(1)), TypeError, "learning_rate must be real, but its dtype is complex64."),
    (lambda: adamx.adam(1e-3, b2=jnp.bfloat16(0.999)), TypeError, "b2 arrived as bfloat16, in which 0.999 is 1; pass a Python number or a float32 array (optax.inject_hyperparams: hyperparam_dtype=jnp.float32)."),
    (lambda: adamx.adam(1e-3, mu_dtype="bfloat16"), TypeError, "adam takes no mu_dtype (got 'bfloat16'): write store_state(adam(...), mu=dtype)."),
    (lambda: adamx.adam(1e-3, nesterov=True), TypeError, "adam takes no nesterov: write nadam(...)."),
    (lambda: adamx.adamw(1e-3, nesterov=True), TypeError, "adamw takes no nesterov: write nadamw(...)."),
    (lambda: adamx.sgd(1e-3, 0.9, accumulator_dtype="float16"), TypeError, "sgd takes no accumulator_dtype (got 'float16'): write store_state(sgd(...), trace=dtype)."),
    (lambda: adamx.adamw(1e-3, weight_decay=-1), ValueError, "weight_decay must be finite and at least 0, but is -1.0."),
    (lambda: adamx.adamw(1e-3, base_lr=0.0), ValueError, "base_lr must be finite and above 0, but is 0.0."),
    (lambda: adamx.amsgrad(1e-3, peak_of="both"), ValueError, "peak_of must be 'corrected' (optax) or 'raw' (PyTorch), but is 'both'."),
    (lambda: adamx.sgd(1e-3, nesterov=True), ValueError, "nesterov=True and dampening=0.0 need a momentum, as in sgd(lr, 0.9)."),
    (lambda: adamx.sgd(1e-3, 0.9, True, dampening=0.5), ValueError, "nesterov takes no dampening, but dampening is 0.5."),
    (lambda: adamx.rmsprop(1e-3, nesterov=True), ValueError, "nesterov=True needs a momentum, as in rmsprop(lr, momentum=0.9, nesterov=True)."),
    (lambda: adamx.nadam(1e-3, nesterov=False), TypeError, "nadam takes no nesterov=False: write adam(...)."),
    (lambda: adamx.adam(1e-3, b1=jnp.float32(1)), ValueError, "b1 must be in [0, 1) (at 1 nothing new is averaged in), but is 1.0."),
    (lambda: adamx.adam(jnp.float32("nan")), ValueError, "learning_rate must be finite, but is nan."),
    (lambda: adamx.adam(1e-3, beta1=0.9), TypeError, "adam(learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov): got an unexpected keyword argument 'beta1'."),
    (lambda: adamx.adam(), TypeError, "adam(learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov): missing a required argument: 'learning_rate'."),
    (lambda: adamx.ema(0.9, True), ValueError, "but is True; debiasing is bias_correct"),
    (lambda: adamx.ema(0.9, start=lambda n: 0.0), TypeError, "start is read once, at init, so it cannot be a schedule."),
    (lambda: adamx.rules.hat(1e-8, 1.5), ValueError, "b2 must be in [0, 1)"),
    (lambda: adamx.rules.nesterov_ratio("a", 1.0, 0.0), TypeError, "ahead must be a number"),
    (lambda: adamx.store_state(adamx.adam(1e-3), mu="bf16"), TypeError, "mu must be stored by a codec such as codecs.int8(), or in a dtype, not 'bf16'."),
    (lambda: adamx.store_state(adamx.adam(1e-3), mu=None), TypeError, "not None."),
    (lambda: adamx.skip_nonfinite(adamx.adam), TypeError, "skip_nonfinite takes gradient transformations, but got <function adam"),
    (lambda: adamx.clip_by_global_norm(-1.0), ValueError, "max_norm must be at least 0, but is -1.0."),
    (lambda: adamx.adagrad(1e-3, -0.1), ValueError, "initial_accumulator_value must be finite and at least 0, but is -0.1."),
    (lambda: adamx.ema(0.9, power=3), ValueError, "power must be 1 (the gradient) or 2 (its squared magnitude), but is 3; debiasing is bias_correct, and Nesterov's momentum rules.nesterov."),
    (lambda: adamx.scale_by_moments(), ValueError, "scale_by_moments needs at least one moment, as in scale_by_moments(mu=ema(0.9))."),
    (lambda: adamx.scale_by_moments(mu=adamx.ema(0.9), nu=adamx.ema(0.9)), ValueError, "scale_by_moments needs a rule to join mu, nu."),
    (lambda: adamx.scale_by_moments(adamx.rules.ratio(0.0), m=adamx.ema(0.9)), TypeError, "the rule ratio does not fit the moments m: missing a required"),
    (lambda: adamx.scale_by_moments(mu=optax.ema(0.9)), TypeError, "the moment mu must be ema, trace, another moment, or a chain of moments and bias_correct; it is"),
    (lambda: adamx.scale_by_moments(mu=adamx.clip_by_global_norm(1.0)), TypeError, "the moment mu must be"),
    (lambda: adamx.chain(adamx.ema(0.9), adamx.ema(0.99)), ValueError, "ema and ema both keep a moment named 'ema' in one chain; name one of them otherwise, as in scale_by_moments(ema2=...), or leave one out."),
    (lambda: adamx.chain(adamx.adam), TypeError, "chain takes gradient transformations, but got <function adam"),
    (lambda: adamx.store_state(adamx.skip_nonfinite(adamx.adam(1e-3)), mu="bfloat16"), TypeError, "store_state stands around a method or a chain of links"),
    (lambda: adamx.store_state(adamx.adam(1e-3), m="bfloat16"), ValueError, "there is no moment 'm' to store; this method keeps mu, nu."),
    (lambda: adamx.store_state(adamx.adam(1e-3), mu="int16"), TypeError, "mu must be stored by a codec such as codecs.int8(), or in a dtype, not 'int16'."),
    (lambda: adamx.store_state(adamx.adam(1e-3), mu="uint8"), ValueError, "keeps no number below zero, but mu has some; choose a signed codec."),
    (lambda: adamx.store_state(adamx.adam(1e-3), "2bit"), ValueError, "there is no preset '2bit'; there are '8bit', '4bit', 'bf16', and codecs go by name, as in mu=int8()."),
    (lambda: adamx.skip_nonfinite(adamx.adam(1e-3), 0), ValueError, "give_up_after must be a whole number above 0, but is 0."),
    (lambda: adamx.schedules.warmup_cosine(1.0, 20, 10), ValueError, "warmup_steps=20 is more than total_steps=10; the phases must fit into it."),
    (lambda: adamx.schedules.step_decay(1.0, 0), ValueError, "every must be a whole number of steps, at least 1, but is 0."),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "sentence"), AT_CONSTRUCTION, ids=lambda x: x if isinstance(x, str) else "")
def test_bad_numbers_are_refused_at_construction(call, error, sentence):
    text = said(error, call)
    assert sentence in text


AT_INIT = [
    ("*kernl", ValueError, "mask='*kernl' matches none of the 2 leaves (dense/bias, dense/kernel); patterns are globs over the whole name"),
    (["*kernel", "*scale"], ValueError, "mask='*scale' matches none of the 2 leaves"),
    ({"dense": {"kernel": False, "bias": False}}, ValueError, "mask chooses none of the 2 leaves (dense/bias, dense/kernel)"),
    (lambda p: jax.tree.map(lambda x: x.ndim > 5, p), ValueError, "mask chooses none of the 2 leaves"),
    ({"conv": True}, ValueError, "mask must be a tree of bools with the structure of the parameters (dense/bias, dense/kernel), or a prefix of it"),
    ({"dense": {"kernel": 1.0, "bias": 0.0}}, TypeError, "mask must hold bools, not"),
]  # fmt: skip


@pytest.mark.parametrize(("mask", "error", "sentence"), AT_INIT, ids=lambda x: x if isinstance(x, str) else "")
def test_a_mask_that_chooses_nothing_is_refused_at_init(mask, error, sentence):
    assert sentence in said(error, lambda: adamx.adamw(1e-3, mask=mask).init(PARAMS))


def test_decay_without_parameters_says_how_to_call():
    tx = adamx.adamw(1e-3)
    text = said(ValueError, lambda: tx.update(GRADS, tx.init(PARAMS)))
    assert (
        text == "add_decayed_weights reads the parameters: call update(grads, state, params), not update(grads, state)."
    )


def test_a_gradient_tree_of_another_structure_names_the_leaves():
    tx = adamx.adam(1e-3)
    grads = {"dense": {"kernel": jnp.ones((2, 3)), "scale": jnp.ones(3)}}
    text = said(ValueError, lambda: jax.jit(tx.update)(grads, tx.init(PARAMS)))
    assert "the gradients have another structure than the moment 'mu'" in text
    assert "only in the gradients: dense/scale; only in the moment 'mu': dense/bias" in text


def test_a_shape_mismatch_says_both_shapes():
    tx = adamx.adam(1e-3)
    grads = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(3)}}
    text = said(ValueError, lambda: tx.update(grads, tx.init(PARAMS), PARAMS))
    assert "leaf 'dense/kernel' has a gradient of shape (3, 2) but a parameter of shape (2, 3)" in text
    text = said(ValueError, lambda: tx.update(grads, tx.init(PARAMS)))
    assert "but a moment 'mu' of shape (2, 3)" in text


@pytest.mark.parametrize(
    ("state", "has"), [(adamx.sgd(1.0, 0.9).init(PARAMS), "the moments trace"), (optax.adam(1.0).init(PARAMS), "(")]
)
def test_a_state_of_another_optimiser_is_refused(state, has):
    text = said(TypeError, lambda: adamx.adam(1e-3).update(GRADS, state, PARAMS))
    assert text.startswith(f"this state holds {has}")
    assert text.endswith(
        "but the optimiser keeps mu, nu; make it with this optimiser's init, or restore the checkpoint that it wrote."
    )


@pytest.mark.parametrize("params", [{"d": {"k": jnp.ones(2)}}, {"d": None}], ids=["deeper", "none"])
@pytest.mark.parametrize("tx", [adamx.adam(1e-3), adamx.sgd(1.0)], ids=["adam", "sgd"])
def test_a_gradient_where_there_is_no_array_is_refused(tx, params):
    text = said(ValueError, lambda: tx.update({"d": jnp.ones(2)}, tx.init(params), params))
    assert text.startswith("the gradients have another structure than the parameters")


def test_step_without_parameters_says_how_to_call():
    tx = adamx.adam(1e-3)
    text = said(ValueError, lambda: tx.step(GRADS, tx.init(PARAMS), None))
    assert text == "step moves the parameters: call step(grads, state, params)."


@pytest.mark.parametrize("value", [jnp.ones(3), "0.1", None], ids=str)
def test_a_schedule_that_returns_no_number_is_refused(value):
    tx = adamx.sgd(lambda step: value)
    text = said(ValueError, lambda: tx.update(GRADS, tx.init(PARAMS)))
    assert text.startswith("a schedule must return one number for each step, but returned ")


def test_a_rule_that_changes_a_shape_is_refused():
    tx = adamx.scale_by_moments(lambda g, t, *, mu: mu.sum(), mu=adamx.ema(0.9))
    text = said(ValueError, lambda: tx.update(GRADS, tx.init(PARAMS)))
    assert text == "scale_by_moments(mu) turned a leaf of shape (3,) into one of shape ()."


def test_a_complex_gradient_of_a_real_parameter_is_refused():
    tx = adamx.sgd(1.0)
    grads = jax.tree.map(lambda g: g + 1j, GRADS)
    assert "has a complex64 gradient but a float32 parameter; one of them is complex." in said(
        TypeError, lambda: tx.update(grads, tx.init(PARAMS), PARAMS)
    )


def test_an_integer_gradient_of_a_real_parameter_is_refused():
    tx = adamx.sgd(1.0)
    grads = jax.tree.map(lambda g: g.astype(int), GRADS)
    assert "has an int32 gradient but a float32 parameter" in said(
        TypeError, lambda: tx.update(grads, tx.init(PARAMS), PARAMS)
    )


@pytest.mark.parametrize(
    "leaf", [jax.nn.relu, "relu", jax.random.key(0), np.array(["a"]), object()], ids=lambda x: type(x).__name__
)
def test_a_model_passed_unfiltered_is_refused_at_init(leaf):
    text = said(TypeError, lambda: adamx.adam(1e-3).init(PARAMS | {"activation": leaf}))
    assert text.startswith("leaf 'activation' is ")
    assert "nnx.state(model, nnx.Param), variables['params'], or eqx.filter(model, eqx.is_inexact_array)" in text


def test_a_whole_nnx_model_is_refused_by_the_name_of_its_random_key():
    class Model(nnx.Module):
        def __init__(self):
            self.dense = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
            self.dropout = nnx.Dropout(0.1, rngs=nnx.Rngs(1))

    text = said(TypeError, lambda: adamx.adam(1e-3).init(nnx.state(Model())))
    assert "which cannot be trained: pass only the parameters" in text


def test_a_mix_that_looks_ahead_says_what_stands_before_it():
    surprise = adamx.chain(adamx.mix(jnp.subtract, "mu"), adamx.ema(0.9, 2))
    tx = adamx.scale_by_moments(adamx.rules.ratio(1e-8), nu=surprise, mu=adamx.ema(0.9))
    text = said(ValueError, lambda: tx.update(GRADS, tx.init(PARAMS)))
    assert text == "mix reads the moment 'mu', but before it stand only []; give mu to scale_by_moments first."
