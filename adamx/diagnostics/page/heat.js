/* 3. The heat map, leaf by step: a canvas beside a tree of rows, of which only those in view are in the document. */

const pattern = (glob) => {
  const plainText = glob.trim().toLowerCase();
  if (!plainText) return () => true;
  if (!/[*?]/.test(plainText)) return (name) => name.toLowerCase().includes(plainText);
  const source = plainText
    .replace(/[.+^${}()|[\]\\]/g, "\\$&")
    .replace(/\*+/g, ".*")
    .replace(/\?/g, ".");
  const re = new RegExp(`^${source}$`, "s");
  return (name) => re.test(name.toLowerCase());
};
const filtered = () => Boolean(state.glob.trim() || state.found || state.picked);
let treeKey = null,
  tree = null;
function treeOf() {
  const key = JSON.stringify([state.glob, state.found, state.picked && [...state.picked]]);
  if (key !== treeKey) {
    treeKey = key;
    const fits = pattern(state.glob);
    const kept = [...run.leaves.keys()].filter(
      (i) => fits(run.leaves[i].name) && (!state.found || found.has(i)) && (!state.picked || state.picked.has(i)),
    );
    tree = grown(kept);
    for (const cubed of run.cubes.values()) cubed.then((c) => c.rows.clear());
  }
  return tree;
}
function grown(leaves) {
  const root = { key: "", label: "", children: [], leaves, depth: -1, parent: null };
  const folders = new Map([["", root]]);
  for (const i of leaves) {
    const parts = run.leaves[i].name.split("/");
    let at = root,
      path = "";
    for (const part of parts.slice(0, -1)) {
      path += part + "/";
      if (!folders.has(path)) {
        const folder = { key: path, label: part, children: [], leaves: [] };
        folders.set(path, folder);
        at.children.push(folder);
      }
      at = folders.get(path);
      at.leaves.push(i);
    }
    at.children.push({
      key: `#${i}`,
      label: parts.at(-1) || named(run.leaves[i]),
      children: [],
      leaves: [i],
      leaf: i,
    });
  }
  const settle = (node, depth, parent) => {
    // a folder of one is not worth a row
    while (node.children.length === 1 && node !== root) {
      const only = node.children[0];
      node = Object.assign(only, { label: `${node.label}/${only.label}` });
    }
    Object.assign(node, { depth, parent });
    node.children = node.children.map((c) => settle(c, depth + 1, node));
    return node;
  };
  settle(root, -1, null);
  const levels = [];
  const walk = (node) => {
    if (node.children.length) {
      (levels[node.depth + 1] ||= []).push(node);
      node.children.forEach(walk);
    }
  };
  walk(root);
  let count = root.children.length,
    depth = 0;
  for (let d = 1; d < levels.length; d++) {
    const more = levels[d].reduce((sum, n) => sum + n.children.length, 0);
    if (count + more > ROWS_OPEN) break;
    count += more;
    depth = d;
  }
  root.opened = depth; // folders above this depth begin unfolded
  return root;
}
const isOpen = (node) => state.folds.get(node.key) ?? (filtered() || node.depth < tree.opened);
function reveal(leaf) {
  // what must change so that the leaf has a row
  const changes = {};
  if (!treeOf().leaves.includes(leaf)) Object.assign(changes, { glob: "", found: false, picked: null });
  const folds = new Map(state.folds);
  const path = run.leaves[leaf].name.split("/");
  for (let i = 1, at = ""; i < path.length; i++) {
    at += path[i - 1] + "/";
    folds.set(at, true);
  }
  return { ...changes, folds, cursor: `#${leaf}` };
}
function rowOf(cubed, node) {
  // of a folder: at each record the worst child's code, and which
  if (node.leaf !== undefined)
    return { codes: cubed.codes.subarray(node.leaf * cubed.width, (node.leaf + 1) * cubed.width), leaf: null };
  if (!cubed.rows.has(node.key)) {
    const { bad } = cubed.measure,
      { codes, width } = cubed;
    const worst = new Uint16Array(width),
      leaf = new Int32Array(width).fill(node.leaves[0]);
    for (const i of node.leaves)
      for (let r = 0, at = i * width; r < width; r++, at++)
        if (bad[codes[at]] > bad[worst[r]]) {
          worst[r] = codes[at];
          leaf[r] = i;
        }
    cubed.rows.set(node.key, { codes: worst, leaf });
  }
  return cubed.rows.get(node.key);
}
function badness(cubed, node, [a, b]) {
  const { codes } = rowOf(cubed, node);
  let most = -Infinity;
  for (let r = a; r < b; r++) most = Math.max(most, cubed.measure.bad[codes[r]]);
  return most;
}
function rowsShown(cubed) {
  const rows = [],
    range = between(run.steps, state.window);
  const walk = (node) => {
    let children = node.children;
    if (state.worst) {
      const score = new Map(children.map((c) => [c, badness(cubed, c, range)]));
      children = [...children].sort((a, b) => (score.get(b) > score.get(a)) - (score.get(b) < score.get(a)));
    }
    children.forEach((c, i) => {
      rows.push(c);
      Object.assign(c, { place: i + 1, places: children.length });
      if (c.children.length && isOpen(c)) walk(c);
    });
  };
  walk(treeOf());
  return rows;
}
const worstFound = (node) => ["error", "warning", "note"].find((s) => node.leaves.some((i) => found.get(i) === s));

