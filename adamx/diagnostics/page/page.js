/* Heading, bar, theme, printing, and the beginning. */

function heading() {
  const total = run.leaves.reduce((sum, leaf) => sum + leaf.size, 0);
  byId("title").textContent = document.title = data.title || "Training report";
  byId("about").textContent =
    `${many(total, "parameter")} in ${many(run.leaves.length, "leaf", "leaves")}; ${many(run.of[0], "record")}, every ${many(run.every, "step")}${everyStep.length ? `; steps ${first.toLocaleString("en")} to ${last.toLocaleString("en")}` : ""}.`;
  const show = (v) =>
    Array.isArray(v)
      ? v.map(String).join(" → ")
      : typeof v === "object" && v !== null
        ? Object.entries(v)
            .map(([k, x]) => `${k} ${x}`)
            .join(", ")
        : fmt(v);
  const { decays, ...method } = run.method;
  const chips = Object.entries(method).map(([k, v]) => h("li", {}, `${k} `, h("b", {}, show(v))));
  if (Array.isArray(decays))
    chips.push(
      h("li", {}, "weight decay reaches ", h("b", {}, `${decays.filter(Boolean).length} of ${decays.length} leaves`)),
    );
  byId("method").replaceChildren(...chips);
  const errors = Object.values(run.leaf),
    relative = Math.max(0, ...errors.filter((c) => c.log).map((c) => c.error)),
    absolute = Math.max(0, ...errors.filter((c) => !c.log).map((c) => c.error));
  byId("footer").textContent =
    `Statistics of leaves are kept on this page to ${fmt(100 * relative)} % of a number${absolute ? ` (cosines to ${fmt(absolute)})` : ""}; losses, norms and learning rates as recorded. The page loads nothing. Drawn with plotly.js (MIT licence).`;
}
function showBar() {
  const keep = (id, value) => {
    const el = byId(id);
    if (el !== document.activeElement || el.tagName === "SELECT") el.value = value;
  };
  keep("metric", state.metric ?? "");
  keep("leaf", state.leaf === null ? "" : run.leaves[state.leaf].name);
  keep("step", state.step);
  keep("from", state.window[0]);
  keep("to", state.window[1]);
  for (const key of ["found", "worst"]) if (byId(`only-${key}`)) byId(`only-${key}`).checked = state[key];
  const search = heat.parts?.search;
  if (search && search !== document.activeElement) search.value = state.glob;
  if (state.metric === null || state.leaf === null) return;
  const [name, leaf, at] = [state.metric, state.leaf, recordOf(state.step)];
  cube(run, name).then((c) => {
    const { reference } = about(name);
    byId("value").textContent = `= ${fmt(c.at(leaf, at))}${reference === null ? "" : ` (reference ${fmt(reference)})`}`;
  });
}
function bar() {
  const on = (id, event, heard) => byId(id).addEventListener(event, heard);
  byId("metric").append(...statistics.map((name) => h("option", { value: name, title: about(name).says }, name)));
  if (!statistics.length) for (const id of ["metric", "leaf", "step", "back", "forth"]) byId(id).disabled = true;
  for (const id of ["step", "from", "to"]) Object.assign(byId(id), { min: first, max: last });
  on("bar", "submit", (e) => e.preventDefault());
  on("metric", "change", (e) => set({ metric: e.target.value }));
  on("leaf", "focus", (e) => e.target.select());
  on("leaf", "input", (e) => {
    const fits = pattern(e.target.value),
      some = [];
    for (const leaf of run.leaves)
      if (some.length < 20 && fits(leaf.name)) some.push(h("option", { value: leaf.name }));
    byId("leaves").replaceChildren(...some);
  });
  on("leaf", "change", (e) => {
    const text = e.target.value,
      fits = pattern(text),
      at = known.get(text) ?? run.leaves.findIndex((leaf) => fits(leaf.name));
    e.target.value = run.leaves[at >= 0 ? at : state.leaf].name;
    if (at >= 0) goTo({ leaf: at });
  });
  on("step", "change", (e) => {
    if (e.target.value !== "") goTo({ step: Math.round(Number(e.target.value)) });
    e.target.value = state.step;
  });
  on("back", "click", () => moveStep(-1));
  on("forth", "click", () => moveStep(1));
  const window_ = () => {
    const [a, b] = ["from", "to"].map((id) =>
      Math.min(Math.max(Math.round(Number(byId(id).value)) || first, first), last),
    );
    set({ window: a < b ? [a, b] : [b, a] });
    [byId("from").value, byId("to").value] = state.window;
  };
  on("from", "change", window_);
  on("to", "change", window_);
  on("all", "click", () => set({ window: [first, last] }));
  on("theme", "click", () => {
    document.documentElement.dataset.theme = theme() === "dark" ? "light" : "dark";
    repaint();
  });
  wantsDark.addEventListener("change", repaint);
  on("print", "click", async () => {
    const before = document.documentElement.dataset.theme;
    document.documentElement.dataset.theme = "light"; // paper is white
    repaint();
    await drawAll();
    window.addEventListener(
      "afterprint",
      () => {
        if (before) document.documentElement.dataset.theme = before;
        else delete document.documentElement.dataset.theme;
        repaint();
      },
      { once: true },
    );
    window.print();
  });
  new ResizeObserver(([entry]) =>
    document.documentElement.style.setProperty("--bar", `${Math.round(entry.target.offsetHeight + 12)}px`),
  ).observe(byId("bar"));
}
function repaint() {
  byId("theme").textContent = theme() === "dark" ? "Light" : "Dark";
  byId("theme").setAttribute("aria-label", `Change to ${theme() === "dark" ? "light" : "dark"} colours`);
  for (const p of panels) dirty.add(p);
  schedule();
}

