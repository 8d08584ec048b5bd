/* 5. Distributions over time. */

const SPREADS = {
  log2_grad: { title: "log₂ |gradient|", lines: () => [] },
  log2_root_nu: {
    title: "log₂ √(second moment)",
    lines: () => (run.method.eps > 0 ? [[Math.log2(run.method.eps), "eps"]] : []),
  },
  direction: {
    title: "direction, before the learning rate",
    lines: () => [
      [-1, "−1"],
      [1, "+1"],
    ],
  },
  log2_ratio: { title: "log₂ (|update| / |parameter|)", lines: () => [[-8, "2⁻⁸"]] },
};
const spreads = Object.keys(SPREADS).filter((name) => name in run.spread && run.spread_steps.length);
const spreadAt = (codes, d, leaf) => {
  const at = (leaf * run.spread_steps.length + d) * 16;
  return Array.from(codes.subarray(at, at + 16), (c) => (c ? (c - 1) / 10000 : NaN));
};
function quantileOf(cumulative, edges, q) {
  if (!(cumulative[15] >= 0) || q < cumulative[0] || q > cumulative[15]) return null;
  const i = cumulative.findIndex((c) => c >= q);
  if (i === 0) return edges[0];
  const [a, b] = [cumulative[i - 1], cumulative[i]];
  return edges[i - 1] + ((edges[i] - edges[i - 1]) * (q - a)) / Math.max(b - a, 1e-9);
}
panel({
  id: "spread",
  title: "Distributions over time",
  on: ["leaf", "window", "step"],
  says: "Tells a leaf that shifts as a whole from one whose tail parts from the rest, and shows what lies behind a line: below eps, at the walls of ±1, or under 2⁻⁸, where a bfloat16 parameter begins to lose updates.",
  empty: () => noRecords() || (spreads.length ? null : "No distributions were recorded."),
  async draw(el) {
    slot(el, "name", "h3").textContent =
      `${named(run.leaves[state.leaf])} (${run.leaves[state.leaf].shape.join("×") || "scalar"}, ${run.leaves[state.leaf].dtype})`;
    const four = slot(el, "four", "div", { class: "four" }),
      said = [];
    const [a, b] = between(run.spread_steps, state.window),
      steps = Array.from(run.spread_steps.subarray(a, b));
    for (const name of spreads) slot(four, name); // all of them first: they share the width
    for (const name of spreads) {
      const box = slot(four, name),
        title = slot(box, "title", "h3"),
        chart = slot(box, "chart"),
        none = slot(box, "none", "p", { class: "remark" });
      title.textContent = SPREADS[name].title;
      const codes = await shares(name),
        edges = data.edges[name],
        unit = edges[1] - edges[0];
      const table = steps.map((_, d) => spreadAt(codes, a + d, state.leaf)),
        any = table.some((c) => c[15] >= 0);
      chart.hidden = !any;
      none.textContent = any ? "" : "Nothing recorded for this leaf in the window.";
      if (!any) continue;
      const bins = [edges[0] - unit, ...edges, edges[15] + unit];
      const z = Array.from({ length: 17 }, (_, k) =>
        table.map((c) => (Number.isNaN(c[0]) ? NaN : (k < 16 ? c[k] : 1) - (k ? c[k - 1] : 0))),
      );
      const used = z.map((row) => row.some((s) => s > 0)),
        lines = SPREADS[name].lines();
      let low = bins[used.indexOf(true)],
        high = bins[used.lastIndexOf(true) + 1];
      for (const [y] of lines) {
        low = Math.min(low, y - unit);
        high = Math.max(high, y + unit);
      }
      const half = gapOf(steps) / 2,
        xs = [steps[0] - half, ...steps.slice(1).map((s, i) => (s + steps[i]) / 2), steps.at(-1) + half];
      const tone = css("--text"),
        line = (q, width, dash) => ({
          x: steps,
          y: table.map((c) => quantileOf(c, edges, q)),
          mode: steps.length > 1 ? "lines" : "markers",
          line: { color: tone, width, dash },
          marker: { color: tone, size: 4 },
          hovertemplate: `${q * 100} % below %{y:.3~g}<extra></extra>`,
        });
      await plot(
        chart,
        [
          {
            type: "heatmap",
            x: xs,
            y: bins,
            z: z.map((row) => row.map((s) => (s > 0 ? Math.sqrt(s) : null))),
            zmin: 0,
            zmax: 1,
            showscale: false,
            customdata: z,
            colorscale: colours().along.map((c, i) => [i / 2, c]),
            hovertemplate: "step %{x:.0f}, near %{y:.3~g}: share %{customdata:.4f}<extra></extra>",
            hoverongaps: false,
          },
          line(0.5, 1.8),
          line(0.05, 1.2, "dot"),
          line(0.95, 1.2, "dot"),
        ],
        {
          height: 215,
          margin: { l: 44, r: 10, t: 6, b: 38 },
          xaxis: axis({ title: "step", nticks: 5, tickformat: ",d" }),
          yaxis: axis({ range: [low, high] }),
          shapes: [
            ...lines.map(([y]) => level(y, css("--error"))),
            ...(state.step >= xs[0] && state.step <= xs.at(-1)
              ? [{ ...upright(state.step), line: { color: tone, width: 1, dash: "dot" } }]
              : []),
          ],
          annotations: lines.map(([y, text]) => ({
            xref: "paper",
            x: 1,
            xanchor: "right",
            y,
            yanchor: "bottom",
            text,
            showarrow: false,
            font: { color: css("--error"), size: 11 },
            bgcolor: css("--surface"),
            borderpad: 1,
          })),
        },
      );
      const eps =
        name === "log2_root_nu" && lines.length
          ? Math.round(
              1000 * shareBelow(spreadAt(codes, nearest(run.spread_steps, state.step), state.leaf), edges, lines[0][0]),
            ) / 10
          : null;
      if (eps !== null && Number.isFinite(eps))
        said.push(
          `At step ${run.spread_steps[nearest(run.spread_steps, state.step)]}, ${eps} % of the second moment's roots lie below eps.`,
        );
    }
    legend(slot(el, "legend", "ul", { class: "legend" }), [
      { colour: css("--text"), text: "median" },
      { colour: css("--text"), dash: "dot", text: "5 % and 95 %" },
      { colour: css("--error"), dash: "dash", text: "eps, walls, 2⁻⁸" },
    ]);
    if (run.of[2] > run.spread_steps.length)
      said.push(`${run.spread_steps.length} of ${run.of[2]} distributions are kept on this page.`);
    slot(el, "remark", "p", { class: "remark" }).textContent =
      `${theme() === "dark" ? "Lighter" : "Darker"} is a larger share; its root is drawn. ${said.join(" ")}`;
  },
  async numbers() {
    const d = nearest(run.spread_steps, state.step),
      rows = [];
    for (const name of spreads) {
      const c = spreadAt(await shares(name), d, state.leaf);
      data.edges[name].forEach((edge, i) => rows.push([SPREADS[name].title, edge, c[i]]));
    }
    return {
      caption: `${named(run.leaves[state.leaf])}, step ${run.spread_steps[d]}.`,
      head: ["of", "edge", "share up to it"],
      ...capped(rows),
    };
  },
});
function shareBelow(cumulative, edges, y) {
  if (y <= edges[0]) return cumulative[0];
  const i = edges.findIndex((e) => e >= y);
  return i < 0
    ? cumulative[15]
    : cumulative[i - 1] + ((cumulative[i] - cumulative[i - 1]) * (y - edges[i - 1])) / (edges[i] - edges[i - 1]);
}
