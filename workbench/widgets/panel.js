// The label panel: what is shown of the store, and what is done by key and click.

/** A panel that shows items and takes ratings. */
class Panel extends Frame {
  constructor(model, el, signal) {
    super(model);
    this.raw = false; // whether texts are shown as they are
    this.note = "";
    this.build(el);
    this.listen(signal);
    this.begin();
    this.paint();
    const disconnect = this.connect();
    this.stop = () => {
      disconnect();
      this.laid.disconnect();
    };
  }

  // -- what happens elsewhere

  onSetup() {
    const before = this.setup;
    this.setup = this.model.get("setup") ?? {};
    if (!same(before.questions, this.setup.questions)) this.form.build();
    this.paint();
  }

  onRefreshed() {
    this.refreshing = false;
    this.refreshButton.disabled = false;
    this.say("");
    this.announce("The store was read again.");
  }

  // -- rating

  rate(index, answer) {
    const question = this.questions[index];
    if (!this.item || this.item.gone) return;
    this.edit().answers[question.name] = answer;
    this.form.setActive(index);
    this.say("");
    this.form.paint();
    this.form.toOpen();
    this.announce(`${question.title}: ${inWords(question, answer)}`);
  }

  abstain() {
    this.rate(this.form.active, { value: null, abstain: true });
  }

  save() {
    const { item } = this;
    if (this.done || !item) return;
    if (item.gone) return this.forward(this.position + 1);
    if (this.statusOf(item).done && !this.isChanged(item) && !this.isOfferedAgain(item)) return this.forward(this.position + 1);
    this.readFields();
    const { answers, rationale } = structuredClone(this.draft());
    const open = this.questions.findIndex((each) => each.required !== false && !answers[each.name]);
    if (open >= 0 || !Object.keys(answers).length) {
      this.form.setActive(Math.max(open, 0));
      this.say("Not rated yet: choose an answer, or say that you can't judge (x), or skip (s).");
      return;
    }
    const written = Object.entries(rationale).filter(([, text]) => text.trim());
    const action = this.actOnItem("save", { answers, rationale: Object.fromEntries(written) });
    const said = `Saving ${this.spoken(answers)}.`;
    if (this.setup.reveal && !action.after_reveal) {
      this.paint();
      this.form.setActive(0);
      this.announce(`${said} What the judge and others said follows; Enter goes on.`);
    } else this.forward(this.position + 1, { said });
    this.outbox.post(action);
  }

  /** Answers to be read out. */
  spoken(answers) {
    return this.questions.filter(({ name }) => answers[name]).map((question) => inWords(question, answers[question.name])).join(", ");
  }

  skip() {
    const { item } = this;
    if (this.done || !item) return;
    if (this.statusOf(item).done) return this.forward(this.position + 1); // a label is not thrown away by a skip
    const action = this.actOnItem("skip");
    this.forward(this.position + 1, { said: "Skipped." });
    this.outbox.post(action);
  }

  undo() {
    const undone = this.undoLast();
    if (!undone) return this.say("Nothing to undo.");
    if (undone.isHere) this.go(undone.action.position, "Undone.");
    else this.announce("Undone.");
    this.say("Undone.", false);
    this.outbox.post(undone.action);
  }

  saveFromField() {
    this.readFields();
    if (this.root.contains(document.activeElement)) this.focus();
    if (this.done) this.leaveSummary();
    else this.save();
  }

  readFields() {
    this.form.read();
  }

  // -- moving

  /** To the next open item, from `from` on and round the end; `said` is read out before its number.
   * `passed` items were passed over on the way: once round is enough, whatever the kernel counts. */
  forward(from, { said = "", passed = 0 } = {}) {
    if (!this.total) return;
    for (let n = 0; passed + n < this.total; n++) {
      const at = (from + n) % this.total;
      if (this.offering && from + n >= this.total) break; // once through is enough
      const item = this.items.get(at);
      if (item) {
        const { done, skipped } = this.statusOf(item);
        if ((!done || this.isOfferedAgain(item)) && !skipped && !item.gone) return this.go(at, said);
      } else if (n === 0 || this.offering || !this.isEverythingDone()) {
        // Not here: it is asked for, and passed over if it turns out to be done.
        this.go(at, said);
        this.search = { said, passed: passed + n };
        return;
      } else break;
    }
    this.search = null;
    this.offering = false;
    this.done = true;
    this.paint();
    this.announce(`${said} You are through: ${this.counts.textContent}.`.trim());
  }

  go(position, said = "") {
    if (position < 0 || position >= this.total) return;
    if (!this.done) this.readFields();
    this.done = false;
    this.search = null;
    this.position = position;
    this.form.setActive(0);
    this.spent = 0;
    this.say("");
    this.paint();
    this.announce(`${said} Item ${number(position + 1)} of ${number(this.total)}${this.spokenStatus()}`.trim());
    // Items further ahead can wait until this one is on the page.
    setTimeout(() => {
      this.ask();
      this.askReveal();
    }, 0);
  }

