"""The report opens from disk, shows the numbers it was given, and its charts move together."""

import base64
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import zlib
from math import erf
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from adamx.diagnostics import metrics, report
from adamx.diagnostics.history import About, History, Leaf

SPIKE_STEP = 1210
BAD = "blocks/7/attn/q/kernel"


def transformer(layers=12, width=768):
    """Leaves of a transformer, in the order of the model."""
    kinds = {
        "attn/k/kernel": (width, width),
        "attn/o/kernel": (width, width),
        "attn/q/kernel": (width, width),
        "attn/v/kernel": (width, width),
        "mlp/down/bias": (width,),
        "mlp/down/kernel": (4 * width, width),
        "mlp/up/bias": (4 * width,),
        "mlp/up/kernel": (width, 4 * width),
        "norm1/scale": (width,),
        "norm2/scale": (width,),
    }
    leaves = [Leaf("embed/table", (50257, width), "bfloat16")]
    for i in range(layers):
        leaves += [Leaf(f"blocks/{i}/{k}", s, "float32" if "norm" in k else "bfloat16") for k, s in kinds.items()]
    return (*leaves, Leaf("final_norm/scale", (width,), "float32"), Leaf("head/kernel", (width, 50257), "bfloat16"))


def drift(rng, shape, level, wobble, slow=0.15):
    """Lognormal numbers that wander slowly along the first axis, around `level`."""
    noise = rng.standard_normal(shape)
    walk = np.cumsum(rng.standard_normal(shape), 0) / np.sqrt(max(shape[0], 1))
    return level * np.exp(wobble * noise + slow * walk)


def cumulative(rng, records, leaves, edges, centre, width):
    """Shares of normal distributions up to the edges."""
    middle = centre + 0.15 * width * rng.standard_normal((records, leaves, 1))
    z = (np.asarray(edges) - middle) / (width * np.sqrt(2))
    return (0.5 * (1 + np.vectorize(erf)(z))).astype(np.float32)


def history(leaves=None, records=256, every=10, seed=0, spike=SPIKE_STEP, spreads=24, names=None):
    """A plausible run: a healthy loss, one spike that begins in BAD, whose updates also stall from half-way on."""
    rng = np.random.default_rng(seed)
    leaves = transformer() if leaves is None else leaves
    n, steps = len(leaves), np.arange(1, records + 1) * every
    shape = (records, n)
    share = lambda level: np.clip(drift(rng, shape, level, 0.3), 0, 1)
    depth = np.linspace(1, 2.5, n)
    leaf = {
        "grad_rms": drift(rng, shape, 1e-4, 0.25) * depth,
        "grad_max": drift(rng, shape, 3e-3, 0.3) * depth,
        "zero_grad": np.zeros(shape),
        "bad_grad": np.zeros(shape),
        "bad_update": np.zeros(shape),
        "bad_param": np.zeros(shape),
        "clipped": np.minimum(1, drift(rng, (records, 1), 0.95, 0.1)) * np.ones(shape),
        "param_rms": drift(rng, shape, 0.02, 0.002) * depth,
        "update_ratio": drift(rng, shape, 1e-3, 0.12) / depth,
        "update_cosine": np.clip(0.44 + 0.03 * rng.standard_normal(shape), -1, 1),
        "decay_share": drift(rng, shape, 0.03, 0.1),
        "direction_rms": drift(rng, shape, 0.23, 0.05),
        "saturated": share(2e-4),
        "momentum_cosine": 0.02 * rng.standard_normal(shape),
        "sign_agreement": 0.5 + 0.01 * rng.standard_normal(shape),
        "signal_to_noise": drift(rng, shape, 0.18, 0.05),
        "surprise": drift(rng, shape, 1.0, 0.04, 0.02),
        "surprise_before": drift(rng, shape, 1.0, 0.06, 0.02),
        "coasting": share(0.2),
        "eps_half": np.zeros(shape),
        "eps_tenth": share(1e-3),
        "nu_zero": np.zeros(shape),
        "nu_stale": share(0.04),
        "mu_stale": share(0.01),
        "mu_error": drift(rng, shape, 0.004, 0.05),
        "nu_error": drift(rng, shape, 0.006, 0.05),
        "direction_error": drift(rng, shape, 0.008, 0.05),
        "stalled": share(0.1),
        "lost": drift(rng, shape, 0.2, 0.1),
    }
    names_ = [x.name for x in leaves]
    bad = names_.index(BAD) if BAD in names_ else 0
    if records and n:
        late = steps > steps[-1] // 2
        leaf["stalled"][late, bad] = np.linspace(0.3, 0.97, late.sum())
        leaf["nu_stale"][late, bad] = 0.6
        for i, name in enumerate(names_):  # the spike reaches the others one and two records later
            delay = 0 if i == bad else every if name.startswith("blocks/") else 2 * every
            near = np.exp(-np.maximum(steps - spike - delay, 0) / (2.0 * every)) * (steps >= spike + delay)
            leaf["surprise_before"][:, i] *= 1 + near * (14 if i == bad else 3)
            leaf["grad_rms"][:, i] *= 1 + near * (9 if i == bad else 2)
    if names is not None:
        leaf = {k: x for k, x in leaf.items() if k in names}
    fast = np.arange(1, records * every + 1)
    hit = (fast >= spike) * np.exp(-np.maximum(fast - spike, 0) / 12.0)
    norm = drift(rng, fast.shape, 0.7, 0.12, 0.05) * (1 + 9 * hit)
    loss = 2.6 + 7.5 * np.exp(-fast / 260.0) + 0.04 * rng.standard_normal(fast.size) + 2.2 * np.roll(hit, 2)
    score = lambda at, high: np.where(fast == at, high, rng.standard_normal(fast.size))
    pulse = {"loss": loss, "grad_norm": norm, "loss_score": score(spike + 2, 21.0), "grad_score": score(spike, 11.5)}
    rate = 6e-4 * np.minimum(1, steps / 200) * (0.55 + 0.45 * np.cos(np.pi * steps / max(steps.max(initial=1), 1)))
    whole = {
        "loss": loss[steps - 1],
        "grad_norm": norm[steps - 1],
        "clip": np.minimum(1, 1 / norm[steps - 1]),
        "update_norm": drift(rng, (records,), 0.5, 0.05),
        "param_norm": drift(rng, (records,), 200, 0.001),
        "learning_rate": rate,
    }
    at = np.linspace(0, records - 1, min(spreads, records)).astype(int)
    middle = {"log2_grad": (-14, 3), "log2_root_nu": (-17, 4), "direction": (0, 0.23), "log2_ratio": (-9, 3)}
    spread = {k: cumulative(rng, at.size, n, metrics.EDGES[k], *middle[k]) for k in middle}
    as32 = lambda table: {k: np.asarray(x, np.float32) for k, x in table.items()}
    method = {
        "b1": 0.9, "b2": 0.95, "eps": 1e-6, "weight_decay": 0.1, "max_norm": 1.0,
        "parts": ["clip_by_global_norm", "scale_by_adam", "add_decayed_weights", "scale_by_learning_rate"],
        "codecs": {"mu": "int8(block=256)", "nu": "uint8(root=True)"}, "precision": "bf16+int8",
        "decays": [len(x.shape) > 1 for x in leaves],
    }  # fmt: skip
    return History(
        About(tuple(leaves), every, method), steps, as32(whole), as32(leaf), fast, as32(pulse), steps[at], as32(spread)
    )