const heat = panel({
  id: "heat",
  title: "Heat map",
  wide: true,
  light: true,
  on: ["metric", "leaf", "step", "window", "glob", "worst", "found", "picked", "folds", "cursor"],
  says: "Tells a bad batch (a stripe through all leaves at one step) from one leaf's fault (its row alone, or first) and from a fault that grows along the network (a slope).",
  empty: noLeaves,
  async draw(el) {
    const cubed = await measure(state.metric);
    heat.parts ||= built(el);
    const { view, room, stuck, names, field, canvas, axisRow, scale, remark, counter, pick } = heat.parts;
    const rows = (heat.rows = rowsShown(cubed));
    const height = Math.min(Math.max(rows.length, 1) * ROW, TALLEST);
    view.style.height = `${height + 2}px`;
    room.style.height = `${rows.length * ROW}px`;
    stuck.style.height = field.style.height = `${height}px`;
    if (heat.shown !== state.cursor) {
      // keep what was just chosen in sight
      heat.shown = state.cursor;
      const at = rows.findIndex((n) => n.key === state.cursor);
      if (at >= 0 && (at * ROW < view.scrollTop || (at + 1) * ROW > view.scrollTop + height))
        view.scrollTop = Math.max(at * ROW - height / 2, 0);
    }
    heat.cubed = cubed;
    paintRows();
    axisOf(axisRow, field.clientWidth);
    await colourScale(scale, cubed);
    counter.textContent = rows.length
      ? `${many(rows.length, "row")} of ${many(treeOf().leaves.length, "leaf", "leaves")}`
      : "No leaf fits these filters.";
    pick.hidden = !state.picked;
    if (state.picked) pick.textContent = `${many(state.picked.size, "leaf", "leaves")} picked ✕`;
    remark.textContent = strange(cubed);
    canvas.setAttribute("aria-label", `${about(state.metric).says}, by leaf and step; the numbers are in the table.`);
    names.setAttribute("aria-activedescendant", byId("row-now") ? "row-now" : "");
  },
  async numbers() {
    const cubed = await measure(state.metric),
      [a, b] = between(run.steps, state.window),
      at = recordOf(state.step);
    const rows = rowsShown(cubed).map((node) => {
      const row = rowOf(cubed, node);
      let worst = -1,
        strangeCells = 0;
      for (let r = a; r < b; r++) {
        if (row.codes[r] === INF || row.codes[r] === MINUS) strangeCells++;
        if (
          row.codes[r] !== MISSING &&
          (worst < 0 || cubed.measure.bad[row.codes[r]] > cubed.measure.bad[row.codes[worst]])
        )
          worst = r;
      }
      const name =
        node.leaf === undefined ? `${node.key} (${node.leaves.length} leaves)` : named(run.leaves[node.leaf]);
      return [
        name,
        cubed.values[row.codes[at]],
        worst < 0 ? NaN : cubed.values[row.codes[worst]],
        worst < 0 ? NaN : run.steps[worst],
        strangeCells,
      ];
    });
    return {
      caption: `${state.metric}: ${about(state.metric).formula}. Folded rows show the ${cubed.measure.folds} of their leaves; the worst is that in the window.`,
      head: ["row", `at step ${fmt(run.steps[at])}`, "worst", "at step", "infinite"],
      ...capped(rows),
    };
  },
});

