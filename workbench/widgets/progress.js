// The view of an alignment in the background: what the kernel tells, and Cancel.
//
// It holds nothing but what it shows. Texts in the parts are escaped in the kernel (`progress.py`).

const STAGES = { reading: "reading labels", testing: "testing on held-out traces" };

const time = (s) => `${Math.floor(s / 60)}:${String(s % 60).padStart(2, "0")}`;

function render({ model, el }) {
  const stage = h("span", { class: "wbp-stage", role: "status" });
  const clock = h("span", { class: "wbp-clock", title: "time since it began" });
  const onclick = () => {
    try { model.send({ type: "cancel" }); } catch { stage.textContent = "There is no kernel: what ran in it has ended."; }
  };
  const cancel = h("button", { class: "wbp-cancel", type: "button", onclick });
  const title = h("strong", { class: "wbp-title" });
  const parts = [0, 1, 2].map(() => h("div"));
  const root = h("section", { class: "wb wbp", "aria-label": "Alignment in the background" },
    h("header", { class: "wbp-header" }, title, stage, h("span", { class: "wbp-space" }), clock, cancel), parts);
  el.replaceChildren(root);

  let shown = [];
  const show = () => {
    const state = model.get("state");
    const said = state.cancelling ? "cancelling: calls are under way" : (STAGES[state.stage] ?? state.stage);
    if (stage.textContent !== said) stage.textContent = said; // read out when it changes
    Object.assign(root.dataset, { stage: state.stage, step: state.step ?? "", calls: state.calls ?? "" });
    title.replaceChildren("Aligning ", ...visible(String(state.title)));
    clock.textContent = time(state.seconds ?? 0);
    cancel.hidden = Boolean(state.ended) || state.stage === "testing";
    cancel.disabled = Boolean(state.cancelling);
    cancel.textContent = state.cancelling ? "Cancelling…" : "Cancel";
    // What has not changed stays, with what is unfolded there.
    const given = model.get("parts");
    given.forEach((html, n) => {
      if (html !== shown[n]) parts[n].innerHTML = html;
    });
    shown = given;
  };
  const events = ["change:state", "change:parts"];
  for (const name of events) model.on(name, show);
  show();
  return () => events.forEach((name) => model.off(name, show));
}

export default { render };