def finding(**given):
    return {
        "id": "STALE_NU",
        "severity": "warning",
        "leaves": (BAD,),
        "step": SPIKE_STEP,
        "evidence": {"surprise_before": 14.2},
        "says": "The second moment was far too small for this gradient.",
        "cause": "The gradient grew faster than the second moment could follow.",
        "advice": "Lower b2 to 0.95, or clip the update.",
        "source": "Wortsman et al. 2023, StableAdamW",
    } | given


FINDINGS = (
    finding(
        id="NOTE_DECAY",
        severity="note",
        leaves=("blocks/0/norm1/scale", "blocks/1/norm1/scale"),
        step=0,
        evidence={"leaves": 25},
        says="Weight decay reaches scales of norms.",
        cause="The decay's mask leaves nothing out.",
        advice="Mask leaves of one dimension.",
        source="Loshchilov and Hutter 2019, AdamW",
    ),
    finding(),
    SimpleNamespace(
        **finding(
            id="STALLED",
            severity="error",
            step=1900,
            evidence={"stalled": np.float32(0.62), "threshold": 0.5, "worst": float("nan")},
            says="More than half of the updates leave the parameter as it is.",
            cause="The update is below half of bfloat16's spacing at these parameters.",
            advice="Keep the parameters in float32, or round them stochastically.",
            source="bfloat16 has 8 bits of precision",
        )
    ),
)

# A browser


def executable():
    return next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed, which drives the browser")
    if executable() is None:
        pytest.skip("neither chromium nor google-chrome is installed")
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=executable(), args=["--no-sandbox"])
        yield browser
        browser.close()


# The page's policy forbids what wait_for_function does, which is to evaluate text.
READY = """async () => {
  const wait = () => new Promise((done) => setTimeout(done, 10));
  for (let i = 0; i < 6000 && !(window.__adamx && window.__adamx.ready); i++) await wait();
  return window.__adamx.ready;
}"""
START = """async () => {
  const a = window.__adamx;
  a.initial ||= { ...a.state };
  a.set({ ...a.initial, folds: new Map(a.initial.folds) });
  window.scrollTo(0, 0);
  await a.settled();
}"""


