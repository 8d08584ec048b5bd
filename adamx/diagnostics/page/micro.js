/* 7. The spike microscope. */

const mover = ["surprise_before", "surprise", "grad_rms"].find(has);
panel({
  id: "micro",
  title: "Spike microscope",
  on: ["step", "leaf"],
  says: "Tells the leaf that moved first from those that it dragged along: the first movers are at the top.",
  empty: () => noLeaves() || (mover ? null : "It needs surprise_before or grad_rms, which were not recorded."),
  async draw(el) {
    const tools = slot(el, "tools", "div", { class: "tools" });
    const next = (by) => () => {
      const at = by > 0 ? spikes.find((s) => s > state.step) : spikes.filter((s) => s < state.step).at(-1);
      if (at !== undefined) goTo({ step: at });
    };
    tools.replaceChildren(
      ...(spikes.length
        ? [
            h(
              "button",
              {
                type: "button",
                "aria-label": "Spike before",
                disabled: !(spikes[0] < state.step),
                onclick: next(-1),
              },
              "‹ spike",
            ),
            h(
              "button",
              {
                type: "button",
                "aria-label": "Spike after",
                disabled: !(spikes.at(-1) > state.step),
                onclick: next(1),
              },
              "spike ›",
            ),
            h("span", {}, `${many(spikes.length, "spike")} in this run`),
          ]
        : [h("span", {}, "No spike was recorded; this is around the chosen step.")]),
    );
    const chart = slot(el, "chart"),
      remark = slot(el, "remark", "p", { class: "remark" });
    const { rows, all, steps, baseline, centre } = await movers(),
      shown = rows.slice(0, FIRST_MOVERS);
    const rule = `${mover} over each leaf's median of ${many(baseline, "record")} before. Moved: twice that, and 4 of its own deviations.`;
    const upper = curve("loss") ? "loss" : "grad_norm",
      loss = curve(upper),
      range = [centre - data.around - 0.5, centre + data.around + 0.5];
    const why =
      baseline < 4
        ? "There are fewer than 4 records before these steps to compare with."
        : !steps.length
          ? "No record lies within these steps."
          : "";
    chart.hidden = Boolean(why);
    remark.textContent =
      why ||
      (rows.length
        ? `${centre === state.step ? "" : `Around step ${state.step} no leaf is seen to move; this is the nearest spike, at step ${centre}. `}${many(rows.length, "leaf", "leaves")} of ${all} moved${rows.length > shown.length ? `; the first ${shown.length} are drawn` : ""}. ${rule}`
        : `No leaf moved within ${data.around} steps of step ${centre}. ${rule}`);
    if (why) return;
    const width = el.clientWidth || 500,
      longest = Math.max(0, ...shown.map((m) => named(run.leaves[m.leaf]).length)),
      left = Math.max(58, Math.min(200, Math.round(width * 0.42), Math.ceil(longest * 6.6) + 10)),
      chars = Math.floor(left / 6.6);
    const traces = [],
      tall = shown.length * 17,
      under = shown.length ? 82 : 42, // the colours' bar stands there
      height = tall + (tall ? 190 : 202);
    const split = shown.length ? tall / (tall + 100) : 0;
    if (loss) {
      const [p, q] = between(loss[0], range);
      traces.push({
        x: loss[0].slice(p, q),
        y: gaps(loss[1].slice(p, q)),
        yaxis: "y2",
        mode: "lines+markers",
        marker: { size: 4 },
        line: { color: colours().lines[0], width: 1.5 },
        hovertemplate: "step %{x}: %{y:.4~g}<extra></extra>",
      });
    }
    const half = gapOf(steps) / 2,
      edges = [steps[0] - half, ...steps.slice(1).map((s, i) => (s + steps[i]) / 2), steps.at(-1) + half];
    if (shown.length)
      traces.push({
        type: "heatmap",
        x: edges,
        y: shown.map((_, i) => i),
        z: shown.map((m) => m.path.map((v) => (Number.isFinite(v) ? v : null))),
        zmid: 0,
        zmin: -4,
        zmax: 4,
        colorscale: colours().around.map((c, i) => [i / 4, c]),
        customdata: shown.map((m) => m.path.map((v, k) => [2 ** v, steps[k]])),
        text: shown.map((m) => m.path.map(() => plain(named(run.leaves[m.leaf])))),
        hovertemplate: "%{text}<br>step %{customdata[1]}: %{customdata[0]:.3~g} × its median<extra></extra>",
        hoverongaps: false,
        colorbar: {
          orientation: "h",
          thickness: 8,
          len: 0.6,
          y: -46 / (height - under - 8),
          yanchor: "top",
          ypad: 0,
          x: 0.5,
          outlinewidth: 0,
          tickvals: [-4, -2, 0, 2, 4],
          ticktext: ["1/16", "1/4", "1×", "4×", "16×"],
          tickfont: { size: 11 },
        },
      });
    if (shown.length)
      traces.push({
        x: shown.map((m) => m.step),
        y: shown.map((_, i) => i),
        mode: "markers",
        hoverinfo: "skip",
        marker: { symbol: "circle-open", size: 8, color: css("--text"), line: { width: 1.5 } },
      });
    await plot(chart, traces, {
      height,
      margin: { l: left, r: 12, t: 8, b: under },
      hovermode: "closest",
      xaxis: axis({
        title: "step",
        range,
        tickformat: "d",
        nticks: width < 500 ? 4 : 7,
        anchor: shown.length ? "y" : "y2",
      }),
      ...(shown.length
        ? {
            yaxis: axis({
              domain: [0, split],
              range: [shown.length - 0.5, -0.5],
              tickvals: shown.map((_, i) => i),
              ticktext: shown.map((m) => plain(tailOf(named(run.leaves[m.leaf]), chars))),
              showgrid: false,
              tickfont: { size: 11 },
            }),
          }
        : {}),
      yaxis2: axis({
        domain: [shown.length ? split + 0.03 : 0, 1],
        title: upper === "loss" ? "loss" : "norm",
        nticks: 3,
        visible: Boolean(loss),
      }),
      shapes: [upright(centre)],
    });
    once(chart, "plotly_click", async (e) => {
      const now = (await movers()).rows,
        point = e.points[0];
      if (point.data.type === "heatmap" && now[point.y]) goTo({ leaf: now[point.y].leaf });
    });
  },
  async numbers() {
    const { rows, baseline, centre } = await movers();
    return {
      caption: `Leaves that moved within ${data.around} steps of step ${centre}, the first first; medians of ${many(baseline, "record")} before.`,
      head: ["leaf", "moved at step", "times its median then", "at most", `median ${mover}`],
      ...capped(rows.map((m) => [named(run.leaves[m.leaf]), m.step, m.then, m.peak, m.median])),
    };
  },
});
/* Around the chosen step, or where nothing moves there, around the nearest spike at which something does. */
async function movers() {
  const cubed = await cube(run, mover),
    here = moversAt(cubed, state.step);
  if (here.rows.length) return here;
  for (const step of [...spikes].sort((p, q) => Math.abs(p - state.step) - Math.abs(q - state.step)).slice(0, 8)) {
    const there = moversAt(cubed, step);
    if (there.rows.length) return there;
  }
  return here;
}
function moversAt(cubed, centre) {
  const [a, b] = between(run.steps, [centre - data.around, centre + data.around]);
  const steps = Array.from(run.steps.subarray(a, b)),
    from = Math.max(a - 32, 0),
    rows = [];
  if (a - from >= 4)
    run.leaves.forEach((_, leaf) => {
      const logs = (p, q) => Array.from({ length: q - p }, (_, k) => Math.log2(cubed.at(leaf, p + k)));
      const before = logs(from, a).filter(Number.isFinite),
        middle = median(before);
      const apart = 1.4826 * median(before.map((v) => Math.abs(v - middle)));
      const path = logs(a, b).map((v) => v - middle),
        at = path.findIndex((v) => v >= 1 && v >= 4 * apart);
      if (at >= 0)
        rows.push({
          leaf,
          step: steps[at],
          then: 2 ** path[at],
          peak: 2 ** Math.max(...path.filter((v) => !Number.isNaN(v))),
          path,
          median: 2 ** middle,
        });
    });
  rows.sort((x, y) => x.step - y.step || y.then - x.then);
  return { rows, all: run.leaves.length, steps, baseline: a - from, centre };
}