function built(el) {
  const search = h("input", {
    type: "search",
    placeholder: "Search leaves: *kernel, blocks/?/up*",
    "aria-label": "Search leaves, with * and ?",
    class: "grow",
    oninput: () => set({ glob: search.value }),
  });
  const check = (key, text) =>
    h(
      "label",
      {},
      h("input", { type: "checkbox", id: `only-${key}`, onchange: (e) => set({ [key]: e.target.checked }) }),
      text,
    );
  const folding = (open) => () => {
    const folds = new Map(),
      walk = (node) => {
        for (const c of node.children)
          if (c.children.length) {
            folds.set(c.key, open);
            walk(c);
          }
      };
    walk(treeOf());
    set({ folds });
  };
  const pick = h("button", {
    type: "button",
    hidden: true,
    "aria-label": "Show all leaves again",
    onclick: () => set({ picked: null }),
  });
  const counter = h("span", { class: "remark", "aria-live": "polite" });
  const scale = h("div", { class: "scale" });
  const names = h("div", {
    class: "names",
    role: "tree",
    tabindex: "0",
    onkeydown: treeKeys,
    "aria-label": "Leaves. Up and down move, left and right fold, Enter chooses, comma and full stop move the step.",
  });
  const canvas = h("canvas", { role: "img" });
  const cross = [h("div", { class: "cross step" }), h("div", { class: "cross leaf" })];
  const field = h(
    "div",
    { class: "field", onmousemove: hover, onmouseleave: () => (tip.hidden = true), onclick: pickCell },
    canvas,
    ...cross,
  );
  const stuck = h("div", { class: "stuck" }, names, field);
  const room = h("div", {}, stuck);
  let waiting = false;
  const view = h(
    "div",
    {
      class: "rows",
      onscroll: () => {
        if (waiting) return;
        waiting = true;
        requestAnimationFrame(() => {
          waiting = false;
          paintRows();
        });
      },
    },
    room,
  );
  const axisRow = h("div", { class: "axis", "aria-hidden": "true" }),
    remark = h("p", { class: "remark" });
  el.append(
    h(
      "div",
      { class: "tools" },
      search,
      check("found", "only with findings"),
      check("worst", "worst first"),
      h("button", { type: "button", onclick: folding(true) }, "Unfold all"),
      h("button", { type: "button", onclick: folding(false) }, "Fold all"),
      pick,
      counter,
    ),
    scale,
    h("div", { class: "heat" }, view, axisRow),
    remark,
  );
  new ResizeObserver(() => {
    if (heat.cubed) {
      paintRows();
      axisOf(axisRow, field.clientWidth);
    }
  }).observe(field);
  return { view, room, stuck, names, field, canvas, cross, axisRow, scale, remark, counter, pick, search };
}
const tip = h("div", { class: "tip", hidden: true, role: "tooltip" });
document.body.append(tip);

