/* Elements, text and arrays. The scripts of this folder are one module, joined in the order of `_SCRIPTS` in report.py.
   Names of leaves, titles and findings are data: they reach the document as text nodes only, plotly through plain(). */

const [MISSING, INF, MINUS, ZERO, FIRST] = [0, 1, 2, 3, 4];
const ROW = 18,
  ROWS_OPEN = 60,
  TALLEST = 576,
  TABLE = 200,
  CARDS = 12,
  DOTS = 400,
  TAIL = 10,
  TAILS = 16,
  FIRST_MOVERS = 20;
const data = JSON.parse(document.getElementById("data").textContent);
const run = data.runs[0];
const byId = (id) => document.getElementById(id);

function h(tag, given = {}, ...children) {
  const el = document.createElement(tag);
  for (const [key, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) el.addEventListener(key.slice(2), value);
    else el.setAttribute(key, value === true ? "" : value);
  }
  el.append(...children.filter((x) => x !== null && x !== undefined));
  return el;
}

function fmt(x) {
  if (typeof x !== "number") return x === null || x === undefined ? "–" : String(x);
  if (Number.isNaN(x)) return "–";
  if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
  if (Number.isInteger(x) && Math.abs(x) < 1e7) return String(x);
  const size = Math.abs(x);
  return size >= 1e-3 && size < 1e5 ? String(Number(x.toPrecision(4))) : x.toExponential(2);
}
const many = (n, word, words = word + "s") => `${n.toLocaleString("en")} ${n === 1 ? word : words}`;
const named = (leaf) => leaf.name || "(the only leaf)";
// plotly reads a few tags and entities in texts
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
function tailOf(text, most) {
  // "…/7/attn/q/kernel"
  if (text.length <= most) return text;
  const tail = text.slice(text.length - most + 1),
    at = tail.indexOf("/");
  return "…" + (at > 0 && at < tail.length / 2 ? tail.slice(at) : tail);
}

// --- arrays

function bytesOf(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text); // ten times as fast, but new in 2025
  const binary = atob(text),
    bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}
const inflate = async (text) => {
  const packed = bytesOf(text);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
};
const floats = async (text) => new Float32Array(await inflate(text));
const summed = async (text) => {
  let at = 0;
  return Float64Array.from(new Uint32Array(await inflate(text)), (d) => (at += d));
};
async function planes(text, width) {
  const bytes = new Uint8Array(await inflate(text));
  const n = bytes.length / 2;
  const codes = new Uint16Array(n);
  for (let i = 0; i < n; i++) {
    const small = bytes[i] | (bytes[n + i] << 8); // 0, 1, 2, 3 for differences of 0, -1, 1, -2
    codes[i] = ((small >> 1) ^ -(small & 1)) + (i % width ? codes[i - 1] : 0);
  }
  return codes;
}

for (const r of data.runs) {
  r.leaves = r.leaves.map(([name, shape, dtype]) => ({ name, shape, dtype, size: shape.reduce((a, b) => a * b, 1) }));
  r.cubes = new Map();
  r.bands = new Map();
  for (const table of ["whole", "pulse"]) {
    const read = await Promise.all(Object.entries(r[table]).map(async ([k, v]) => [k, await floats(v)]));
    r[table] = new Map(read);
  }
  for (const key of ["steps", "pulse_steps", "spread_steps"]) r[key] = await summed(r[key]);
}

/* One statistic: codes by leaf and record, and what a code stands for. */
function cube(r, name) {
  if (!r.cubes.has(name)) r.cubes.set(name, decoded(r, r.leaf[name]));
  return r.cubes.get(name);
}
async function decoded(r, coded) {
  const width = r.steps.length;
  const codes = width ? await planes(coded.codes, width) : new Uint16Array(0);
  let top = FIRST,
    bottom = 65535;
  const counts = new Uint32Array(65536);
  for (const c of codes) counts[c]++;
  for (let c = FIRST; c < 65536; c++)
    if (counts[c]) {
      top = c;
      bottom = Math.min(bottom, c);
    }
  const values = new Float32Array(top + 1);
  values.set([NaN, Infinity, -Infinity, 0]);
  for (let c = FIRST; c <= top; c++) {
    const x = coded.low + coded.step * (c - FIRST);
    values[c] = coded.log ? 2 ** x : x;
  }
  return {
    codes,
    values,
    counts,
    width,
    error: coded.error,
    log: coded.log,
    rows: new Map(),
    at: (leaf, record) => (record < 0 ? NaN : values[codes[leaf * width + record]]),
  };
}
function shares(name) {
  if (!run.bands.has(name)) run.bands.set(name, planes(run.spread[name], 16));
  return run.bands.get(name);
}

const statistics = Object.keys(data.metrics)
  .filter((name) => name in run.leaf)
  .concat(Object.keys(run.leaf).filter((name) => !(name in data.metrics)));
const about = (name) => data.metrics[name] || { name, says: name, formula: "", reference: null, scale: "log" };
const has = (name) => name in run.leaf;

function nearest(steps, step) {
  if (!steps.length) return -1;
  let low = 0,
    high = steps.length - 1;
  while (low < high) {
    const mid = (low + high) >> 1;
    if (steps[mid] < step) low = mid + 1;
    else high = mid;
  }
  return low > 0 && step - steps[low - 1] <= steps[low] - step ? low - 1 : low;
}
const recordOf = (step) => nearest(run.steps, step);
function between(steps, [from, to]) {
  // positions [first, end)
  let first = 0,
    end = steps.length;
  while (first < end && steps[first] < from) first++;
  while (end > first && steps[end - 1] > to) end--;
  return [first, end];
}
function gapOf(steps) {
  // the usual distance of two records
  if (steps.length < 2) return 1;
  const gaps = Float64Array.from({ length: steps.length - 1 }, (_, i) => steps[i + 1] - steps[i]).sort();
  return gaps[gaps.length >> 1];
}
const median = (xs) => {
  const sorted = xs.filter(Number.isFinite).sort((a, b) => a - b);
  const n = sorted.length;
  return n ? (sorted[(n - 1) >> 1] + sorted[n >> 1]) / 2 : NaN;
};