def opened(browser, path, **context):
    """The page, when it is drawn, and what was requested and complained of meanwhile."""
    context = browser.new_context(viewport={"width": 1400, "height": 1500}, color_scheme="light", **context)
    page = context.new_page()
    page.requested, page.complaints = [], []
    context.on("request", lambda request: page.requested.append(request.url))
    page.on("console", lambda message: page.complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(path.as_uri())
    assert page.evaluate(READY), page.complaints
    return page


def draw_all(page):
    page.evaluate("async () => { await window.__adamx.settled(); await window.__adamx.drawAll(); }")


def settled(page):
    page.evaluate("() => window.__adamx.settled()")


def until(page, condition):
    """Wait for what a mouse's release brings: plotly tells of it a little later."""
    wait = "for (let i = 0; i < 1000 && !ok(); i++) await new Promise((r) => setTimeout(r, 10));"
    assert page.evaluate(f"async () => {{ const ok = () => {condition}; {wait} return Boolean(ok()); }}"), condition
    settled(page)


def state(page, key):
    return page.evaluate(f"() => window.__adamx.state[{key!r}]")


def table(page, panel):
    """The numbers behind a panel: head and rows of text."""
    button = page.locator(f"#{panel} > .top > button")
    if button.get_attribute("aria-expanded") == "false":
        button.click()
    settled(page)
    page.locator(f"#{panel}-table th").first.wait_for()
    read = "(cells) => cells.map((x) => x.textContent)"
    head = page.locator(f"#{panel}-table thead th").evaluate_all(read)
    rows = page.locator(f"#{panel}-table tbody tr").evaluate_all(
        "(rows) => rows.map((r) => [...r.children].map((x) => x.textContent))"
    )
    button.click()
    return head, rows


SICK = {  # cells that are no numbers: statistic, step, leaf, what
    ("grad_rms", 500, "blocks/2/attn/q/kernel"): np.nan,
    ("grad_rms", 510, "blocks/2/attn/q/kernel"): np.inf,
    ("grad_rms", 520, "blocks/2/attn/q/kernel"): -np.inf,
    ("grad_rms", 530, "blocks/2/attn/q/kernel"): 0.0,
    ("mu_error", 540, "blocks/3/attn/q/kernel"): np.inf,
}


@pytest.fixture(scope="module")
def run():
    made = history()
    names = [leaf.name for leaf in made.about.leaves]
    for (statistic, step, leaf), value in SICK.items():
        made.leaf[statistic][step // 10 - 1, names.index(leaf)] = value
    made.leaf["momentum_cosine"][:, -1] = np.nan
    made.pulse["loss"][99] = np.inf
    return made


@pytest.fixture(scope="module")
def other():
    made = history(transformer(layers=2), records=64, seed=3, spike=10**9)
    method = {**made.about.method, "b2": 0.99, "eps": 1e-8}
    return dataclasses.replace(made, about=dataclasses.replace(made.about, method=method))


@pytest.fixture(scope="module")
def drawn(browser, run, other, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "run.html"
    report.write(run, path, FINDINGS, "GPT, 12 layers", {"b2 = 0.99": other})
    return opened(browser, path)


@pytest.fixture
def page(drawn):
    drawn.set_viewport_size({"width": 1400, "height": 1500})
    drawn.evaluate(START)
    yield drawn
    complaints, drawn.complaints[:] = list(drawn.complaints), []
    assert complaints == []


def column(run, leaf):
    return [x.name for x in run.about.leaves].index(leaf)


# It is one file


def test_it_loads_nothing_and_complains_of_nothing(page):
    draw_all(page)
    assert [url for url in page.requested if not url.startswith(("data:", "blob:"))] == [page.url]
    assert page.url.startswith("file:")
    assert page.evaluate("() => document.querySelectorAll('*').length") < 5000
    assert page.evaluate("() => document.querySelectorAll('section').length") == 9


def test_it_may_load_nothing_and_run_no_other_script(page):
    script = "Object.assign(document.createElement('script'), { textContent: 'window.strange = 1' })"
    page.evaluate(f"() => document.body.append({script})")
    assert page.evaluate("() => window.strange") is None
    assert page.evaluate("() => fetch('data:,x').then(() => true, () => false)") is False
    refused = [c for c in page.complaints if "Content Security Policy" in c]
    assert len(refused) >= 2
    page.complaints.clear()


def test_the_same_run_gives_the_same_bytes(tmp_path):
    made = history(records=8, spike=40)
    one, two = tmp_path / "one.html", tmp_path / "two.html"
    for path in (one, two):
        report.write(made, path, FINDINGS)
    assert one.read_bytes() == two.read_bytes()
    assert [x.name for x in sorted(tmp_path.iterdir())] == ["one.html", "two.html"]


def test_150_leaves_and_256_records_take_less_than_a_megabyte_and_a_half_beside_plotly(tmp_path):
    leaves = [Leaf(f"layers/{i // 10}/{i % 10}/kernel", (64, 64), "float32") for i in range(150)]
    made, path = history(leaves), tmp_path / "run.html"
    report.write(made, path)
    plotly = len(re.search(r'id="plotly">(.*?)</script>', path.read_text())[1])
    print(f"{path.stat().st_size / 1e6:.2f} MB, of which plotly {plotly / 1e6:.2f}")
    assert path.stat().st_size - plotly < 1.5e6


# Its numbers


AS_TEXT = """async ([from, call]) => {
  const { values, ...rest } = await window.__adamx[from](...call);
  const bytes = new Uint8Array(new Float32Array(values).buffer);
  let text = '';
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return { ...rest, text: btoa(text) };
}"""


def numbers(page, source, *call):
    """An array of the page's, and what it says of it."""
    got = page.evaluate(AS_TEXT, [source, call])
    return np.frombuffer(base64.b64decode(got["text"]), "<f4").reshape(got["shape"]), got


@pytest.mark.parametrize("which", [0, 1])
def test_every_statistic_arrives_within_its_stated_error(page, run, other, which):
    given = (run, other)[which]
    assert page.evaluate("() => window.__adamx.steps()") == run.steps.tolist()
    for name, x in given.leaf.items():
        got, coding = numbers(page, "cube", name, which)
        error, log = coding["error"], coding["log"]
        assert got.shape == x.shape
        special = ~np.isfinite(x) | (x == 0)
        np.testing.assert_array_equal(got[special], x[special], name)
        assert error <= 0.003, name
        apart = np.abs(got[~special].astype(np.float64) - x[~special])
        bound = error * (np.abs(x[~special].astype(np.float64)) if log else 1)
        assert (apart <= bound + 1e-6 * np.abs(x[~special])).all(), name
        assert log == bool((x[~special] > 0).all()), name


def test_distributions_arrive_to_half_of_a_ten_thousandth(page, run):
    for name, x in run.spread.items():
        got, _ = numbers(page, "shares", name)
        assert got.shape == (len(run.about.leaves), run.spread_steps.size, 16)
        np.testing.assert_allclose(got, x.transpose(1, 0, 2), rtol=0, atol=0.501e-4)


def test_losses_and_norms_arrive_exactly(page, run):
    for name in ("loss", "grad_norm"):
        got = page.evaluate("(name) => window.__adamx.curve(name)", name)
        assert got["steps"] == run.pulse_steps.tolist()
        np.testing.assert_array_equal(np.float32(got["values"]), run.pulse[name])
    got = page.evaluate("(name) => window.__adamx.curve(name)", "learning_rate")
    np.testing.assert_array_equal(np.float32(got["values"]), run.whole["learning_rate"])


PIXEL = """([row, at]) => {
  const from = document.querySelector('#heat .field canvas'), k = from.height / parseFloat(from.style.height);
  const one = document.createElement('canvas'), x = Math.floor(at * from.width), y = Math.floor((row * 18 + 9) * k);
  const context = one.getContext('2d', { willReadFrequently: true });
  context.drawImage(from, x, y, 1, 1, 0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data];
}"""


def across(run, step):
    """Where a step lies in the heat map: share of its width."""
    low, high = run.steps[0] - run.about.every / 2, run.steps[-1] + run.about.every / 2
    return float((step - low) / (high - low))


def pixel(page, row, step, run):
    """Red, green, blue and opacity in the middle of a cell; row: its place among the visible ones."""
    return page.evaluate(PIXEL, [row, across(run, step)])


AROUND = ["0d3a75", "5b95de", "f1efea", "ee8a62", "a01818"]


def colour(x, stops=AROUND):
    """Of a place in [-1, 1] around the reference."""
    stops = [[int(s[i : i + 2], 16) for i in (0, 2, 4)] for s in stops]
    return [np.interp(x, np.linspace(-1, 1, 5), [s[i] for s in stops]) for i in range(3)]


def test_a_cell_has_the_colour_of_its_distance_from_the_reference(page, run):
    page.evaluate("() => window.__adamx.set({ metric: 'surprise_before', glob: 'blocks/7/attn/*' })")
    settled(page)
    names = page.locator("#heat .row").evaluate_all("(rows) => rows.map((r) => r.title)")
    x = np.log10(run.leaf["surprise_before"].astype(np.float64))
    most = min(np.abs(x).max(), 2 * np.quantile(np.abs(x), 0.995, method="inverted_cdf"))
    calm, dragged = "blocks/7/attn/v/kernel", "blocks/7/attn/k/kernel"
    for name, step in [(BAD, 1200), (BAD, 1210), (BAD, 1230), (dragged, 1220), (calm, 70)]:
        expected = colour(x[step // 10 - 1, column(run, name)] / most)
        got = pixel(page, names.index(name), step, run)
        assert np.abs(np.subtract(got[:3], expected)).max() <= 3, (name, step, got, expected)
        assert got[3] == 255


def test_a_folded_row_shows_its_worst_child(page, run):
    page.evaluate("() => window.__adamx.set({ metric: 'surprise_before', folds: new Map(), step: 1220 })")
    settled(page)
    head, rows = table(page, "heat")
    assert head[1] == "at step 1220"
    shown = {row[0]: row for row in rows}
    inside = [i for i, leaf in enumerate(run.about.leaves) if leaf.name.startswith("blocks/4/")]
    x = run.leaf["surprise_before"][:, inside]
    worst = x[121, np.argmax(np.abs(np.log(x[121])))]
    assert float(shown["blocks/4/ (10 leaves)"][1]) == pytest.approx(worst, rel=4e-3)
    record, leaf = np.unravel_index(np.argmax(np.abs(np.log(x))), x.shape)
    assert float(shown["blocks/4/ (10 leaves)"][2]) == pytest.approx(x[record, leaf], rel=4e-3)
    assert int(shown["blocks/4/ (10 leaves)"][3]) == run.steps[record]


def test_what_is_no_number_is_a_gap_and_is_listed(page, run):
    page.evaluate("() => window.__adamx.set({ metric: 'grad_rms', glob: 'blocks/2/attn/q/*' })")
    settled(page)
    assert [pixel(page, 0, step, run)[3] for step in (490, 500, 530)] == [255, 0, 255]
    assert pixel(page, 0, 510, run)[:3] == [0xC2, 0x2F, 0x2F]  # a mark in the gap
    remark = page.locator("#heat .chart > .remark").inner_text()
    assert "2 cells infinite" in remark
    assert "blocks/2/attn/q/kernel at step 510 (∞)" in remark
    assert "blocks/2/attn/q/kernel at step 520 (\N{MINUS SIGN}∞)" in remark
    assert "1 cell without a number" in remark
    assert "loss infinite at 1 step, first at 100" in page.locator("#timeline .remark").inner_text()


# Its charts move together


def lines(page, panel):
    """x of the vertical lines in a panel's first chart."""
    shapes = page.evaluate("(id) => document.querySelector(`#${id} .js-plotly-plot`).layout.shapes", panel)
    return [shape["x0"] for shape in shapes if shape["x0"] == shape["x1"]]


CROSS = """() => {
  const box = (q) => document.querySelector(q).getBoundingClientRect();
  const row = document.querySelector('#heat .row.chosen');
  const field = box('#heat .field'), step = box('#heat .cross.step');
  const apart = Math.abs(box('#heat .cross.leaf').top - row.getBoundingClientRect().top);
  return { at: ((step.left + step.right) / 2 - field.left) / field.width, apart, leaf: row.title };
}"""


def chosen_cell(page, run):
    """Leaf and step where the heat map's marks cross."""
    got = page.evaluate(CROSS)
    assert got["apart"] < 1.5
    return got["leaf"], int(run.steps[np.argmin([abs(across(run, step) - got["at"]) for step in run.steps])])


def test_cards_stand_worst_first(page, run):
    kinds = page.locator(".card .kind").all_inner_texts()
    assert [k.split(" · ")[1] for k in kinds] == ["STALLED", "STALE_NU", "NOTE_DECAY"]
    assert "worst nan" in page.locator(".card").first.inner_text()
    assert state(page, "metric") == "stalled"  # the page opens at the worst finding
    assert chosen_cell(page, run) == (BAD, 1900)


def test_a_card_moves_every_chart_to_its_leaf_and_step(page, run):
    page.evaluate("() => window.__adamx.set({ window: [10, 600], leaf: 0, step: 50, metric: 'lost' })")
    page.get_by_role("button", name="STALE_NU").click()
    settled(page)
    assert chosen_cell(page, run) == (BAD, SPIKE_STEP)
    assert state(page, "window") == [1, 2560]
    assert page.locator("#metric").input_value() == "surprise_before"
    assert page.locator("#leaf").input_value() == BAD
    assert page.locator("#step").input_value() == "1210"
    draw_all(page)
    assert lines(page, "timeline") == [1210]
    assert lines(page, "micro") == [1210]
    assert page.locator("#spread h3").first.inner_text().startswith(BAD)
    assert "Step 1210" in page.locator("#depth .remark").inner_text()
    assert page.locator(".card.chosen").count() == 1


def test_a_card_s_leaf_is_chosen_by_its_own_button(page):
    page.get_by_role("button", name="blocks/1/norm1/scale").click()
    settled(page)
    assert page.locator("#leaf").input_value() == "blocks/1/norm1/scale"


SPOT = """([id, places, data]) => {
  const el = document.querySelector(`#${id} .js-plotly-plot`), box = el.getBoundingClientRect(), of = el._fullLayout;
  return places.map(([x, y, axis]) => {
    const across = of.xaxis, up = of[axis || 'yaxis'], along = data ? across.d2p(x) : x * across._length;
    return [box.left + across._offset + along, box.top + up._offset + (1 - y) * up._length];
  });
}"""


def drag(page, panel, path):
    """Along points given as shares of the chart's width and height."""
    spot = page.evaluate(SPOT, [panel, path, False])
    page.mouse.move(*spot[0])
    page.mouse.down()
    for to in spot[1:]:
        page.mouse.move(*to, steps=4)
    page.mouse.up()


def test_a_mark_on_the_timeline_opens_its_finding(page):
    [[x, y]] = page.evaluate(SPOT, ["timeline", [[SPIKE_STEP, 0.5, "yaxis4"]], True])
    page.mouse.move(x - 3, y)
    page.mouse.move(x, y)
    page.mouse.click(x, y)
    until(page, "window.__adamx.state.finding === 1")


def test_a_brush_on_the_timeline_is_the_window_of_all(page, run):
    drag(page, "timeline", [(0.25, 0.5), (0.5, 0.5)])
    until(page, "window.__adamx.state.window[0] > 1")
    low, high = state(page, "window")
    width = 2559 * 1.024
    assert low == pytest.approx(1 - 2559 * 0.012 + 0.25 * width, abs=15)
    assert high == pytest.approx(1 - 2559 * 0.012 + 0.5 * width, abs=15)
    assert page.locator("#from").input_value() == str(low)
    draw_all(page)
    first = -(-low // 10) * 10
    assert f"thin lines step {first}" in page.locator("#depth .remark").inner_text()
    spread = page.evaluate("() => document.querySelector('#spread .js-plotly-plot').data[1].x")
    assert spread == [s for s in run.spread_steps.tolist() if low <= s <= high]
    head, rows = table(page, "timeline")
    assert head[0] == "step"
    assert low <= int(rows[0][0]) < int(rows[-1][0]) <= high
    page.locator("#all").click()
    assert state(page, "window") == [1, 2560]


def test_the_window_can_be_typed(page):
    page.locator("#from").fill("900")
    page.locator("#to").fill("300")
    page.locator("#to").press("Enter")
    page.locator("#to").blur()
    assert state(page, "window") == [300, 900]
    page.locator("#step").fill("99999")
    page.locator("#step").blur()
    assert state(page, "step") == 2560


def test_a_lasso_in_the_phase_plot_filters_the_rows(page):
    draw_all(page)
    page.locator("#phase").scroll_into_view_if_needed()
    drag(page, "phase", [(0.01, 0.01), (0.99, 0.01), (0.99, 0.99), (0.01, 0.99), (0.01, 0.02)])
    until(page, "window.__adamx.state.picked?.size === 123")
    drag(page, "phase", [(0.01, 0.01), (0.5, 0.01), (0.5, 0.99), (0.01, 0.99), (0.01, 0.02)])
    until(page, "window.__adamx.state.picked.size < 123")
    half = page.evaluate("() => window.__adamx.state.picked.size")
    assert half > 0
    draw_all(page)
    assert f"of {half} leaves" in page.locator("#heat .tools").inner_text()
    page.get_by_role("button", name="Show all leaves again").click()
    draw_all(page)
    assert "of 123 leaves" in page.locator("#heat .tools").inner_text()


def test_the_farthest_can_be_picked_without_a_mouse(page):
    page.evaluate("() => window.__adamx.set({ step: 1210 })")
    draw_all(page)
    page.get_by_role("button", name="Pick the 10 farthest").press("Enter")
    settled(page)
    titles = page.locator("#heat .row").evaluate_all("(rows) => rows.map((r) => r.title)")
    assert BAD in titles
    assert "of 10 leaves" in page.locator("#heat .tools").inner_text()


def test_the_microscope_names_who_moved_first(page):
    page.evaluate("() => window.__adamx.set({ step: 1210 })")
    _, rows = table(page, "micro")
    assert rows[0][:2] == [BAD, "1210"]
    assert {row[1] for row in rows[1:]} == {"1220"}  # embeddings and head, at 1230, are beyond 16 steps
    assert all(row[0].startswith("blocks/") for row in rows)
    assert len(rows) == 120
    page.evaluate("() => window.__adamx.set({ step: 700 })")
    draw_all(page)
    said = page.locator("#micro .remark").inner_text()
    assert said.startswith(
        "Around step 700 no leaf is seen to move; this is the nearest spike, at step 1210. 120 leaves"
    )
    assert lines(page, "micro") == [1210]
    page.get_by_role("button", name="Spike after").click()
    assert state(page, "step") == 1210


# Its rows


def row_titles(page):
    return page.locator("#heat .row").evaluate_all("(rows) => rows.map((r) => r.title)")


def test_rows_fold_and_unfold_by_click(page):
    before = row_titles(page)
    assert "blocks/7/attn/" in before
    page.locator("#heat .row[data-key='blocks/7/']").click()
    settled(page)
    assert "blocks/7/attn/" not in row_titles(page)
    page.locator("#heat .row[data-key='blocks/7/']").click()
    settled(page)
    assert row_titles(page) == before
    page.get_by_role("button", name="Unfold all").click()
    settled(page)
    assert "of 123 leaves" in page.locator("#heat .tools").inner_text()
    assert page.evaluate("() => window.__adamx.rows().length") == 123 + 1 + 12 * 5
    assert page.locator("#heat .row").count() <= 40  # only what is in view is in the document
    page.get_by_role("button", name="Fold all", exact=True).click()
    settled(page)
    assert page.evaluate("() => window.__adamx.rows()") == ["#0", "blocks/", "#121", "#122"]


def test_rows_are_reached_by_keyboard(page):
    page.evaluate("() => window.__adamx.set({ folds: new Map([['blocks/', false]]), cursor: null })")
    tree = page.get_by_role("tree")
    tree.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        tree.press(key)
        settled(page)
    assert len(page.evaluate("() => window.__adamx.rows()")) == 16
    assert page.evaluate("() => document.getElementById('row-now').getAttribute('aria-expanded')") == "true"
    assert tree.get_attribute("aria-activedescendant") == "row-now"
    for key in ("End", "Enter"):
        tree.press(key)
        settled(page)
    assert page.locator("#leaf").input_value() == "head/kernel"
    assert page.locator("#heat .row[aria-selected='true']").get_attribute("title") == "head/kernel"
    step = state(page, "step")
    tree.press(",")
    assert state(page, "step") == step - 10
    tree.press("Shift+ArrowRight")
    assert state(page, "step") == step
    for key in ("Home", "ArrowDown", "ArrowLeft"):
        tree.press(key)
        settled(page)
    assert len(page.evaluate("() => window.__adamx.rows()")) == 4


def test_focus_is_visible(page):
    page.locator("#print").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.id") == "theme"
    assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.parametrize(
    ("glob", "count"), [("blocks/1?/attn/q*", 2), ("*norm*", 25), ("HEAD", 1), ("nothing", 0), ("[", 0)]
)
def test_rows_are_searched_by_glob(page, glob, count):
    page.get_by_role("searchbox").fill(glob)
    settled(page)
    leaves = [t for t in page.evaluate("() => window.__adamx.rows()") if t.startswith("#")]
    assert len(leaves) == count
    if not count:
        assert "No leaf fits" in page.locator("#heat .tools").inner_text()


def test_only_rows_with_findings(page):
    page.get_by_label("only with findings").check()
    settled(page)
    assert [t for t in row_titles(page) if not t.endswith("/")] == ["blocks/0/norm1/scale", "blocks/1/norm1/scale", BAD]


def test_the_worst_rows_come_first(page):
    page.evaluate("() => window.__adamx.set({ metric: 'stalled' })")
    page.get_by_label("worst first").check()
    settled(page)
    rows = page.evaluate("() => window.__adamx.rows()")
    assert rows[:4] == ["blocks/", "blocks/7/", "blocks/7/attn/", rows[3]]
    assert row_titles(page)[3] == BAD


def test_a_click_on_a_folded_cell_chooses_its_worst_leaf_and_step(page, run):
    page.evaluate("() => window.__adamx.set({ metric: 'surprise_before', folds: new Map(), leaf: 0, step: 10 })")
    settled(page)
    row = page.evaluate("() => window.__adamx.rows()").index("blocks/7/")
    box = page.locator("#heat .field").bounding_box()
    page.locator("#heat .field").click(position={"x": across(run, 1210) * box["width"], "y": row * 18 + 9})
    settled(page)
    assert page.locator("#leaf").input_value() == BAD
    assert state(page, "step") == 1210
    assert "step 1210: surprise_before" in page.locator(".tip").inner_text()


# Its dress


def test_the_theme_changes_page_and_cells(page, run):
    background = "() => getComputedStyle(document.body).backgroundColor"
    light, cell = page.evaluate(background), pixel(page, 0, 100, run)
    page.locator("#theme").click()
    settled(page)
    dark = page.evaluate(background)
    assert (light, dark) == ("rgb(244, 243, 239)", "rgb(17, 17, 16)")
    assert pixel(page, 0, 100, run) != cell
    page.locator("#theme").click()
    settled(page)
    assert pixel(page, 0, 100, run) == cell
    page.emulate_media(color_scheme="dark")
    page.evaluate("() => delete document.documentElement.dataset.theme")
    assert page.evaluate(background) == dark
    page.emulate_media(color_scheme="light")


def test_nothing_is_cut_off_on_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 844})
    draw_all(page)
    until(page, "document.documentElement.scrollWidth === 390")
    elements = "[...document.querySelectorAll('section *:not(.table *):not(svg *)')]"
    until(page, f"Math.max(...{elements}.map((e) => e.getBoundingClientRect().right)) <= 390")


def test_it_prints_on_white_without_its_controls(page):
    page.evaluate("() => { window.print = () => (window.printed = document.querySelectorAll('.drawn').length); }")
    page.locator("#theme").click()
    page.locator("#print").click()
    until(page, "window.printed === 9")  # also those that had not been in view
    assert page.evaluate("() => document.documentElement.dataset.theme") == "light"
    page.emulate_media(media="print")
    assert not page.locator("#print").is_visible()
    assert page.locator("#heat").is_visible()
    page.emulate_media(media="screen")
    page.evaluate("() => window.dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("() => document.documentElement.dataset.theme") == "dark"
    page.evaluate("() => delete document.documentElement.dataset.theme")


def test_a_table_stands_behind_every_chart(page):
    draw_all(page)
    for panel in ("verdict", "timeline", "heat", "depth", "spread", "phase", "micro", "precision", "compare"):
        says = page.locator(f"#{panel} .says").inner_text()
        assert "ells" in says, panel  # what it tells apart
        if panel == "micro":
            page.evaluate("() => window.__adamx.set({ step: 1210 })")
        head, rows = table(page, panel)
        assert rows, panel
        assert {len(row) for row in rows} == {len(head)}, panel
        assert len(rows) <= 200, panel


def test_a_long_table_says_how_much_it_leaves_out(page):
    table(page, "timeline")
    rest = 2560 - page.locator("#timeline-table tbody tr").count()
    assert f"{rest:,} more rows not shown" in page.locator("#timeline-table caption").text_content()


def test_runs_are_compared_where_they_differ(page, run):
    draw_all(page)
    shown = page.locator("#compare .chart > .table").inner_text()
    assert "b2" in shown
    assert "eps" in shown
    assert "weight_decay" not in shown
    traces = "() => document.querySelectorAll('#compare .js-plotly-plot')[2].data.map((t) => t.y.length)"
    page.evaluate("() => window.__adamx.set({ leaf: 0 })")
    draw_all(page)
    assert page.evaluate(traces) == [256, 64]
    assert page.locator("#compare .remark").inner_text() == ""
    page.evaluate("() => window.__adamx.set({ leaf: 100 })")  # of a layer that the other lacks
    draw_all(page)
    assert "the median over its leaves" in page.locator("#compare .remark").inner_text()


# Other histories


HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "layer0/<b>bold</b>",
    "layer1/<b>bold</b>",
    "__proto__/constructor",
    "\"'&amp;`${hacked}",
    "@@data@@",
    "lone \ud800 surrogate\u2028\x00",
    "",
]


def test_names_and_titles_are_text_whatever_they_hold(browser, tmp_path):
    leaves = [Leaf(name, (3,), "float32") for name in HOSTILE]
    made = history(leaves, records=64, spike=500)
    bad = finding(leaves=(HOSTILE[0],), step=500, says=HOSTILE[1], cause=HOSTILE[0], evidence={HOSTILE[2]: HOSTILE[1]})
    report.write(made, tmp_path / "x.html", [bad], HOSTILE[0] + "@@js@@", {HOSTILE[1]: made})
    page = opened(browser, tmp_path / "x.html")
    draw_all(page)
    page.get_by_role("button", name="Unfold all").click()
    settled(page)
    assert page.evaluate("() => window.hacked") is None
    assert page.complaints == []
    assert page.locator("h1").inner_text() == HOSTILE[0] + "@@js@@"
    titles = row_titles(page)
    assert set(HOSTILE[:7]) <= set(titles)
    assert "(the only leaf)" in titles
    assert page.locator("#micro .yaxislayer-above, #micro .ytick").filter(has_text="window.hacked").count() > 0
    assert page.locator("img").count() == 0
    assert "layer*/<b>bold</b>" in page.locator("#depth .legend").inner_text()
    page.context.close()


def test_an_empty_history_says_so(browser, tmp_path):
    empty = np.zeros(0, np.int64)
    report.write(History(About((), 10), empty, {}, {}, empty, {}, empty, {}), tmp_path / "x.html")
    page = opened(browser, tmp_path / "x.html")
    draw_all(page)
    assert page.complaints == []
    assert "Nothing found" in page.locator("#verdict").inner_text()
    assert "Neither loss, gradient norm nor learning rate" in page.locator("#timeline .empty").inner_text()
    for panel in ("heat", "depth", "spread", "phase", "micro", "precision"):
        assert "holds no record" in page.locator(f"#{panel} .empty").inner_text(), panel
    assert page.locator("#compare").count() == 0
    page.context.close()


def test_records_are_drawn_where_the_pulse_keeps_no_steps(browser, tmp_path):
    made = history(transformer(layers=1), records=40, spike=300)
    late = made.pulse_steps > 200
    pulse = {name: x[late] for name, x in made.pulse.items()}
    report.write(dataclasses.replace(made, pulse_steps=made.pulse_steps[late], pulse=pulse), tmp_path / "x.html")
    page = opened(browser, tmp_path / "x.html")
    got = page.evaluate("(name) => window.__adamx.curve(name)", "loss")
    assert got["steps"] == [*range(10, 201, 10), *range(201, 401)]
    np.testing.assert_array_equal(np.float32(got["values"]), [*made.whole["loss"][:20], *pulse["loss"]])
    marks = page.evaluate("() => document.querySelector('#timeline .js-plotly-plot').data.map((t) => Array.from(t.x))")
    assert [302] in marks  # the spike's mark stands at its step
    page.evaluate("() => window.__adamx.set({ window: [10, 100] })")
    head, rows = table(page, "timeline")
    assert head[:2] == ["step", "loss"]
    assert [row[0] for row in rows] == [str(step) for step in range(10, 101, 10)]
    assert page.complaints == []
    page.context.close()


def test_a_foreign_optimiser_s_history_says_what_it_lacks(browser, tmp_path):
    made = history(records=3, spike=10**9, names=["grad_rms", "param_rms"])
    leaf = dict(made.leaf, update_ratio=np.full_like(made.leaf["grad_rms"], np.nan))  # as good as not recorded
    pulse = {name: np.full_like(x, np.nan) if "loss" in name else x for name, x in made.pulse.items()}
    whole = {"grad_norm": made.whole["grad_norm"]}
    method = {"learning_rate": 0.1}
    none = np.zeros(0, np.int64)
    about = dataclasses.replace(made.about, method=method)
    report.write(History(about, made.steps, whole, leaf, made.pulse_steps, pulse, none, {}), tmp_path / "x.html")
    page = opened(browser, tmp_path / "x.html")
    draw_all(page)
    assert page.complaints == []
    said = page.locator("#timeline .remark").inner_text()
    assert "loss was not passed" in said
    assert "learning rate is 0.1 throughout" in said
    assert page.locator("#metric option").all_inner_texts() == ["grad_rms", "param_rms"]
    assert "No distributions" in page.locator("#spread .empty").inner_text()
    assert "needs update_ratio" in page.locator("#phase .empty").inner_text()
    assert "No statistic of rounding" in page.locator("#precision .empty").inner_text()
    assert "fewer than 4 records" in page.locator("#micro .remark").inner_text()
    assert page.locator("#depth .js-plotly-plot").count() == 1
    sections = page.locator("main > section").evaluate_all(
        "(all) => all.map((s) => [s.id, s.className.includes('none'), s.getBoundingClientRect().height])"
    )
    assert [name for name, empty, _ in sections if empty] == [name for name, *_ in sections[-3:]]
    assert max(height for _, empty, height in sections if empty) < 200  # not as high as a chart beside it
    page.context.close()


@pytest.fixture(scope="module")
def late(browser, tmp_path_factory):
    """A run whose beginning was not logged, watched for higher spikes, whose first record lacks what the page shows."""
    made = history(transformer(layers=2), records=40, spike=300).between(205, 400)
    made.leaf["surprise_before"][0] = np.nan
    about = dataclasses.replace(made.about, method={**made.about.method, "spike": 15.0})
    made.pulse["loss_score"][95:97] = 14.0, 21.0  # steps 300 and 301
    path = tmp_path_factory.mktemp("late") / "x.html"
    found = [finding(step=1, leaves=("embed/table",), evidence={"surprise_before": 2.0})]
    report.write(dataclasses.replace(made, about=about), path, found, unread=("QERR", "V_FROZEN"))
    page = opened(browser, path)
    draw_all(page)
    yield page
    assert page.complaints == []
    page.context.close()


def test_it_opens_at_the_nearest_record_that_has_numbers(late):
    assert state(late, "step") == 220
    assert re.match(r"= \d", late.locator("#value").inner_text())
    late.evaluate("() => window.__adamx.set({ step: 205 })")
    assert late.locator("#value").inner_text().startswith("= \u2013")
    draw_all(late)
    assert late.locator("#phase .remark").inner_text().startswith("Step 220.")
    late.locator(".card button").first.click()
    until(late, "window.__adamx.state.step === 220")


def test_spikes_are_those_that_the_watch_was_told_to_see(late):
    assert late.evaluate("() => window.__adamx.spikes") == [301]
    said = late.locator("#timeline .legend").inner_text()
    assert "more than 15 deviations above the mean of 128 steps: 1 spike, at least 16 steps apart" in said
    assert "this is the nearest spike, at step 301" in late.locator("#micro .remark").inner_text()


def test_what_the_doctor_could_not_look_at_is_said_beside_what_it_found(late, browser, tmp_path):
    cards = late.locator(".card.unread").all_inner_texts()
    assert len(cards) == 2
    kind, said = cards[0].split("\n", 1)
    assert re.match(r"○ 2 of \d+ rules had nothing to read", kind)
    assert said.strip().startswith("QERR, V_FROZEN, because what they read was not recorded.")
    assert "Records begin with step 210: drain more often" in cards[1]
    made = history(records=4, spike=10**9, names=["grad_rms"])
    made = dataclasses.replace(made, about=dataclasses.replace(made.about, method={}))
    report.write(made, tmp_path / "x.html", unread=["QERR"])
    page = opened(browser, tmp_path / "x.html")
    cards = page.locator(".card").all_inner_texts()
    assert cards[0].startswith("✓ Nothing found in what was recorded")
    assert "QERR, because the watched transformation does not show its links." in cards[1]
    page.context.close()


def test_a_share_is_no_part_of_its_step(late):
    assert re.search(r"At step \d+, [\d.]+ % of the", late.locator("#spread .remark").last.inner_text())


@pytest.mark.slow
def test_the_benchmark_of_the_page_runs():
    command = [sys.executable, "-m", "benchmarks.report", "--short"]
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed, which drives the browser")
    if executable() is None:
        pytest.skip("neither chromium nor google-chrome is installed")
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"40 leaves x 64 records: [\d.]+ MB", done.stdout)
    rows = re.findall(r"^\| (\w.*?) \| [\d.]+ \[", done.stdout, re.MULTILINE)
    assert rows == ["shown", "ready", "ready, computing", "click"]


@pytest.mark.slow
def test_1000_leaves_and_512_records_stay_small_and_in_reach(browser, tmp_path):
    leaves = [Leaf(f"layers/{i // 10}/{'abcdefghij'[i % 10]}/kernel", (64, 64), "float32") for i in range(1000)]
    path = tmp_path / "big.html"
    report.write(history(leaves, records=512, spreads=64), path)
    plotly = len(re.search(r'id="plotly">(.*?)</script>', path.read_text())[1])
    assert path.stat().st_size - plotly <= 12e6
    page = opened(browser, path)  # how fast that is, benchmarks.report prints
    page.select_option("#metric", "update_ratio")
    settled(page)
    page.get_by_role("button", name="Unfold all").click()
    draw_all(page)
    assert page.evaluate("() => window.__adamx.rows().length") == 1101
    assert page.locator("#heat .row").count() <= 40
    assert page.evaluate("() => document.querySelectorAll('*').length") < 5000
    page.locator("#heat .rows").evaluate("(e) => e.scrollTo(0, e.scrollHeight)")
    settled(page)
    assert row_titles(page)[-1] == "layers/99/j/kernel"
    assert page.complaints == []
    page.context.close()


# Writing it


def test_a_long_run_keeps_its_spikes_and_extremes(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MOST_CELLS", 64 * 123 * 29)
    monkeypatch.setattr(report, "MOST_PULSES", 100)
    monkeypatch.setattr(report, "MOST_SHARES", 4 * 123 * 4 * 16)
    made = history()
    report.write(made, tmp_path / "x.html", [finding(step=2000)])
    data = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "x.html").read_text())[1])["runs"][0]
    steps = lambda text: np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u4").cumsum()
    records, pulses = steps(data["steps"]), steps(data["pulse_steps"])
    assert records.size == 64
    assert {1200, 1210, 1220, 1990, 2000, 2010, 2560} <= set(records.tolist())
    extremes = {1 + int(made.pulse["loss"].argmax()), 1 + int(made.pulse["grad_norm"].argmin())}
    assert {1210, 1212, 2560} | extremes <= set(pulses.tolist())
    assert pulses.size <= 110
    assert steps(data["spread_steps"]).size == 4
    assert data["of"] == [256, 2560, 24]


def test_noise_is_coded_coarser_rather_than_the_file_larger(tmp_path, monkeypatch):
    made = history(records=64)
    errors = []
    for most in (10**9, 0):
        monkeypatch.setattr(report, "MOST_BYTES", most)
        report.write(made, tmp_path / "x.html")
        data = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "x.html").read_text())[1])["runs"][0]
        errors.append(data["leaf"]["grad_rms"]["error"])
    assert errors == pytest.approx([2 ** (2**-8) - 1, 2 ** (2**-5) - 1])


def test_a_run_to_compare_may_have_any_name(tmp_path):
    made = history(records=4, spike=10**9)
    report.write(made, tmp_path / "x.html", others={"this run": made})
    data = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "x.html").read_text())[1])
    assert [run["name"] for run in data["runs"]] == ["this run", "this run"]
    assert [len(run["spread"]) for run in data["runs"]] == [4, 0]


def test_an_unknown_severity_is_refused(tmp_path):
    with pytest.raises(ValueError, match="severity is 'fatal'; it must be one of error, warning, note"):
        report.write(history(records=2), tmp_path / "x.html", [finding(severity="fatal")])
    assert list(tmp_path.iterdir()) == []


def test_a_table_of_another_shape_is_refused(tmp_path):
    made = history(records=4)
    short = dataclasses.replace(made, leaf={"grad_rms": made.leaf["grad_rms"][:3]})
    with pytest.raises(ValueError, match=r"leaf\['grad_rms'\] of this run has shape \(3, 123\), but .* say \(4, 123\)"):
        report.write(short, tmp_path / "x.html")


def test_without_plotly_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ImportError, match=r"pip install 'adamx\[report\]'"):
        report.write(history(records=2), tmp_path / "x.html")
    assert list(tmp_path.iterdir()) == []
