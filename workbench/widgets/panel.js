// The panels: what is shown of the store, and what is done by key and click.

// What each key does: the first row that fits counts. `at` is where it does it: at an "item", at
// the "end" of the queue, by default at both. A key with Shift counts as itself unless it is named
// with it. Answers have keys of their own, see `choices` in `content.py`.
const KEYMAP = [
  { keys: ["x"], at: "item", act: (panel) => panel.rate(panel.form.active, { value: null, abstain: true }), help: "can't judge" },
  { keys: ["Enter"], at: "item", act: (panel) => panel.save(), help: "save and go on to the next item without a label" },
  { keys: ["Enter"], at: "end", act: (panel) => panel.leaveSummary() },
  { keys: ["ArrowLeft"], act: (panel) => panel.goBack(), shown: ["←", "→"], help: "previous, next item" },
  { keys: ["ArrowRight"], act: (panel) => panel.go(panel.position + 1) },
  { keys: ["ArrowUp"], act: (panel, target) => panel.goVertically(-1, target), shown: ["↑", "↓"], help: "previous, next question, where there are several; else scroll the text" },
  { keys: ["ArrowDown"], act: (panel, target) => panel.goVertically(1, target) },
  { keys: ["Space", "PageDown"], act: (panel) => panel.scroll(1), shown: ["Space", "Page ↓"], help: "scroll the text by a page; back with Shift or Page ↑" },
  { keys: ["Shift+Space", "PageUp"], act: (panel) => panel.scroll(-1) },
  { keys: ["r"], at: "item", act: ({ form }) => form.rows[form.active]?.reason.focus(), help: "write a reason; Enter saves, Shift+Enter begins a new line, Esc leaves the field" },
  { keys: ["s"], at: "item", act: (panel) => panel.skip(), help: "skip this item" },
  { keys: ["u"], act: (panel) => panel.undo(), help: "undo the last save or skip" },
  { keys: ["t"], at: "item", act: (panel) => panel.toggleRaw(), help: "show the text as it is, or with Markdown" },
  { keys: ["Shift+r"], act: (panel) => panel.refresh(), shown: ["Shift", "r"], help: "refresh: read the store again" },
  { keys: ["?"], act: (panel) => panel.help.showModal(), help: "show or hide the keys" },
];

/** What a pressed key does: its row of the keymap, or undefined. */
function commandOf(event, place) {
  const pressed = event.key === " " ? "Space" : event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const named = (name) => KEYMAP.find(({ keys, at = place }) => at === place && keys.includes(name));
  return (event.shiftKey && named(`Shift+${pressed}`)) || named(pressed);
}

/** A panel that shows items and takes ratings. */
class Panel extends Frame {
  constructor(model, el, signal) {
    super(model);
    this.raw = false; // whether texts are shown as they are
    this.note = "";
    this.build(el);
    this.listen(signal);
    this.paint();
    this.stop = this.connect();
  }

  // -- what happens elsewhere

  onSetup() {
    const before = this.setup;
    this.setup = this.model.get("setup") ?? {};
    if (!same(before.questions, this.setup.questions)) this.form.build();
    this.paint();
  }

  // -- rating

  rate(index, answer) {
    const question = this.questions[index];
    if (!this.item || this.item.gone) return;
    const draft = this.draft();
    draft.answers[question.name] = answer;
    delete draft.typed?.[question.name];
    this.drafts.set(this.item.trace_id, draft);
    this.form.setActive(index);
    this.say("");
    this.form.paint();
    this.form.toOpen();
    this.announce(`${question.title}: ${inWords(question, answer)}`);
  }

