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
          h("span", { class: "kind" }, data.unread.length || late() ? "✓ Nothing found in what was recorded" : "✓ Nothing found"),
          h(
            "span",
            {},
            data.unread.length
              ? `Of the doctor's ${data.rules} rules ${data.rules - data.unread.length} had something to read, and none of them fired.`
              : "None of the doctor's checks fired on this history; the charts below show what it holds.",
          ),
        ),
        ...unreadCards(),
      );
      return;
    }
    const shown = allCards ? data.findings : data.findings.slice(0, CARDS);
    const left = data.findings.length - shown.length;
    const focused = el.contains(document.activeElement) ? document.activeElement.dataset.card : null;
    const box = slot(el, "cards", "div", { class: "cards" });
    box.replaceChildren(...shown.map(card), ...(left ? [] : unreadCards()));
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
/* What the doctor could not look at: "nothing found" says nothing of that. */
const late = () => run.steps.length > 0 && run.steps[0] > Math.max(run.every, 1);
function unreadCards() {
  const card = (kind, text) =>
    h("div", { class: "card unread" }, h("span", { class: "kind" }, kind), h("span", {}, text));
  return [
    ...(data.unread.length
      ? [
          card(
            `○ ${data.unread.length} of ${data.rules} rules had nothing to read`,
            `${data.unread.join(", ")}, because ${data.because}.`,
          ),
        ]
      : []),
    ...(late()
      ? [
          card(
            "○ The beginning was not recorded",
            `Records begin with step ${run.steps[0].toLocaleString("en")}: drain more often, or keep a longer history.`,
          ),
        ]
      : []),
  ];
}
/* The step of the record nearest to this one at which the leaf's statistic is a number; the step itself where its
   nearest record has one, or none has. */
async function withNumber(step, leaf, metric) {
  if (step === null || leaf === null || metric === null || !run.steps.length) return step;
  const cubed = await cube(run, metric),
    known_ = (r) => r >= 0 && r < run.steps.length && Number.isFinite(cubed.at(leaf, r)),
    at = recordOf(step);
  if (known_(at)) return step;
  const near = [...run.steps.keys()].filter(known_);
  return near.length
    ? run.steps[near.reduce((p, q) => (Math.abs(run.steps[q] - step) < Math.abs(run.steps[p] - step) ? q : p))]
    : step;
}
async function choose(k, name = null) {
  const f = data.findings[k];
  const named_ = name ?? f.leaves.find((x) => known.has(x)),
    leaf = known.has(named_) ? known.get(named_) : null;
  const metric = Object.keys(f.evidence).find(has);
  const step = await withNumber(f.step, leaf ?? state.leaf, metric ?? state.metric);
  goTo({ finding: k, leaf, step, ...(metric ? { metric } : {}) });
}
