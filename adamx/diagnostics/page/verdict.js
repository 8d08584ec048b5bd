/* 1. The verdict. */

let allCards = false;
panel({
  id: "verdict",
  title: "Verdict",
  wide: true,
  light: true,
  on: ["finding"],
  says: "What the doctor found, worst first: tells what to mend now from what to know. Choosing a card moves every chart to its leaf and step.",
  async draw(el) {
    if (!data.findings.length) {
      el.className = "cards";
      el.replaceChildren(
        h(
          "div",
          { class: "card fine" },
          h("span", { class: "kind" }, "✓ Nothing found"),
          h("span", {}, "None of the doctor's checks fired on this history; the charts below show what it holds."),
        ),
      );
      return;
    }
    const shown = allCards ? data.findings : data.findings.slice(0, CARDS);
    const left = data.findings.length - shown.length;
    const focused = el.contains(document.activeElement) ? document.activeElement.dataset.card : null;
    const box = slot(el, "cards", "div", { class: "cards" });
    box.replaceChildren(...shown.map(card));
    slot(el, "more", "div", { class: "tools" }).replaceChildren(
      ...(left
        ? [
            h(
              "button",
              {
                type: "button",
                onclick: () => {
                  allCards = true;
                  dirty.add(panels[0]);
                  schedule();
                },
              },
              `Show ${left} more`,
            ),
          ]
        : []),
    );
    if (focused) box.querySelector(`[data-card="${focused}"]`)?.focus();
  },
  async numbers() {
    const rows = data.findings.map((f) => [
      f.id,
      f.severity,
      f.step,
      f.leaves.slice(0, 5).join(", "),
      f.says,
      f.advice,
    ]);
    return {
      caption: "Findings.",
      head: ["finding", "severity", "step", "leaves", "says", "advice"],
      text: [0, 1, 3, 4, 5],
      ...capped(rows),
    };
  },
});
function card(f, k) {
  const mark = { error: "✖ Error", warning: "▲ Warning", note: "● Note" }[f.severity];
  const pair = (name, text) => (text ? [h("dt", {}, name), h("dd", {}, text)] : []);
  const evidence = Object.entries(f.evidence)
    .map(([name, v]) => `${name} ${typeof v === "object" && v !== null ? JSON.stringify(v) : fmt(v)}`)
    .join(", ");
  const leaves = f.leaves
    .slice(0, 4)
    .map((name) =>
      h(
        "button",
        { type: "button", disabled: !known.has(name), onclick: () => choose(k, name) },
        name || "(the only leaf)",
      ),
    );
  if (f.leaves.length > 4) leaves.push(h("span", {}, `and ${f.leaves.length - 4} more`));
  return h(
    "div",
    { class: `card ${f.severity}${state.finding === k ? " chosen" : ""}` },
    h(
      "button",
      {
        type: "button",
        "data-card": k,
        "aria-pressed": null,
        "aria-current": state.finding === k ? "true" : null,
        onclick: () => choose(k),
      },
      h("span", { class: "kind" }, `${mark} · ${f.id}${f.step === null ? "" : ` · step ${f.step}`}`),
      h("span", { class: "headline" }, f.says || f.id),
    ),
    leaves.length ? h("div", { class: "leaves" }, ...leaves) : null,
    h(
      "dl",
      {},
      ...pair("Evidence", evidence),
      ...pair("Cause", f.cause),
      ...pair("Try", f.advice),
      ...pair("Source", f.source),
    ),
  );
}
function choose(k, name = null) {
  const f = data.findings[k];
  const leaf = name ?? f.leaves.find((x) => known.has(x));
  const metric = Object.keys(f.evidence).find(has);
  goTo({ finding: k, leaf: known.has(leaf) ? known.get(leaf) : null, step: f.step, ...(metric ? { metric } : {}) });
}
