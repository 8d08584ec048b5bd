/* One state (statistic, leaf, step, window, filters); panels say which parts of it they show, and are drawn again when
   those change and they are in view. */

const known = new Map(run.leaves.map((leaf, i) => [leaf.name, i]));
const found = new Map(); // leaf -> worst severity
for (const f of [...data.findings].reverse())
  for (const name of f.leaves) if (known.has(name)) found.set(known.get(name), f.severity);
const everyStep = [...run.steps, ...run.pulse_steps, ...run.spread_steps];
let first = Infinity,
  last = -Infinity;
for (const s of everyStep) {
  first = Math.min(first, s);
  last = Math.max(last, s);
}
if (!everyStep.length) first = last = 0;
const spikes = spikesOf(run);

function spikesOf(r) {
  // where each begins: what follows within the window around belongs to it
  const scores = ["loss_score", "grad_score"].map((k) => r.pulse.get(k)).filter(Boolean);
  const starts = [];
  r.pulse_steps.forEach((step, i) => {
    if (scores.some((s) => s[i] > r.spike) && !(step - starts.at(-1) <= data.around)) starts.push(step);
  });
  return starts;
}

const state = {
  metric: null,
  leaf: run.leaves.length ? 0 : null,
  step: last,
  window: [first, last],
  finding: null,
  glob: "",
  worst: false,
  found: false,
  picked: null,
  folds: new Map(),
  cursor: null,
  ghost: "start",
  phase: has("surprise_before") ? "surprise_before" : "update_cosine",
};
const panels = [];
const dirty = new Set(),
  seen = new Set();
let chain = Promise.resolve(),
  queued = false;

function set(changes) {
  const keys = Object.keys(changes).filter((k) => state[k] !== changes[k]);
  if (!keys.length) return;
  Object.assign(state, changes);
  for (const p of panels) if (keys.some((k) => p.on.includes(k))) dirty.add(p);
  showBar();
  schedule();
}
function schedule() {
  if (queued) return;
  queued = true;
  requestAnimationFrame(() => {
    queued = false;
    chain = chain.then(() => flush(seen)).catch((e) => console.error(e));
  });
}
async function flush(which) {
  const due = panels.filter((p) => dirty.has(p) && which.has(p));
  const begin = !library && due.some((p) => !p.light);
  for (const p of [...due.filter((q) => q.light), ...due.filter((q) => !q.light)]) {
    if (begin && !p.light && !library) {
      // what needs no plotly is on the screen, and works, before it is read
      performance.mark("adamx:shown");
      await frame();
    }
    dirty.delete(p);
    await p.draw(p.body);
    if (!p.table.hidden) await fill(p);
    p.section.classList.add("drawn");
    for (const mark of p.section.querySelectorAll(".undrawn")) mark.remove();
  }
}
const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
async function settled() {
  do {
    await frame();
    await frame(); // the observer tells of what a scroll has just brought into view a frame later
    await chain;
  } while (queued);
}
const drawAll = async () => {
  await chain;
  await flush(new Set(panels));
};

function moveStep(by) {
  const record = recordOf(state.step);
  if (record >= 0) set({ step: run.steps[Math.min(Math.max(record + by, 0), run.steps.length - 1)] });
}
function goTo({ leaf = null, step = null, ...more }) {
  const changes = { ...more };
  if (leaf !== null) Object.assign(changes, { leaf }, reveal(leaf));
  if (step !== null) {
    changes.step = Math.min(Math.max(step, first), last);
    const [from, to] = more.window || state.window;
    if (changes.step < from || changes.step > to) changes.window = [first, last];
  }
  set(changes);
}
