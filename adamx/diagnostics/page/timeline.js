/* 2. The timeline, whose brush is everyone's window. */

/* A number of the whole tree: steps, values, and how many of them are from records before the pulse begins, which keeps
   fewer steps than the records do. */
function curveOf(r, name) {
  r.curves ||= new Map();
  if (!r.curves.has(name)) {
    const any = (ys) => ys?.some((v) => !Number.isNaN(v)) ?? false;
    const pulse = any(r.pulse.get(name)) ? [r.pulse_steps, r.pulse.get(name)] : [[], []];
    const whole = r.whole.get(name) ?? [];
    const before = whole.length ? [...r.steps.keys()].filter((i) => !(r.steps[i] >= pulse[0][0])) : [];
    const values = [...before.map((i) => whole[i]), ...pulse[1]];
    r.curves.set(name, any(values) ? [[...before.map((i) => r.steps[i]), ...pulse[0]], values, before.length] : null);
  }
  return r.curves.get(name);
}
const curve = (name) => curveOf(run, name);
const gaps = (ys) => Array.from(ys, (v) => (Number.isFinite(v) ? v : null));
function scaled(values, title, given = {}) {
  // logarithmic where that shows more
  let low = Infinity,
    high = -Infinity;
  for (const v of values)
    if (Number.isFinite(v)) {
      low = Math.min(low, v);
      high = Math.max(high, v);
    }
  return low > 0 && high / low > 8
    ? logAxis(values, { title, ...given })
    : axis({ title, rangemode: low >= 0 && low < high / 2 ? "tozero" : "normal", ...given });
}
const curves = [
  ["loss", "loss"],
  ["grad_norm", "gradient norm"],
  ["learning_rate", "learning rate"],
].filter(([name]) => curve(name));
const limit = typeof run.method.max_norm === "number" ? run.method.max_norm : null;
const stepsFound = data.findings.filter((f) => f.step !== null);