// --- begin

const start = ["surprise_before", "update_ratio", "grad_rms"].find(has) ?? statistics[0] ?? null;
state.metric = start;
const worst = data.findings[0];
if (worst) {
  const leaf = worst.leaves.find((name) => known.has(name));
  if (leaf !== undefined) state.leaf = known.get(leaf);
  state.metric = Object.keys(worst.evidence).find(has) ?? start;
}
state.step = Math.min(Math.max(worst?.step ?? spikes[0] ?? last, first), last);
state.step = await withNumber(state.step, state.leaf, state.metric);
if (state.leaf !== null && statistics.length) Object.assign(state, reveal(state.leaf));
// What has nothing to show stands last, and no chart is left beside a hole.
byId("main").append(...document.querySelectorAll("section.none"));
const narrow = panels.filter((p) => !p.wide);
if (narrow.length % 2) (narrow.find((p) => p.id === "spread") ?? narrow.at(-1)).section.classList.add("wide");
heading();
bar();
window.__adamx = {
  ready: false,
  state,
  set,
  settled,
  drawAll,
  /* One statistic's numbers, decoded: values[record * leaves + leaf]. */
  cube: async (name, r = 0) => {
    const c = await cube(data.runs[r], name),
      leaves = data.runs[r].leaves.length,
      values = new Float32Array(c.codes.length);
    c.codes.forEach((code, i) => {
      values[(i % c.width) * leaves + Math.floor(i / c.width)] = c.values[code];
    });
    return { shape: [c.width, leaves], values, error: c.error, log: c.log };
  },
  shares: async (name) => ({
    shape: [run.leaves.length, run.spread_steps.length, 16],
    values: Array.from(await shares(name), (c) => (c ? (c - 1) / 10000 : NaN)),
  }),
  rows: () => (heat.rows ?? []).map((n) => n.key),
  movers: async () => (mover ? movers() : null),
  roles,
  steps: () => Array.from(run.steps),
  spikes,
  settings,
  curve: (name) => {
    const [steps, values] = curve(name) ?? [[], []];
    return { steps: Array.from(steps), values: Array.from(values) };
  },
};
repaint();
showBar();
const drawn = (rootMargin) =>
  new Promise((begun) => {
    const observer = new IntersectionObserver(
      (entries) => {
        for (const e of entries) {
          const p = panels.find((q) => q.section === e.target);
          if (e.isIntersecting) seen.add(p);
          else seen.delete(p);
        }
        schedule();
        begun(observer);
      },
      { rootMargin },
    );
    for (const p of panels) observer.observe(p.section);
    if (!panels.length) begun(observer);
  });
const inView = await drawn("0px"); // what is just below can wait until the rest answers
await settled();
performance.mark("adamx:ready");
window.__adamx.ready = true;
inView.disconnect();
drawn("100px");