  spokenStatus() {
    const { done, skipped } = this.item ? this.statusOf(this.item) : {};
    if (done) return `, ${this.words.done}: ${this.spoken(latest(done))}`;
    return skipped ? ", skipped" : "";
  }

  /** To the previous item, or from the summary to the item before it. */
  goBack() {
    this.go(this.done ? this.position : this.position - 1);
  }

  /** From the summary to what was skipped, and where nothing was, back to the items. */
  leaveSummary() {
    this.go(this.skippedAt() ?? this.position);
  }

  /** The kernel offers labels of an earlier rubric again, so that it shows no verdict before the
   * new answer, and says where to begin. */
  offerAgain() {
    if (!this.done || this.againButton.hidden) return;
    this.offering = true;
    this.say("Labels made under an earlier rubric are offered again as soon as the kernel is free …");
    this.send({ type: "offer_again" });
  }

  refresh() {
    if (this.refreshing) return;
    this.refreshing = true;
    this.refreshButton.disabled = true;
    this.say("The store is being read again …");
    this.send({ type: "refresh" });
  }

  // -- keys and focus

  listen(signal) {
    const listen = (name, handler, options) => this.root.addEventListener(name, handler, { signal, ...options });
    // The notebook must not see keys that are meant for the panel. What it listens for at the
    // document, before the panel, it leaves alone below `data-lm-suppress-shortcuts`.
    listen("keydown", (event) => {
      event.stopPropagation();
      const act = event.isComposing || event.defaultPrevented ? null : this.actionOf(event);
      if (!act) return;
      event.preventDefault();
      act();
    });
    for (const name of ["keyup", "keypress"]) listen(name, (event) => event.stopPropagation());
    for (const name of ["keydown", "pointermove", "wheel"]) listen(name, () => this.tick(), { capture: true, passive: true });
    listen("focusin", () => this.root.classList.add("wb-focused"));
    listen("focusout", (event) => {
      if (!this.root.contains(event.relatedTarget)) this.root.classList.remove("wb-focused");
    });
    // A host that moves the focus to its own element on a click would take the keys away.
    listen("mousedown", (event) => {
      event.stopPropagation();
      const within = this.help.hidden ? "button, a, input, textarea, summary, select, [tabindex]:not(.wb)" : "button";
      if (event.target.closest(within)) return;
      if (this.help.hidden) this.focus();
      else event.preventDefault(); // the focus stays in the dialog
    });
  }

  focus() {
    this.root.focus({ preventScroll: true });
  }

  /** What a key does here; null where the browser does what it always does. */
  actionOf(event) {
    const { target } = event;
    const hasControl = event.ctrlKey || event.metaKey;
    if (!this.help.hidden) return this.helpActionOf(event);
    if (hasControl && event.key.toLowerCase() === "s") return () => {}; // the browser would save the page
    if (event.key === "Escape") return () => this.focus();
    if ((hasControl || target.matches("input")) && event.key === "Enter") return () => this.saveFromField();
    if (target.matches("input, textarea, select") || hasControl || event.altKey) return null;
    const presses = event.key === "Enter" || event.key === " ";
    if (presses && target.closest("summary, a, button:not(.wb-choice)")) return null;
    if (event.key === " " && target.matches(".wb-choice")) return null;
    if (event.repeat && !/^(Arrow|Page)/.test(event.key)) return () => {};
    const command = commandOf(event, this.done ? "end" : "item");
    if (command) return () => command.act(this, target);
    return this.done ? null : this.form.actionOf(event.key);
  }

  helpActionOf(event) {
    if (event.key === "Escape" || event.key === "?") return () => this.toggleHelp();
    if (event.key === "Tab") return () => this.focusHelp(event.shiftKey ? -1 : 1);
    return null; // what scrolls the keys, or presses the button
  }

  toReason() {
    this.form.toReason();
  }

  goUp(target) {
    this.goVertically(-1, target);
  }

  goDown(target) {
    this.goVertically(1, target);
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

  toggleHelp() {
    const opens = this.help.hidden;
    if (opens) this.cameFrom = document.activeElement;
    this.help.hidden = !opens;
    // Behind the dialog nothing can be reached, by keys or by a screen reader.
    for (const each of this.root.children) each.inert = opens && each !== this.help;
    if (opens) return this.focusHelp(0);
    const back = this.root.contains(this.cameFrom) && this.cameFrom.getClientRects().length ? this.cameFrom : this.root;
    back.focus({ preventScroll: true });
  }

  /** Keep the focus within the dialog: on to its next part, round the end. */
  focusHelp(step) {
    const parts = [...this.help.querySelectorAll("button, [tabindex]")];
    const at = Math.max(0, parts.indexOf(document.activeElement));
    parts[(at + step + parts.length) % parts.length].focus();
  }
}

/** What a notebook needs of a panel: how it is shown, and how it ends. */
const viewOf = (Kind) => ({
  render({ model, el, signal }) {
    const panel = new Kind(model, el, signal);
    return () => panel.stop();
  },
});
