/* What all charts share: plotly, axes, legends, the frame with its sentence and its table. */

let library;
const plotly = () =>
  (library ||= (async () => {
    const script = document.createElement("script");
    script.textContent = new TextDecoder().decode(await inflate(byId("plotly").textContent));
    document.head.append(script);
    return window.Plotly;
  })());

const coarse = window.matchMedia("(pointer: coarse)").matches;
const calm = () => ({
  paper_bgcolor: "rgba(0,0,0,0)",
  plot_bgcolor: "rgba(0,0,0,0)",
  margin: { l: 58, r: 12, t: 8, b: 40 },
  font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: css("--quiet") },
  showlegend: false,
  hoverlabel: {
    bgcolor: css("--raised"),
    bordercolor: css("--line"),
    font: { color: css("--text"), size: 12 },
    namelength: -1,
  },
  selections: [],
  dragmode: false,
});
const axis = (given = {}) => {
  const { title, ...rest } = given;
  return {
    zeroline: false,
    gridcolor: css("--grid"),
    zerolinecolor: css("--line"),
    linecolor: css("--line"),
    automargin: false,
    tickangle: 0,
    exponentformat: "e",
    fixedrange: true,
    ticks: "",
    nticks: rest.type === "log" ? undefined : 6,
    title: title ? { text: title, standoff: 6 } : undefined,
    ...rest,
  };
};
/* plotly labels decades, and "2" and "5" between them without their power; a range within one decade gets neither. */
function logAxis(values, given = {}) {
  let low = Infinity,
    high = 0;
  for (const v of values)
    if (v > 0 && v < Infinity) {
      low = Math.min(low, v);
      high = Math.max(high, v);
    }
  if (!high) [low, high] = [0.1, 10];
  const pad = Math.max(Math.log10(high / low) * 0.06, 0.02),
    range = [Math.log10(low) - pad, Math.log10(high) + pad];
  const decades = range[1] - range[0],
    tickvals = ticksOf(range, decades);
  const far = decades > 3 && tickvals.some((v) => v >= 1e4 || v < 1e-2); // then all of them as powers
  const written = (v) =>
    far
      ? `10<sup>${Math.round(Math.log10(v)).toString().replace("-", "−")}</sup>`
      : fmt(v).replace(/\.?0*e/, "e");
  return axis({ type: "log", range, tickvals, ticktext: tickvals.map(written), ...given });
}
function ticksOf([low, high], decades) {
  const kinds = decades > 3 ? [1] : decades > 1.5 ? [1, 3] : [1, 2, 5],
    ticks = [];
  const every = decades > 3 ? Math.ceil(decades / 6) : 1;
  for (let k = Math.floor(low); k <= high; k++)
    if (k % every === 0)
      for (const m of kinds) if (k + Math.log10(m) >= low && k + Math.log10(m) <= high) ticks.push(Number(`${m}e${k}`));
  if (ticks.length > 1) return ticks;
  const [a, b] = [10 ** low, 10 ** high],
    power = 10 ** Math.floor(Math.log10((b - a) / 3));
  const unit = [1, 2, 5, 10].map((m) => m * power).find((u) => (b - a) / u <= 4.5),
    even = [];
  for (let k = Math.ceil(a / unit); k * unit <= b; k++) even.push(Number((k * unit).toPrecision(6)));
  return even;
}
async function plot(el, traces, layout) {
  const P = await plotly();
  if (!el.classList.contains("js-plotly-plot")) el.replaceChildren();
  const { height, ...rest } = layout; // the element's, so that resizing keeps it
  el.style.height = `${height}px`;
  if (!el.watched) {
    el.watched = new ResizeObserver(() => {
      if (el.clientWidth && el.clientWidth !== el.drawnAt) {
        el.drawnAt = el.clientWidth;
        P.Plots.resize(el);
      }
    });
    el.watched.observe(el);
  }
  el.drawnAt = el.clientWidth;
  await P.react(
    el,
    traces,
    { ...calm(), autosize: true, ...rest },
    {
      displaylogo: false,
      responsive: false,
      doubleClick: false,
      displayModeBar: coarse ? false : "hover",
      modeBarButtons: [["toImage"]],
    },
  );
  return el;
}
function once(el, event, heard) {
  el.listening ||= new Set();
  if (!el.listening.has(event)) {
    el.listening.add(event);
    el.on(event, heard);
  }
}
function legend(el, items) {
  const svg = (item) => {
    const make = (tag, given) => {
      const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [k, v] of Object.entries(given)) node.setAttribute(k, v);
      return node;
    };
    const box = make("svg", { width: 22, height: 10, "aria-hidden": "true" });
    if (item.glyph) return h("span", { style: `color:${item.colour}`, "aria-hidden": "true" }, item.glyph);
    box.append(
      item.dot
        ? make("circle", { cx: 11, cy: 5, r: 4, fill: item.colour })
        : make("line", {
            x1: 0,
            x2: 22,
            y1: 5,
            y2: 5,
            stroke: item.colour,
            "stroke-width": item.width || 2,
            "stroke-dasharray": { dash: "6 4", dot: "2 3" }[item.dash] || "none",
          }),
    );
    return box;
  };
  el.replaceChildren(...items.map((item) => h("li", {}, svg(item), item.text)));
}
const slot = (el, name, tag = "div", given = {}) => {
  el.slots ||= {};
  if (!el.slots[name]) {
    el.slots[name] = h(tag, given);
    el.append(el.slots[name]);
  }
  return el.slots[name];
};
const upright = (step) => ({
  type: "line",
  x0: step,
  x1: step,
  y0: 0,
  y1: 1,
  yref: "paper",
  line: { color: css("--text"), width: 1.5 },
});
const level = (y, colour, dash = "dash") => ({
  type: "line",
  xref: "paper",
  x0: 0,
  x1: 1,
  y0: y,
  y1: y,
  line: { color: colour, width: 1.5, dash },
});

