/* 9. Comparison of runs. */

const flat = (method) =>
  new Map(
    Object.entries(method).map(([k, v]) => [k, typeof v === "object" && v !== null ? JSON.stringify(v) : fmt(v)]),
  );
const settings = (() => {
  const all = data.runs.map((r) => flat({ ...r.method, every: r.every, leaves: r.leaves.length })),
    keys = [...new Set(all.flatMap((m) => [...m.keys()]))];
  return keys
    .filter((k) => new Set(all.map((m) => m.get(k) ?? "–")).size > 1)
    .map((k) => [k, ...all.map((m) => tailOf(m.get(k) ?? "–", 60))]);
})();
if (data.runs.length > 1)
  panel({
    id: "compare",
    title: "Comparison of runs",
    wide: true,
    on: ["window", "metric", "leaf"],
    says: "Tells what a changed setting did from what every run does; runs that diverged are drawn as far as they went.",
    async draw(el) {
      const four = slot(el, "four", "div", { class: "four" }),
        lines = colours().lines,
        zoomed = state.window[0] > first || state.window[1] < last;
      const remark = [];
      for (const name of ["loss", "grad_norm", "statistic"]) slot(four, name);
      for (const name of ["loss", "grad_norm", "statistic"]) {
        const box = slot(four, name),
          title = slot(box, "title", "h3"),
          chart = slot(box, "chart"),
          traces = [],
          all = [];
        for (const [k, r] of data.runs.entries()) {
          const [xs, ys] = name === "statistic" ? [r.steps, await statistic(r, remark)] : (curveOf(r, name) ?? []);
          if (!ys?.length) continue;
          for (const v of ys) all.push(v);
          traces.push({
            x: xs,
            y: gaps(ys),
            mode: xs.length > 1 ? "lines" : "markers",
            line: { color: lines[k % 8], width: k ? 1.3 : 2, dash: ["solid", "dash", "dot"][Math.floor(k / 8) % 3] },
            marker: { color: lines[k % 8] },
            hovertemplate: `${plain(r.name)} %{y:.4~g}<extra></extra>`,
          });
        }
        title.textContent =
          name === "statistic"
            ? state.metric
              ? `${state.metric} of ${named(run.leaves[state.leaf])}`
              : ""
            : { loss: "loss", grad_norm: "gradient norm" }[name];
        box.hidden = !traces.length;
        if (traces.length)
          await plot(chart, traces, {
            height: 260,
            margin: { l: 56, r: 10, t: 6, b: 38 },
            hovermode: "x",
            xaxis: axis({ title: "step", nticks: 5, tickformat: ",d", ...(zoomed ? { range: domain() } : {}) }),
            yaxis: scaled(all, ""),
          });
      }
      legend(
        slot(el, "legend", "ul", { class: "legend" }),
        data.runs.map((r, k) => ({
          colour: lines[k % 8],
          text: r.name,
          dash: [null, "dash", "dot"][Math.floor(k / 8) % 3],
        })),
      );
      slot(el, "remark", "p", { class: "remark" }).textContent = [...new Set(remark)].join(" ");
      const box = slot(el, "settings", "div", { class: "table" });
      box.replaceChildren(
        settings.length
          ? h(
              "table",
              {},
              h("caption", {}, "Settings that differ."),
              h(
                "thead",
                {},
                h("tr", {}, ...["setting", ...data.runs.map((r) => r.name)].map((x) => h("th", { scope: "col" }, x))),
              ),
              h(
                "tbody",
                {},
                ...settings.map((row) =>
                  h("tr", {}, ...row.map((x, i) => h(i ? "td" : "th", { scope: i ? null : "row" }, x))),
                ),
              ),
            )
          : h("p", { class: "remark" }, "No recorded setting differs."),
      );
    },
    async numbers() {
      const rows = await Promise.all(
        data.runs.map(async (r) => {
          const of = (name) => (curveOf(r, name)?.[1] ?? []).filter(Number.isFinite),
            loss = of("loss"),
            norm = of("grad_norm"),
            s = Array.from((await statistic(r, [])) ?? []).filter(Number.isFinite);
          const least = loss.reduce((x, y) => Math.min(x, y), Infinity),
            most = norm.reduce((x, y) => Math.max(x, y), -Infinity);
          return [
            r.name,
            r.steps.at(-1) ?? r.pulse_steps.at(-1),
            loss.at(-1),
            loss.length ? least : NaN,
            norm.length ? most : NaN,
            s.at(-1),
          ];
        }),
      );
      return {
        caption: "Finite numbers of each run.",
        head: [
          "run",
          "last step",
          "last loss",
          "lowest loss",
          "largest gradient norm",
          `last ${state.metric ?? "statistic"}`,
        ],
        ...capped(rows),
      };
    },
  });
async function statistic(r, remark) {
  // of the chosen leaf, or the median over leaves where a run has no such leaf
  if (state.metric === null || !(state.metric in r.leaf)) return null;
  const cubed = await cube(r, state.metric),
    leaf = r.leaves.findIndex((l) => l.name === run.leaves[state.leaf].name);
  if (leaf >= 0) return Array.from(r.steps, (_, k) => cubed.at(leaf, k));
  remark.push(`${r.name} has no such leaf: the median over its leaves is drawn.`);
  return Array.from(r.steps, (_, k) => median(r.leaves.map((_, i) => cubed.at(i, k))));
}
