/* 8. Precision. */

const precisions = ["stalled", "nu_stale", "mu_stale", "direction_error"].filter(has);
const dtypes = [...new Set(run.leaves.map((l) => l.dtype))];
panel({
  id: "precision",
  title: "Precision",
  wide: true,
  on: ["window", "leaf", "step"],
  says: "Tells updates that rounding swallows (stalled) from moments that no longer change (nu_stale, mu_stale) and from moments stored too coarsely (direction_error).",
  empty: () =>
    noRecords() ||
    (precisions.length
      ? null
      : "No statistic of rounding was recorded: parameters and moments are kept in full precision, or the optimiser is not one of adamx."),
  async draw(el) {
    const four = slot(el, "four", "div", { class: "four" }),
      [a, b] = between(run.steps, state.window),
      steps = Array.from(run.steps.subarray(a, b)),
      lines = colours().lines;
    for (const name of precisions) slot(four, name);
    for (const name of precisions) {
      const box = slot(four, name),
        chart = ((slot(box, "title", "h3").textContent = about(name).says), slot(box, "chart")),
        cubed = await cube(run, name),
        all = [],
        traces = [];
      const add = (ys, given, text) => {
        all.push(...ys);
        traces.push({
          x: steps,
          y: gaps(ys),
          mode: steps.length > 1 ? "lines" : "markers",
          hovertemplate: `${plain(text)} %{y:.3~g}<extra></extra>`,
          ...given,
        });
      };
      add(
        steps.map((_, r) => highest(cubed, a + r)),
        { line: { color: css("--error"), width: 1, dash: "dot" }, marker: { color: css("--error") } },
        "worst leaf",
      );
      dtypes.forEach((dtype, k) =>
        add(
          steps.map((_, r) => weighted(cubed, a + r, dtype)),
          { line: { color: lines[k % 8], width: 2 }, marker: { color: lines[k % 8] } },
          dtype,
        ),
      );
      add(
        steps.map((_, r) => cubed.at(state.leaf, a + r)),
        { line: { color: css("--text"), width: 1.2, dash: "dash" }, marker: { color: css("--text") } },
        "chosen leaf",
      );
      const log = about(name).scale === "log" && all.some((v) => v > 0),
        most = Math.max(...all.filter(Number.isFinite), 0.01);
      await plot(chart, traces, {
        height: 200,
        margin: { l: 52, r: 10, t: 6, b: 38 },
        hovermode: "x",
        xaxis: axis({ title: "step", nticks: 5, tickformat: ",d", range: domain() }),
        yaxis: log ? logAxis(all) : axis({ range: [-0.03 * most, 1.08 * most], nticks: 4 }),
        shapes:
          state.step >= state.window[0] && state.step <= state.window[1]
            ? [{ ...upright(state.step), line: { color: css("--text"), width: 1, dash: "dot" } }]
            : [],
      });
    }
    legend(slot(el, "legend", "ul", { class: "legend" }), [
      ...dtypes.map((d, k) => ({ colour: lines[k % 8], text: `${d} leaves, mean by size` })),
      { colour: css("--error"), dash: "dot", text: "worst leaf" },
      { colour: css("--text"), dash: "dash", text: "chosen leaf" },
    ]);
  },
  async numbers() {
    const cubes = await Promise.all(precisions.map((n) => cube(run, n))),
      at = recordOf(state.step);
    const rows = run.leaves.map((leaf, i) => [named(leaf), leaf.dtype, ...cubes.map((c) => c.at(i, at))]);
    const most = (row) => Math.max(...row.slice(2).map((v) => (Number.isNaN(v) ? -1 : v)));
    return {
      caption: `Step ${run.steps[at]}, the worst first.`,
      head: ["leaf", "dtype", ...precisions],
      text: [0, 1],
      ...capped(rows.sort((x, y) => most(y) - most(x))),
    };
  },
});
function highest(cubed, record) {
  let most = NaN;
  for (let i = 0; i < run.leaves.length; i++) {
    const v = cubed.at(i, record);
    if (!(v <= most) && !Number.isNaN(v)) most = v;
  }
  return most;
}
function weighted(cubed, record, dtype) {
  let sum = 0,
    weight = 0;
  run.leaves.forEach((leaf, i) => {
    const v = leaf.dtype === dtype ? cubed.at(i, record) : NaN;
    if (Number.isFinite(v)) {
      sum += v * leaf.size;
      weight += leaf.size;
    }
  });
  return weight ? sum / weight : NaN;
}