  save() {
    const { item } = this;
    if (this.done || !item) return;
    const { done } = this.statusOf(item);
    const changes = this.changesOf(item);
    const isSettled = done && !changes.length && !this.isOfferedAgain(item);
    if (item.gone || isSettled) return this.forward(this.position + 1);
    const { answers, rationale } = structuredClone(this.draft());
    const former = latest(done ?? item.partial ?? {});
    const open = this.questions.findIndex(({ name, required }, n) =>
      this.form.rows[n].input?.matches(".wb-wrong") || (!answers[name] && (required !== false || former[name] || rationale[name]?.trim())));
    if (open >= 0 || !Object.keys(answers).length) {
      this.form.setActive(Math.max(open, 0));
      const typed = this.form.rows[open]?.input?.value.trim();
      const isErased = former[this.questions[open]?.name];
      this.say(typed ? `${typed} cannot be read as a number that fits: type another one, or say that you can't judge (x).`
        : isErased ? "A saved answer is not taken back: give another one, or say that you can't judge (x)."
          : "Not rated yet: choose an answer, or say that you can't judge (x), or skip (s).");
      return;
    }
    if (done && this.revealed.has(item.trace_id) && !this.isOfferedAgain(item)) {
      // What is said again after the verdict is no change of mind.
      for (const { name } of this.questions) if (!changes.includes(name)) delete answers[name];
    }
    const action = this.actOnItem("save", { answers, rationale });
    const said = `Saving ${this.spoken(answers)}.`;
    if (this.setup.reveal && !action.after_reveal) {
      this.paint();
      this.form.setActive(0);
      this.announce(`${said} What the judge and others said follows; Enter goes on.`);
    } else this.forward(this.position + 1, { said });
  }

  /** Answers to be read out. */
  spoken(answers) {
    return this.questions.filter(({ name }) => answers[name]).map((question) => inWords(question, answers[question.name])).join(", ");
  }

  skip() {
    const { item } = this;
    if (this.done || !item) return;
    if (this.statusOf(item).done) {
      item.again = false; // a label is not thrown away by a skip: it stays as it is
      this.send({ type: "keep", trace_id: item.trace_id });
      return this.forward(this.position + 1);
    }
    this.actOnItem("skip");
    this.forward(this.position + 1, { said: "Skipped." });
  }

  undo() {
    const action = this.undoLast();
    if (!action) return this.say("Nothing to undo.");
    this.go(action.position, "Undone.");
    this.say("Undone.", false);
  }

  saveFromField() {
    if (this.root.contains(document.activeElement)) this.focus();
    if (this.done) this.leaveSummary();
    else this.save();
  }

  // -- moving

  /** To the next open item, from `from` on and round the end; `said` is read out before its number.
   * `passed` items were passed over on the way: once round is enough, whatever the kernel counts. */
  forward(from, { said = "", passed = 0 } = {}) {
    if (!this.total) return;
    for (let n = 0; passed + n < this.total; n++) {
      const at = (from + n) % this.total;
      const item = this.items.get(at);
      if (item) {
        const { done, skipped } = this.statusOf(item);
        if ((!done || this.isOfferedAgain(item)) && !skipped && !item.taken && !item.gone) return this.go(at, said);
      } else if (n === 0 || !this.isEverythingDone()) {
        // Not here: it is asked for, and passed over if it turns out to be done.
        this.go(at, said);
        this.search = { said, passed: passed + n };
        return;
      } else break;
    }
    this.search = null;
    this.done = true;
    this.paint();
    this.announce(`${said} You are through: ${this.counts.textContent}.`.trim());
  }

  go(position, said = "") {
    if (position < 0 || position >= this.total) return;
    this.done = false;
    this.search = null;
    this.position = position;
    this.form.moveTo(0);
    this.spent = 0;
    this.say("");
    this.paint();
    const { done, skipped } = this.item ? this.statusOf(this.item) : {};
    const status = done ? `, ${this.words.done}: ${this.spoken(latest(done))}` : skipped ? ", skipped" : "";
    this.announce(`${said} Item ${number(position + 1)} of ${number(this.total)}${status}`.trim());
    // Items further ahead can wait until this one is on the page.
    setTimeout(() => {
      this.ask();
      this.askReveal();
    }, 0);
  }

  /** To the previous item, or from the summary to the item before it. */
  goBack() {
    this.go(this.done ? this.position : this.position - 1);
  }

  /** From the summary to what was skipped, and where nothing was, back to the items. */
  leaveSummary() {
    this.go(this.skippedAt() ?? this.position);
  }

  refresh() {
    this.say("The store is being read again …");
    this.send({ type: "refresh" });
  }

  // -- keys and focus