const timeline = panel({
  id: "timeline",
  title: "Timeline",
  wide: true,
  on: ["window", "step", "finding"],
  says:
    "Tells a jump of the loss that the gradient's norm announced from one that it did not, and a clip that cuts spikes from one that cuts every step." +
    " Drag over it to set the window of every chart below; double click for all steps; click for a step.",
  empty: () => (curves.length ? null : "Neither loss, gradient norm nor learning rate was recorded."),
  async draw(el) {
    const chart = slot(el, "chart");
    const shapes = () => {
      const [from, to] = state.window,
        shade = { type: "rect", yref: "paper", y0: 0, y1: 1, fillcolor: css("--shade"), line: { width: 0 } };
      const [a, b] = margins();
      return [
        ...(from > first ? [{ ...shade, x0: a, x1: from }] : []),
        ...(to < last ? [{ ...shade, x0: to, x1: b }] : []),
        upright(state.step),
      ];
    };
    if (timeline.drawn === theme()) {
      await (await plotly()).relayout(chart, { shapes: shapes(), selections: [] });
      return;
    }
    const lines = colours().lines,
      traces = [],
      layout = {},
      strip = stepsFound.length ? 0.07 : 0;
    const each = (1 - strip) / curves.length;
    curves.forEach(([name, title], i) => {
      const [xs, ys, before] = curve(name),
        y = `y${i + 1}`,
        top = 1 - strip - i * each;
      const place = { domain: [top - each + 0.035, top - 0.015], nticks: 4 },
        rises = name === "learning_rate";
      layout[`yaxis${i + 1}`] = rises
        ? axis({ title, rangemode: "tozero", ...place })
        : scaled(name === "grad_norm" && limit > 0 ? [...ys, limit] : ys, title, place);
      traces.push({
        x: xs,
        y: gaps(ys),
        yaxis: y,
        mode: xs.length > 1 ? "lines" : "markers",
        name: title,
        line: { color: lines[i], width: 1.4 },
        hovertemplate: `${title} %{y:.4~g}<extra></extra>`,
      });
      if (name === "grad_norm" && limit > 0)
        traces.push({
          x: [first, last],
          y: [limit, limit],
          yaxis: y,
          mode: "lines",
          hoverinfo: "skip",
          line: { color: css("--warning"), width: 1.5, dash: "dash" },
        });
      const score = run.pulse.get({ loss: "loss_score", grad_norm: "grad_score" }[name]);
      if (score && xs.length === before + score.length) {
        const at = [...xs.keys()].filter((k) => score[k - before] > run.spike && Number.isFinite(ys[k]));
        traces.push({
          x: at.map((k) => xs[k]),
          y: at.map((k) => ys[k]),
          yaxis: y,
          mode: "markers",
          customdata: at.map((k) => score[k - before]),
          marker: {
            symbol: "triangle-down",
            size: 9,
            color: css("--error"),
            line: { color: css("--surface"), width: 1 },
          },
          hovertemplate: "spike: %{customdata:.1f} deviations<extra></extra>",
        });
      }
    });
    if (strip) {
      const y = `y${curves.length + 1}`;
      layout[`yaxis${curves.length + 1}`] = axis({
        domain: [1 - strip + 0.01, 1],
        range: [-1, 1],
        showticklabels: false,
        showgrid: false,
        zeroline: false,
      });
      traces.push({
        x: stepsFound.map((f) => f.step),
        y: stepsFound.map(() => 0),
        yaxis: y,
        mode: "markers",
        cliponaxis: false,
        customdata: stepsFound.map((f) => data.findings.indexOf(f)),
        text: stepsFound.map((f) => plain(`${f.severity} ${f.id}`)),
        marker: {
          symbol: "diamond",
          size: 10,
          color: stepsFound.map((f) => css(`--${f.severity}`)),
          line: { color: css("--surface"), width: 1 },
        },
        hovertemplate: "%{text}<extra></extra>",
      });
    }
    await plot(chart, traces, {
      ...layout,
      height: 130 * curves.length + 70,
      hovermode: "x",
      dragmode: coarse ? false : "select",
      selectdirection: "h",
      margin: { l: 70, r: 14, t: 8, b: 40 },
      shapes: shapes(),
      xaxis: axis({ title: "step", range: margins(), anchor: `y${curves.length}`, tickformat: ",d" }),
    });
    once(chart, "plotly_selected", (e) => {
      if (!e || !e.range) return;
      const key = Object.keys(e.range).find((k) => k.startsWith("x"));
      const [from, to] = e.range[key].map(Math.round).sort((a, b) => a - b);
      if (to > from) set({ window: [Math.max(from, first), Math.min(to, last)] });
    });
    once(chart, "plotly_doubleclick", () => set({ window: [first, last] }));
    once(chart, "plotly_click", (e) => {
      const point = e.points[0];
      if (stepsFound.length && point.curveNumber === chart.data.length - 1) choose(point.customdata);
      else set({ step: Math.round(point.x) });
    });
    timeline.drawn = theme();
    legend(slot(el, "legend", "ul", { class: "legend" }), [
      ...(curves.some(([n]) => n === "grad_norm") && limit > 0
        ? [{ colour: css("--warning"), dash: "dash", text: `clip at ${fmt(limit)}` }]
        : []),
      ...(spikes.length
        ? [
            {
              colour: css("--error"),
              glyph: "▼",
              text: `more than ${fmt(run.spike)} ${data.deviations}: ${many(spikes.length, "spike")}, at least ${data.around} steps apart`,
            },
          ]
        : []),
      ...(stepsFound.length
        ? [{ colour: css(`--${stepsFound[0].severity}`), glyph: "◆", text: "findings, where first seen" }]
        : []),
    ]);
    slot(el, "remark", "p", { class: "remark" }).textContent = remarks();
  },
  async numbers() {
    const names = ["loss", "grad_norm", "loss_score", "grad_score"].filter((n) => run.pulse.has(n));
    const [a, b] = between(run.pulse_steps, state.window);
    if (names.length && b > a) {
      const marked = [];
      for (let i = a; i < b; i++)
        if (names.some((n) => n.endsWith("score") && run.pulse.get(n)[i] > run.spike)) marked.push(i);
      const at = [
        ...new Set([
          ...marked.slice(0, TABLE / 2),
          ...evenly(b - a, TABLE - Math.min(marked.length, TABLE / 2)).map((i) => i + a),
        ]),
      ].sort((x, y) => x - y);
      const rate = run.whole.get("learning_rate");
      const rows = at.map((i) => [
        run.pulse_steps[i],
        ...names.map((n) => run.pulse.get(n)[i]),
        ...(rate ? [rate[recordOf(run.pulse_steps[i])]] : []),
      ]);
      return {
        caption: "In the window, spikes first kept.",
        head: ["step", ...names, ...(rate ? ["learning_rate, nearest record"] : [])],
        rows,
        left: b - a - rows.length,
        text: [],
      };
    }
    const all = [...run.whole.keys()],
      [from, to] = between(run.steps, state.window),
      at = evenly(to - from, TABLE);
    return {
      caption: "In the window.",
      head: ["step", ...all],
      rows: at.map((i) => [run.steps[from + i], ...all.map((n) => run.whole.get(n)[from + i])]),
      left: to - from - at.length,
      text: [],
    };
  },
});
function margins() {
  const pad = Math.max((last - first) * 0.012, 0.5);
  return [first - pad, last + pad];
}
function remarks() {
  const parts = [];
  for (const [name, title] of [
    ["loss", "loss"],
    ["grad_norm", "gradient norm"],
  ]) {
    const [xs, ys] = curve(name) || [[], []],
      at = [...ys.keys()].filter((i) => !Number.isFinite(ys[i]) && !Number.isNaN(ys[i]));
    if (at.length) parts.push(`${title} infinite at ${many(at.length, "step")}, first at ${xs[at[0]]}.`);
    if (!curve(name))
      parts.push(
        name === "loss"
          ? "The loss was not passed to update(..., loss=...), so it is not shown."
          : `${title} was not recorded.`,
      );
    else {
      // a curve that stops being a number half-way
      const none = [...ys.keys()].filter((i) => Number.isNaN(ys[i]));
      if (none.length)
        parts.push(`${title} is not a number, or not known, at ${many(none.length, "step")}, first at ${xs[none[0]]}.`);
    }
  }
  if (!curve("learning_rate"))
    parts.push(
      typeof run.method.learning_rate === "number"
        ? `The learning rate is ${fmt(run.method.learning_rate)} throughout.`
        : "The learning rate was not recorded.",
    );
  if (run.of[1] > run.pulse_steps.length)
    parts.push(
      `${run.pulse_steps.length.toLocaleString("en")} of ${run.of[1].toLocaleString("en")} steps are drawn: extremes and spikes, and evenly between.`,
    );
  return parts.join(" ");
}
