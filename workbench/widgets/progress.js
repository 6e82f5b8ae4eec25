// The view of an alignment in the background: figures as the kernel tells them, and Cancel.
//
// It holds nothing but what it shows. Instructions and rules are made from what people and models
// wrote and so are hostile: text reaches the page as text nodes only, no HTML is parsed here.

/** An element with a class, attributes and children; strings become text nodes. */
function h(tag, cls, attributes, ...children) {
  const node = document.createElement(tag);
  if (cls) node.className = cls;
  for (const [name, value] of Object.entries(attributes ?? {})) node.setAttribute(name, value);
  node.append(...children.flat());
  return node;
}

// Characters that would turn the direction of what follows, or hide it, shown by their number.
const HIDDEN =
  // eslint-disable-next-line no-control-regex
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u180e\u200b\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]/gu;
const visible = (text) =>
  String(text ?? "").replace(HIDDEN, (c) => `‹U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}›`);

const STAGES = {
  reading: "reading labels",
  preflight: "preflight",
  learning: "learning",
  testing: "testing on held-out traces",
  done: "done",
  cancelled: "cancelled",
  failed: "failed",
};
const number = (n) => Number(n).toLocaleString("en");
const time = (s) => `${Math.floor(s / 60)}:${String(s % 60).padStart(2, "0")}`;

/** The alignment in words, with each part of it where the eye expects it. */
function stageText(state) {
  return state.cancelling ? "cancelling: calls are under way" : STAGES[state.stage] ?? state.stage;
}

function table({ head, rows }, cls) {
  const cell = (tag) => (text) => h(tag, "", {}, visible(text));
  return h(
    "div", "wbp-scroll", {},
    h("table", cls, {},
      h("thead", "", {}, h("tr", "", {}, head.map(cell("th")))),
      h("tbody", "", {}, rows.map((row) => h("tr", "", {}, row.map(cell("td")))))),
  );
}

/** A bar with its figure beside it; without an end to go to it has none. */
function bar(label) {
  const fill = h("div", "wbp-fill");
  const track = h("div", "wbp-track", { role: "progressbar", "aria-label": label, "aria-valuemin": "0" }, fill);
  const figure = h("span", "wbp-figure");
  const node = h("div", "wbp-row", {}, h("span", "wbp-label", {}, label), track, figure);
  const show = (now, most, text) => {
    const known = now !== null && now !== undefined;
    node.hidden = !known;
    if (!known) return;
    track.hidden = !most;
    figure.textContent = text;
    if (!most) return;
    fill.style.width = `${Math.min(100, (100 * now) / most)}%`;
    track.setAttribute("aria-valuenow", now);
    track.setAttribute("aria-valuemax", most);
  };
  return { node, show };
}

function render({ model, el }) {
  const title = h("strong", "wbp-title");
  const stage = h("span", "wbp-stage", { role: "status" });
  const clock = h("span", "wbp-clock", { title: "time since it began" });
  const cancel = h("button", "wbp-cancel", { type: "button" }, "Cancel");
  const steps = bar("Steps");
  const calls = bar("Spent");
  const figures = h("div", "wbp-figures");
  const message = h("p", "wbp-message");
  const outcome = h("div", "wbp-outcome");
  const rules = h("div", "wbp-rules", { tabindex: "0", role: "region", "aria-label": "Best instructions so far" });
  const rulesHead = h("div", "wbp-head2");
  const preflight = h("details", "wbp-preflight", {}, h("summary", "", {}, "What was said before it began"));
  const root = h(
    "section", "wbp", { "aria-label": "Alignment in the background" },
    h("header", "wbp-header", {}, title, stage, h("span", "wbp-space"), clock, cancel),
    steps.node, calls.node, figures, message, outcome, rulesHead, rules, preflight,
  );
  el.replaceChildren(root);

  cancel.addEventListener("click", () => {
    cancel.disabled = true;
    cancel.textContent = "Cancelling…";
    model.send({ type: "cancel" });
  });

  const hints = {
    "Best dev score": "On the items that candidates are selected on, some of which were learned from: no estimate of how the judge will do. That comes from the held-out test.",
  };

  const showState = () => {
    const state = model.get("state");
    title.textContent = `Aligning ${visible(model.get("setup").title)}`;
    stage.textContent = stageText(state);
    root.dataset.stage = state.stage;
    root.dataset.step = state.step ?? "";
    root.dataset.calls = state.calls ?? "";
    clock.textContent = time(state.seconds ?? 0);
    cancel.hidden = Boolean(state.ended) || state.stage === "testing";
    cancel.disabled = Boolean(state.cancelling);
    cancel.textContent = state.cancelling ? "Cancelling…" : "Cancel";
    steps.show(state.step, state.max_steps, `${state.step} of at most ${state.max_steps}`);
    calls.show(state.share_spent ?? state.calls, state.share_spent === null ? 0 : 1, state.spent);
    const told = [
      ["Best dev score", state.best_score === null ? null : state.best_score.toFixed(3), "wbp-big"],
      ["Failed calls", state.failures === null ? null : number(state.failures), state.failures ? "wbp-warn" : ""],
    ].filter(([, value]) => value !== null);
    figures.replaceChildren(
      ...told.map(([name, value, cls]) =>
        h("div", "", { title: hints[name] ?? "" }, h("div", "wbp-name", {}, name), h("div", `wbp-value ${cls}`, {}, value))),
    );
    figures.hidden = told.length === 0;
    message.textContent = visible(state.stage === "done" ? "" : state.message);
    message.hidden = !message.textContent;
  };

  const showRules = () => {
    const lines = model.get("learned");
    const learned = lines.filter(([, isNew]) => isNew).length;
    const lasting = model.get("state").stage === "done" ? "Proposed instructions" : "Best instructions so far";
    rulesHead.replaceChildren(
      h("span", "", {}, lasting),
      h("span", "wbp-quiet", {}, learned ? `${learned} learned line${learned === 1 ? "" : "s"}, marked +` : "nothing learned yet"),
    );
    rules.replaceChildren(
      ...lines.map(([text, isNew]) =>
        isNew
          ? h("ins", "wbp-line", {}, h("span", "wbp-plus", { "aria-hidden": "true" }, "+"), h("span", "wbp-text", { dir: "auto" }, visible(text)))
          : h("div", "wbp-line", {}, h("span", "wbp-text", { dir: "auto" }, visible(text)))),
    );
    rulesHead.hidden = rules.hidden = lines.length === 0;
  };

  const showOutcome = () => {
    const found = model.get("outcome");
    outcome.hidden = !found;
    if (!found) return;
    outcome.replaceChildren(
      h("p", "", {}, h("strong", `wbp-status wbp-${found.status}`, {}, found.status), ` ${visible(found.reason)}`),
      table(found.table, "wbp-table wbp-numbers"),
      ...found.notes.map((note) => h("p", "wbp-quiet", {}, visible(note))),
    );
  };

  const showPreflight = () => {
    const { table: told } = model.get("setup");
    preflight.hidden = told.rows.length === 0;
    while (preflight.children.length > 1) preflight.lastChild.remove();
    preflight.append(table(told, "wbp-table"));
  };

  const listening = {
    "change:state": () => { showState(); showRules(); },
    "change:learned": showRules,
    "change:outcome": showOutcome,
    "change:setup": showPreflight,
  };
  for (const [name, show] of Object.entries(listening)) {
    model.on(name, show);
    show();
  }
  return () => {
    for (const [name, show] of Object.entries(listening)) model.off(name, show);
  };
}

export default { render };