  listen(signal) {
    const listen = (name, handler, options) => this.root.addEventListener(name, handler, { signal, ...options });
    ownKeys(this.root, signal, (event) => this.actionOf(event));
    for (const name of ["keydown", "pointermove", "wheel"]) listen(name, () => this.tick(), { capture: true, passive: true });
    listen("focusin", () => this.root.classList.add("wb-focused"));
    listen("focusout", (event) => {
      if (!this.root.contains(event.relatedTarget)) this.root.classList.remove("wb-focused");
    });
    // A host that moves the focus to its own element on a click would take the keys away.
    listen("mousedown", (event) => {
      if (event.target.closest("button, a, input, textarea, summary, [tabindex]:not(.wb)")) return;
      if (this.help.open) event.preventDefault(); // the focus stays in the dialog
      else this.focus();
    });
  }

  focus() {
    this.root.focus({ preventScroll: true });
  }

  /** What a key does here; null where the browser does what it always does. */
  actionOf(event) {
    const { target } = event;
    const hasControl = event.ctrlKey || event.metaKey;
    if (this.help.open) return { "?": () => this.help.close(), Tab: () => {} }[event.key] ?? null; // it has one button
    if (event.key === "Escape") return () => this.focus();
    const inField = target.matches("input, textarea") && !event.shiftKey;
    if ((hasControl || inField) && event.key === "Enter") return () => this.saveFromField();
    if (target.matches("input, textarea") || hasControl || event.altKey) return null;
    // The browser presses what has the focus; but Enter saves an answer that is chosen already.
    const pressed = { " ": "summary, a, button", Enter: 'summary, a, button:not(.wb-choice[aria-pressed="true"])' }[event.key];
    if (pressed && target.closest(pressed)) return null;
    const scrolled = [...this.root.querySelectorAll(".wb-boxed, .wb-reveal, .wb-code")].filter((box) => box.contains(target));
    if (/^( |Page|Arrow(Up|Down))/.test(event.key) && scrolled.some((box) => box.scrollHeight > box.clientHeight)) return null;
    if (event.repeat && !/^(Arrow|Page)/.test(event.key)) return () => {};
    const command = commandOf(event, this.done ? "end" : "item");
    if (command) return () => command.act(this, target);
    return this.done ? null : this.form.actionOf(event.key);
  }

  /** To another question where there are several, else through the text by some lines. */
  goVertically(step, target) {
    if (this.form.hasMany && !this.text.contains(target)) this.form.step(step);
    else this.text.scrollBy({ top: step * 60 });
  }

  /** Move the text by a page. */
  scroll(step) {
    this.text.scrollBy({ top: step * 0.85 * this.text.clientHeight });
  }

  toggleRaw() {
    this.raw = !this.raw;
    this.paintItem();
    this.text.scrollTop = 0;
  }
}

/** The adjudication panel: what annotators said stands side by side, and one answer is given to it. */
class Adjudication extends Panel {
  get words() {
    return { panel: "Adjudication panel", done: "decided", table: "panel.decisions", holds: "the labels and what was decided", summary: null, nothing: "Annotators differ on none of these traces." };
  }

  build(el) {
    super.build(el);
    this.root.classList.add("wb-adjudication");
    // What people said is read before one decides.
    this.form.box.before(this.reveal);
  }

  paintReveal() {
    const { item } = this;
    this.reveal.replaceChildren();
    if (!item || this.done) return;
    this.reveal.append(
      h("div", { class: "wb-sectionhead", role: "heading", "aria-level": 3 }, "What annotators said"),
      h("div", { class: "wb-voices", role: "list" }, (item.voices ?? []).map((voice) => this.card(voice))));
  }

  card(voice) {
    const choice = this.questions[0].choices.find(({ label }) => label === voice.value);
    const value = h("span", { class: "wb-chip wb-said", dir: "auto" }, visible(String(voice.value)));
    const earlier = voice.earlier_rubric ? h("div", { class: "wb-quiet wb-earlier" }, "earlier rubric") : null;
    return h("div", { role: "listitem", style: hueStyle(choice) }, voiceOf("wb-person", voice.annotator, value, voice, earlier));
  }

  paintItemState() {
    super.paintItemState();
    const by = this.item && this.statusOf(this.item).done?.decided_by;
    if (by) this.where.append(" ", h("span", { class: "wb-chip wb-by", dir: "auto" }, "decided by ", visible(String(by))));
  }
}