// --- panels

function panel(given) {
  const p = { wide: false, light: false, on: [], empty: () => null, numbers: async () => null, ...given };
  p.table = h("div", {
    class: "table",
    id: `${p.id}-table`,
    hidden: true,
    tabindex: "0",
    role: "region",
    "aria-label": `${p.title}: numbers`,
  });
  p.body = h("div", { class: "chart" });
  p.button = h(
    "button",
    {
      type: "button",
      "aria-expanded": "false",
      "aria-controls": p.table.id,
      "aria-label": `${p.title}: table`,
      onclick: async () => {
        p.table.hidden = !p.table.hidden;
        p.button.setAttribute("aria-expanded", String(!p.table.hidden));
        if (!p.table.hidden) await fill(p);
      },
    },
    "Table",
  );
  p.section = h(
    "section",
    { id: p.id, class: p.wide ? "wide" : null, "aria-labelledby": `${p.id}-title` },
    h(
      "div",
      { class: "top" },
      h("div", {}, h("h2", { id: `${p.id}-title` }, p.title), h("p", { class: "says" }, p.says)),
      p.button,
    ),
  );
  const why = p.empty();
  if (why) {
    p.section.append(h("p", { class: "empty" }, why));
    p.section.className = "none";
    p.button.remove();
  } else {
    p.section.append(
      p.body,
      h("p", { class: "undrawn" }, "Not drawn yet: print with the page's own Print button."),
      p.table,
    );
    panels.push(p);
    dirty.add(p);
  }
  byId("main").append(p.section);
  return p;
}

async function fill(p) {
  const numbers = await p.numbers();
  if (!numbers) return;
  const { caption, head, rows, left = 0, text = [0] } = numbers;
  const more = left > 0 ? ` ${many(left, "more row")} not shown.` : "";
  const cell = (x, i) =>
    i === 0
      ? h("th", { scope: "row", class: "text" }, fmt(x))
      : h("td", { class: text.includes(i) ? "text" : null }, fmt(x));
  p.table.replaceChildren(
    h(
      "table",
      {},
      h("caption", {}, caption + more),
      h(
        "thead",
        {},
        h("tr", {}, ...head.map((x, i) => h("th", { scope: "col", class: text.includes(i) ? "text" : null }, x))),
      ),
      h("tbody", {}, ...rows.slice(0, TABLE).map((row) => h("tr", {}, ...row.map(cell)))),
    ),
  );
}
const capped = (rows) => ({ rows: rows.slice(0, TABLE), left: Math.max(rows.length - TABLE, 0) });
function evenly(n, most) {
  // positions
  return n <= most
    ? Array.from({ length: n }, (_, i) => i)
    : Array.from({ length: most }, (_, i) => Math.round((i * (n - 1)) / (most - 1)));
}
const noRecords = () =>
  run.steps.length
    ? null
    : "Nothing was recorded: the history holds no record. Train longer than the watch's interval.";
const noLeaves = () => noRecords() || (statistics.length ? null : "No statistic of single leaves was recorded.");
