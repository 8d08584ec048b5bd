/* 4. The depth profile. */

const roles = rolesOf();
function rolesOf() {
  const candidates = new Map(); // a role is a name with one of its numbers replaced
  run.leaves.forEach((leaf, i) => {
    for (const m of leaf.name.matchAll(/\d+/g)) {
      const role = leaf.name.slice(0, m.index) + "*" + leaf.name.slice(m.index + m[0].length);
      if (!candidates.has(role)) candidates.set(role, []);
      candidates.get(role).push({ layer: Number(m[0]), leaf: i });
    }
  });
  const taken = new Set(),
    kept = [];
  for (const [role, members] of [...candidates].sort((a, b) => b[1].length - a[1].length)) {
    const free = members.filter((m) => !taken.has(m.leaf));
    if (free.length < 2) continue;
    free.forEach((m) => taken.add(m.leaf));
    kept.push({ role, members: free.sort((a, b) => a.layer - b.layer), place: Math.min(...free.map((m) => m.leaf)) });
  }
  return kept.sort((a, b) => a.place - b.place);
}
function ghostRecord() {
  const now = recordOf(state.step);
  const then = { start: between(run.steps, state.window)[0], ten: now - 10, first: 0 }[state.ghost];
  return then === undefined || then < 0 || then >= now ? -1 : then;
}
panel({
  id: "depth",
  title: "Depth profile",
  on: ["metric", "leaf", "step", "window", "ghost"],
  says: "Tells one odd layer (a kink) from a trend along the network (a slope) and from one kind of leaf (a whole line apart); thin lines are an earlier step.",
  empty: () =>
    noLeaves() ||
    (roles.length ? null : "No two leaves' names differ in a number only, so there is no depth to draw along."),
  async draw(el) {
    const choice = slot(el, "tools", "div", { class: "tools" });
    if (!choice.firstChild) {
      const select = h(
        "select",
        { "aria-label": "Earlier step to compare with", onchange: (e) => set({ ghost: e.target.value }) },
        ...[
          ["start", "the window's first record"],
          ["ten", "10 records before"],
          ["first", "the first record"],
          ["none", "nothing"],
        ].map(([v, t]) => h("option", { value: v }, t)),
      );
      choice.append(h("label", {}, "Thin lines: ", select));
    }
    const cubed = await measure(state.metric),
      { scale, reference } = about(state.metric),
      now = recordOf(state.step),
      then = ghostRecord();
    const traces = [],
      items = [],
      lines = colours().lines,
      all = [],
      shown = depthRoles(cubed, now);
    shown.forEach(({ role, members }, k) => {
      const colour = lines[k % lines.length],
        dash = ["solid", "dash", "dot"][Math.floor(k / lines.length) % 3],
        mine = members.some((m) => m.leaf === state.leaf);
      for (const [record, width, a] of [
        [then, 1, 0.4],
        [now, mine ? 3 : 1.8, 1],
      ]) {
        if (record < 0) continue;
        const ys = members.map((m) => cubed.at(m.leaf, record));
        all.push(...ys);
        traces.push({
          x: members.map((m) => m.layer),
          y: gaps(ys),
          mode: record === now && members.length < 40 ? "lines+markers" : "lines",
          line: { color: alpha(colour, a), width, dash },
          marker: { size: 5, color: colour },
          customdata: members.map((m) => m.leaf),
          text: members.map((m) => plain(named(run.leaves[m.leaf]))),
          hovertemplate: `%{text}<br>step ${run.steps[record]}: %{y:.4~g}<extra></extra>`,
          hoverinfo: record === now ? undefined : "skip",
        });
      }
      items.push({ colour, dash, text: role, width: mine ? 4 : 2 });
    });
    const log = scale === "log" && all.some((v) => v > 0),
      layers = shown.flatMap((r) => r.members.map((m) => m.layer)),
      [least, deepest] = [Math.min(...layers), Math.max(...layers)];
    const chart = slot(el, "chart");
    await plot(chart, traces, {
      height: 400,
      hovermode: "closest",
      xaxis: axis({ title: "layer", tickformat: "d", tick0: 0, dtick: Math.max(1, Math.ceil((deepest - least) / 12)) }),
      yaxis: log
        ? logAxis(reference > 0 ? [...all, reference] : all, { title: state.metric })
        : axis({ title: state.metric }),
      shapes: reference !== null && !(log && reference <= 0) ? [level(reference, css("--quiet"), "dot")] : [],
    });
    once(chart, "plotly_click", (e) => goTo({ leaf: e.points[0].customdata }));
    legend(slot(el, "legend", "ul", { class: "legend" }), items);
    slot(el, "remark", "p", { class: "remark" }).textContent =
      `Step ${run.steps[now]}${then >= 0 ? `, thin lines step ${run.steps[then]}` : ""}.` +
      (roles.length > shown.length
        ? ` The ${shown.length} of ${roles.length} kinds of leaf that are farthest off.`
        : "") +
      (reference !== null && !(log && reference <= 0) ? ` Dotted: reference ${fmt(reference)}.` : "");
  },
  async numbers() {
    const cubed = await measure(state.metric),
      now = recordOf(state.step),
      then = ghostRecord();
    const rows = depthRoles(cubed, now).flatMap(({ role, members }) =>
      members.map((m) => [role, m.layer, cubed.at(m.leaf, now), ...(then >= 0 ? [cubed.at(m.leaf, then)] : [])]),
    );
    return {
      caption: `${state.metric} by layer.`,
      head: ["kind of leaf", "layer", `step ${run.steps[now]}`, ...(then >= 0 ? [`step ${run.steps[then]}`] : [])],
      ...capped(rows),
    };
  },
});
function depthRoles(cubed, record) {
  if (roles.length <= 16) return roles;
  const bad = (r) => Math.max(...r.members.map((m) => cubed.measure.bad[cubed.codes[m.leaf * cubed.width + record]]));
  const kept = new Set([...roles].sort((a, b) => (bad(b) > bad(a)) - (bad(b) < bad(a))).slice(0, 16));
  return roles.filter((r) => kept.has(r));
}
