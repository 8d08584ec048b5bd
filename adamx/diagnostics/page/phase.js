/* 6. The phase plot. */

const phases = ["surprise_before", "update_cosine"].filter(has);
panel({
  id: "phase",
  title: "Phase plot",
  on: ["leaf", "step", "phase", "picked"],
  says: "Tells leaves that move too far for their size (right) from leaves whose second moment is behind (top of surprise_before) or whose update has little to do with the gradient (bottom of update_cosine).",
  empty: () =>
    noLeaves() ||
    (has("update_ratio") && phases.length
      ? null
      : "It needs update_ratio and one of surprise_before or update_cosine, which were not recorded."),
  async draw(el) {
    const tools = slot(el, "tools", "div", { class: "tools" });
    if (!tools.firstChild)
      tools.append(
        h(
          "label",
          {},
          "Upwards: ",
          h(
            "select",
            {
              "aria-label": "Statistic of the vertical axis",
              onchange: (e) => set({ phase: e.target.value, picked: null }),
            },
            ...phases.map((p) => h("option", { value: p }, p)),
          ),
        ),
        h(
          "button",
          {
            type: "button",
            onclick: async () => set({ picked: new Set((await dots()).dots.slice(0, 10).map((d) => d.leaf)) }),
          },
          "Pick the 10 farthest",
        ),
        h("button", { type: "button", onclick: () => set({ picked: null }) }, "Pick none"),
      );
    const { dots: all, log, record, lost, shown } = await dots();
    const lines = colours().lines,
      tails = { x: [], y: [] };
    const told = (d) => d.leaf === state.leaf || state.picked?.has(d.leaf) || found.has(d.leaf); // all tails at once hide each other
    for (const d of [...all.filter(told), ...all.filter((d) => !told(d))].slice(0, TAILS)) {
      tails.x.push(...d.tail.map((p) => p[0]), null);
      tails.y.push(...d.tail.map((p) => p[1]), null);
    }
    const largest = Math.max(...all.map((d) => d.size), 1),
      widest = 23 * Math.min(1, Math.sqrt(60 / Math.max(all.length, 1)));
    const colour = (d) =>
      d.leaf === state.leaf ? css("--text") : found.has(d.leaf) ? css(`--${found.get(d.leaf)}`) : lines[0];
    const chart = slot(el, "chart");
    await plot(
      chart,
      [
        {
          x: tails.x,
          y: tails.y,
          mode: "lines",
          line: { color: alpha(lines[7], 0.45), width: 1 },
          hoverinfo: "skip",
        },
        {
          x: all.map((d) => d.x),
          y: all.map((d) => d.y),
          mode: "markers",
          customdata: all.map((d) => d.leaf),
          text: all.map((d) => plain(named(run.leaves[d.leaf]))),
          selectedpoints: state.picked ? [...all.keys()].filter((i) => state.picked.has(all[i].leaf)) : null,
          selected: { marker: { opacity: 0.95 } },
          unselected: { marker: { opacity: 0.2 } },
          marker: {
            size: all.map((d) => Math.max(5 + widest * Math.sqrt(d.size / largest), d.leaf === state.leaf ? 13 : 0)),
            color: all.map(colour),
            opacity: 0.75,
            line: { width: all.map((d) => (d.leaf === state.leaf ? 3 : 1)), color: css("--surface") },
          },
          hovertemplate: `%{text}<br>update_ratio %{x:.3~g}<br>${state.phase} %{y:.3~g}<extra></extra>`,
        },
      ],
      {
        height: 380,
        hovermode: "closest",
        dragmode: coarse ? false : "lasso",
        margin: { l: 58, r: 16, t: 8, b: 44 },
        xaxis: logAxis([...all.map((d) => d.x), ...tails.x, 1e-3], { title: "update_ratio = |u| / |w|" }),
        yaxis: log
          ? logAxis([...all.map((d) => d.y), ...tails.y, 1], { title: state.phase })
          : axis({ title: state.phase, zeroline: true }),
        shapes: [
          {
            type: "line",
            yref: "paper",
            y0: 0,
            y1: 1,
            x0: 1e-3,
            x1: 1e-3,
            line: { color: css("--quiet"), width: 1, dash: "dot" },
          },
          ...(log ? [level(1, css("--quiet"), "dot")] : []),
        ],
      },
    );
    once(chart, "plotly_selected", (e) => {
      if (e?.points?.length)
        set({ picked: new Set(e.points.filter((p) => p.curveNumber === 1).map((p) => p.customdata)) });
    });
    once(chart, "plotly_click", (e) => {
      if (e.points[0].curveNumber === 1) goTo({ leaf: e.points[0].customdata });
    });
    legend(slot(el, "legend", "ul", { class: "legend" }), [
      { colour: lines[0], dot: true, text: "a leaf; area: its numbers" },
      ...["error", "warning"]
        .filter((k) => all.some((d) => found.get(d.leaf) === k))
        .map((k) => ({ colour: css(`--${k}`), dot: true, text: k })),
      { colour: css("--text"), dot: true, text: "chosen" },
      { colour: lines[7], text: `the ${TAIL} records before, of ${Math.min(TAILS, all.length)} leaves` },
    ]);
    slot(el, "remark", "p", { class: "remark" }).textContent =
      `Step ${run.steps[record]}. Draw a lasso to show only those leaves in the heat map. Dotted: references.` +
      (lost ? ` ${many(lost, "leaf has", "leaves have")} no such numbers here.` : "") +
      (shown > all.length ? ` The ${all.length} of ${shown} leaves farthest from the crowd.` : "");
  },
  async numbers() {
    const { dots: all, record, shown } = await dots();
    const rows = all.map((d) => [
      named(run.leaves[d.leaf]),
      d.x,
      d.y,
      d.size,
      state.picked?.has(d.leaf) ? "yes" : "no",
    ]);
    return {
      caption: `Step ${run.steps[record]}, farthest from the crowd first.`,
      head: ["leaf", "update_ratio", state.phase, "numbers", "picked"],
      rows: rows.slice(0, TABLE),
      left: shown - Math.min(rows.length, TABLE),
    };
  },
});
async function dots() {
  // farthest from the crowd first
  const [u, s] = [await cube(run, "update_ratio"), await cube(run, state.phase)],
    log = about(state.phase).scale === "log";
  const fits = ([x, y]) => x > 0 && Number.isFinite(x) && Number.isFinite(y) && (!log || y > 0);
  const any = (r) => run.leaves.some((_, i) => fits([u.at(i, r), s.at(i, r)]));
  let record = recordOf(state.step);
  if (!any(record)) {
    // the first step has no second moment to compare with
    const away = (r) => Math.abs(run.steps[r] - state.step);
    for (const r of run.steps.keys()) if (any(r) && (!any(record) || away(r) < away(record))) record = r;
  }
  const all = run.leaves.map((leaf, i) => {
    const at = (r) => [u.at(i, r), s.at(i, r)];
    return { leaf: i, size: leaf.size, x: at(record)[0], y: at(record)[1], record, at };
  });
  const good = all.filter((d) => fits([d.x, d.y])),
    up = (y) => (log ? Math.log10(y) : y);
  const [mx, my] = [median(good.map((d) => Math.log10(d.x))), median(good.map((d) => up(d.y)))];
  for (const d of good) d.far = Math.hypot(Math.log10(d.x) - mx, (up(d.y) - my) * (log ? 1 : 2));
  good.sort((a, b) => b.far - a.far);
  const kept = good.slice(0, DOTS);
  for (const d of kept) {
    d.tail = [];
    for (let r = Math.max(record - TAIL, 0); r <= record; r++) if (fits(d.at(r))) d.tail.push(d.at(r));
  }
  return { dots: kept, log, record, lost: all.length - good.length, shown: good.length };
}
