// The view of an alignment in the background: figures as the kernel tells them, and Cancel.
//
// It holds nothing but what it shows. Instructions and rules are made from what people and models
// wrote and so are hostile: text reaches the page as text nodes (see `content.js`).

const STAGES = { reading: "reading labels", testing: "testing on held-out traces" };

const DEV_SCORE_HINT = "On the items that candidates are selected on, some of which were learned from: no estimate of how the judge will do. That comes from the held-out test.";

const box = (tag, cls, ...children) => h(tag, { class: cls || null }, children);
const shown = (text) => visible(String(text ?? ""));
const time = (s) => `${Math.floor(s / 60)}:${String(s % 60).padStart(2, "0")}`;

function table({ head, rows }, cls) {
  const row = (cells, tag) => h("tr", null, cells.map((text) => h(tag, null, shown(text))));
  return box("div", "wbp-scroll", box("table", cls,
    h("thead", null, row(head, "th")), h("tbody", null, rows.map((cells) => row(cells, "td")))));
}

/** A bar with its figure beside it; without an end to go to it is a figure alone. */
function bar(label, now, most, text) {
  const width = `width: ${Math.min(100, (100 * now) / (most || 1))}%`;
  const track = h("div", { class: "wbp-track", role: "progressbar", "aria-label": label, "aria-valuemin": 0, "aria-valuenow": now, "aria-valuemax": most }, h("div", { class: "wbp-fill", style: width }));
  return box("div", "wbp-row", box("span", "wbp-label", label), most ? track : null, box("span", "wbp-figure", text));
}

const figure = (name, value, cls, hint = null) => h("div", { title: hint }, box("div", "wbp-name", name), box("div", `wbp-value ${cls}`, value));

/** What changes all the time: bars and figures; and how it ended. */
function figures(state, outcome) {
  const { step, max_steps: most, calls, spent, share_spent: share, best_score: score, failures } = state;
  const isKnown = (value) => value !== null && value !== undefined;
  const found = [
    isKnown(score) && figure("Best dev score", score.toFixed(3), "wbp-big", DEV_SCORE_HINT),
    isKnown(failures) && figure("Failed calls", number(failures), failures ? "wbp-warn" : "")].filter(Boolean);
  return [
    isKnown(step) && bar("Steps", step, most, `${step} of at most ${most}`),
    isKnown(calls) && bar("Spent", share ?? 0, isKnown(share) ? 1 : 0, spent),
    found.length > 0 && box("div", "wbp-figures", found),
    state.message && !outcome && box("p", "wbp-message", shown(state.message)),
    outcome && box("div", "wbp-outcome",
      h("p", null, box("strong", `wbp-status wbp-${outcome.status}`, outcome.headline), " ", shown(outcome.reason)),
      table(outcome.table, "wbp-table wbp-numbers"), outcome.notes.map((note) => box("p", "wbp-quiet", shown(note))))];
}

/** The best instructions, with what was learned marked. */
function instructions(lines, outcome) {
  if (!lines.length) return [];
  const learned = lines.filter(([, isNew]) => isNew).length;
  const text = (line) => h("span", { class: "wbp-text", dir: "auto" }, shown(line));
  return [
    box("div", "wbp-head2",
      box("span", "", outcome ? "Proposed instructions" : "Best instructions so far"),
      box("span", "wbp-quiet", learned ? `${count(learned, "learned line")}, marked +` : "nothing learned yet")),
    h("div", { class: "wbp-rules", tabindex: "0", role: "region", "aria-label": "Best instructions so far" },
      lines.map(([line, isNew]) => (isNew
        ? box("ins", "wbp-line", h("span", { class: "wbp-plus", "aria-hidden": "true" }, "+"), text(line))
        : box("div", "wbp-line", text(line)))))];
}

function render({ model, el }) {
  const stage = h("span", { class: "wbp-stage", role: "status" });
  const clock = h("span", { class: "wbp-clock", title: "time since it began" });
  const cancel = h("button", { class: "wbp-cancel", type: "button", onclick: () => model.send({ type: "cancel" }) });
  const title = box("strong", "wbp-title");
  const body = box("div", "");
  const rules = box("div", "");
  const facts = box("div", "");
  const preflight = box("details", "wbp-preflight", h("summary", null, "What was said before it began"), facts);
  const root = h("section", { class: "wbp", "aria-label": "Alignment in the background" },
    box("header", "wbp-header", title, stage, box("span", "wbp-space"), clock, cancel), body, rules, preflight);
  el.replaceChildren(root);

  const showSetup = () => {
    const setup = model.get("setup");
    title.replaceChildren("Aligning ", ...shown(setup.title));
    preflight.hidden = !setup.table.rows.length;
    facts.replaceChildren(table(setup.table, "wbp-table"));
  };
  const show = () => {
    const state = model.get("state");
    const said = state.cancelling ? "cancelling: calls are under way" : (STAGES[state.stage] ?? state.stage);
    if (stage.textContent !== said) stage.textContent = said; // read out when it changes
    Object.assign(root.dataset, { stage: state.stage, step: state.step ?? "", calls: state.calls ?? "" });
    clock.textContent = time(state.seconds ?? 0);
    cancel.hidden = Boolean(state.ended) || state.stage === "testing";
    cancel.disabled = Boolean(state.cancelling);
    cancel.textContent = state.cancelling ? "Cancelling…" : "Cancel";
    body.replaceChildren();
    append(body, figures(state, model.get("outcome")));
  };
  const showRules = () => {
    rules.replaceChildren(...instructions(model.get("learned"), model.get("outcome")));
    show();
  };
  const handlers = { "change:setup": showSetup, "change:state": show, "change:learned": showRules, "change:outcome": showRules };
  for (const [name, handler] of Object.entries(handlers)) model.on(name, handler);
  showSetup();
  showRules();
  return () => {
    for (const [name, handler] of Object.entries(handlers)) model.off(name, handler);
  };
}

export default { render };