function domain() {
  const half = gapOf(run.steps) / 2,
    {
      window: [from, to],
    } = state;
  return [Math.max(from, Math.min(run.steps[0], to)) - half, Math.min(to, Math.max(run.steps.at(-1), from)) + half];
}
/* Which records a pixel column shows, [from, to): those whose step lies in it, else the one that it is near, or none. */
function columns(width) {
  const [low, high] = domain(),
    usual = gapOf(run.steps),
    steps = run.steps;
  const from = new Int32Array(width),
    to = new Int32Array(width);
  let r = 0;
  for (let x = 0; x < width; x++) {
    const a = low + ((high - low) * x) / width,
      b = low + ((high - low) * (x + 1)) / width;
    while (r < steps.length && steps[r] < a) r++;
    let end = r;
    while (end < steps.length && steps[end] < b) end++;
    if (end > r) {
      from[x] = r;
      to[x] = end;
      continue;
    }
    const middle = (a + b) / 2,
      near = nearest(steps, middle);
    const fits = near >= 0 && Math.abs(steps[near] - middle) <= Math.max(usual, 1) * 0.5001;
    from[x] = near;
    to[x] = fits ? near + 1 : near;
  }
  return [from, to];
}
function paintRows() {
  const { view, names, field, canvas, cross } = heat.parts,
    { rows, cubed } = heat;
  const height = field.clientHeight || parseFloat(field.style.height),
    top = view.scrollTop;
  const start = Math.floor(top / ROW),
    end = Math.min(rows.length, Math.ceil((top + height) / ROW)),
    shift = start * ROW - top;
  names.replaceChildren(...rows.slice(start, end).map(rowElement));
  if (names.firstChild) names.firstChild.style.marginTop = `${shift}px`;
  const dpr = Math.min(window.devicePixelRatio || 1, 2),
    width = Math.max(1, Math.round(field.clientWidth * dpr));
  canvas.width = width;
  canvas.height = Math.round(height * dpr);
  canvas.style.width = `${field.clientWidth}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d"),
    n = end - start;
  if (n > 0 && width > 1) {
    const image = new ImageData(width, n),
      pixels = new Uint32Array(image.data.buffer),
      [from, to] = columns(width),
      marks = [];
    const { bad } = cubed.measure;
    for (let i = 0; i < n; i++) {
      const { codes } = rowOf(cubed, rows[start + i]);
      for (let x = 0; x < width; x++) {
        let code = from[x] < to[x] ? codes[from[x]] : MISSING;
        for (let r = from[x] + 1; r < to[x]; r++) if (bad[codes[r]] > bad[code]) code = codes[r];
        pixels[i * width + x] = cubed.colour[code];
        if (code === INF || code === MINUS) marks.push([i, x]);
      }
    }
    const small = h("canvas", { width, height: n });
    small.getContext("2d").putImageData(image, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, width, n, 0, shift * dpr, width, n * ROW * dpr);
    context.fillStyle = css("--error");
    for (const [i, x] of marks)
      context.fillRect(x, (shift + i * ROW + ROW / 3) * dpr, Math.max(1, dpr), (ROW / 3) * dpr);
    context.fillStyle = css("--surface");
    for (let i = 1; i < n; i++) context.fillRect(0, Math.round((shift + i * ROW) * dpr), width, 1);
  }
  const [low, high] = domain(),
    at = run.steps[recordOf(state.step)],
    scale = field.clientWidth / (high - low),
    wide = Math.max(gapOf(run.steps) * scale, 1);
  cross[0].hidden = !(at >= low && at <= high); // beside the cells, which stay visible
  cross[0].style.left = `${(at - low) * scale - wide / 2 - 2}px`;
  cross[0].style.width = `${wide + 4}px`;
  const row = rows.findIndex(
    (node) => node.leaf === state.leaf || (node.children.length && !isOpen(node) && node.leaves.includes(state.leaf)),
  );
  cross[1].hidden = row < 0;
  cross[1].style.top = `${row * ROW - top}px`;
  for (const c of cross) c.style.display = c.hidden ? "none" : "";
}
function rowElement(node) {
  const folder = node.children.length > 0,
    open = folder && isOpen(node),
    chosen = node.leaf === state.leaf;
  const severity = worstFound(node);
  return h(
    "div",
    {
      class: `row${chosen ? " chosen" : ""}${node.key === state.cursor ? " cursor" : ""}`,
      role: "treeitem",
      "data-key": node.key,
      id: node.key === state.cursor ? "row-now" : null,
      "aria-level": node.depth + 1,
      "aria-expanded": folder ? String(open) : null,
      "aria-selected": String(chosen),
      "aria-setsize": node.places,
      "aria-posinset": node.place,
      title: folder ? node.key : named(run.leaves[node.leaf]),
      style: `padding-left:${4 + node.depth * 12}px`,
      onclick: () => {
        act(node);
        heat.parts.names.focus({ preventScroll: true });
      },
    },
    h("span", { class: "fold", "aria-hidden": "true" }, folder ? (open ? "▾" : "▸") : ""),
    h("span", { class: "name" }, node.label),
    folder ? h("span", { class: "count" }, `(${node.leaves.length})`) : null,
    severity ? h("span", { class: `dot ${severity}`, role: "img", "aria-label": `has a finding: ${severity}` }) : null,
  );
}
function act(node) {
  if (node.children.length) set({ folds: new Map(state.folds).set(node.key, !isOpen(node)), cursor: node.key });
  else set({ leaf: node.leaf, cursor: node.key });
}
function treeKeys(e) {
  const { rows } = heat,
    at = Math.max(
      rows.findIndex((n) => n.key === state.cursor),
      0,
    ),
    node = rows[at];
  if (!node) return;
  const to = (i) => set({ cursor: rows[Math.min(Math.max(i, 0), rows.length - 1)].key });
  const folder = node.children.length > 0;
  const keys = {
    ArrowDown: () => to(state.cursor === null ? 0 : at + 1),
    ArrowUp: () => to(at - 1),
    PageDown: () => to(at + 15),
    PageUp: () => to(at - 15),
    Home: () => to(0),
    End: () => to(rows.length - 1),
    Enter: () => act(node),
    " ": () => act(node),
    ",": () => moveStep(-1),
    ".": () => moveStep(1),
    ArrowRight: () => {
      if (e.shiftKey) moveStep(1);
      else if (folder && !isOpen(node)) act(node);
      else if (folder) to(at + 1);
    },
    ArrowLeft: () => {
      if (e.shiftKey) moveStep(-1);
      else if (folder && isOpen(node)) act(node);
      else if (node.parent.depth >= 0) set({ cursor: node.parent.key });
    },
  };
  if (keys[e.key] && !e.ctrlKey && !e.metaKey && !e.altKey) {
    e.preventDefault();
    keys[e.key]();
  }
}
function cellAt(e) {
  const { field, view } = heat.parts,
    box = field.getBoundingClientRect();
  const node = heat.rows[Math.floor((e.clientY - box.top + view.scrollTop) / ROW)];
  const x = Math.floor(e.clientX - box.left),
    [from, to] = columns(Math.max(1, field.clientWidth));
  if (!node || x < 0 || x >= from.length || from[x] < 0) return null;
  const { codes, leaf } = rowOf(heat.cubed, node);
  let record = from[x];
  for (let r = from[x]; r < to[x]; r++)
    if (heat.cubed.measure.bad[codes[r]] > heat.cubed.measure.bad[codes[record]]) record = r;
  return {
    node,
    record,
    leaf: leaf ? leaf[record] : node.leaf,
    value: to[x] > from[x] ? heat.cubed.values[codes[record]] : NaN,
  };
}
function hover(e) {
  const cell = cellAt(e);
  tip.hidden = !cell;
  if (!cell) return;
  const text = Number.isNaN(cell.value) ? "nothing recorded" : `${state.metric} ${fmt(cell.value)}`;
  tip.replaceChildren(
    h("div", {}, named(run.leaves[cell.leaf])),
    h("div", {}, `step ${run.steps[cell.record]}: ${text}`),
  );
  tip.style.left = `${Math.min(e.clientX + 14, window.innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(e.clientY + 14, window.innerHeight - tip.offsetHeight - 8)}px`;
}
function pickCell(e) {
  const cell = cellAt(e);
  if (cell) set({ leaf: cell.leaf, step: run.steps[cell.record], cursor: cell.node.key });
}
function axisOf(el, width) {
  const [low, high] = domain(),
    rough = (high - low) / Math.max(width / 80, 2.5),
    power = 10 ** Math.floor(Math.log10(rough));
  const unit = Math.max(
      [1, 2, 5, 10].map((k) => k * power).find((k) => k >= rough),
      1,
    ),
    ticks = [];
  for (let s = Math.max(Math.ceil(low / unit) * unit, 0); s <= high; s += unit) {
    const x = ((s - low) / (high - low)) * width;
    if (x > 14 && x < width - 22) ticks.push(h("span", { style: `left:${x}px` }, s.toLocaleString("en")));
  }
  el.replaceChildren(...ticks);
}
async function colourScale(el, cubed) {
  const { kind, ends, span, folds } = cubed.measure,
    stops = colours()[kind];
  const strip = h("canvas", { width: 200, height: 1, "aria-hidden": "true" }),
    context = strip.getContext("2d");
  for (let x = 0; x < 200; x++) {
    context.fillStyle = `rgb(${mix(stops, span[0] + ((span[1] - span[0]) * x) / 199).join(",")})`;
    context.fillRect(x, 0, 1, 1);
  }
  const { says, formula, reference } = about(state.metric);
  el.replaceChildren(
    h(
      "p",
      { class: "remark" },
      `${says}${formula ? `: ${formula}` : ""}. ${reference === null ? "No reference value" : `Reference ${fmt(reference)}`}; a folded row shows the leaf ${reference === null ? "with the " + folds : folds}.`,
    ),
    strip,
    h("div", { class: "ends" }, ...ends.map((v) => h("span", {}, fmt(v)))),
  );
}
function strange(cubed) {
  // what is not finite, in words
  const [a, b] = between(run.steps, state.window),
    leaves = new Set(treeOf().leaves),
    places = [];
  let infinite = 0,
    missing = 0;
  for (const i of leaves)
    for (let r = a; r < b; r++) {
      const code = cubed.codes[i * cubed.width + r];
      if (code === MISSING) missing++;
      if (code !== INF && code !== MINUS) continue;
      if (infinite++ < 3) places.push(`${named(run.leaves[i])} at step ${run.steps[r]} (${code === INF ? "∞" : "−∞"})`);
    }
  const parts = [];
  if (infinite)
    parts.push(
      `${many(infinite, "cell")} infinite, drawn as gaps with a red mark: ${places.join("; ")}${infinite > 3 ? "; …" : ""}.`,
    );
  if (missing)
    parts.push(
      `${many(missing, "cell")} without a number (hatched): the statistic does not apply there or is not a number.`,
    );
  if (run.of[0] > run.steps.length)
    parts.push(
      `${run.steps.length.toLocaleString("en")} of ${run.of[0].toLocaleString("en")} records are kept on this page, those around spikes and findings first.`,
    );
  return parts.join(" ");
}
