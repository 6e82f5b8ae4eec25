// What a panel shows of the store.

/** The elements of a panel, and how they are painted. Whoever extends it says what they do. */
class Frame extends Store {
  /** What the panel calls what one does in it. */
  get words() {
    return { panel: "Label panel", done: "labelled", opensRubric: true, table: "panel.labels", holds: "your labels", summary: "panel.summary()", nothing: "There is nothing to label." };
  }

  // -- building

  button(label, keyName, act, props) {
    const onclick = (event) => {
      // After a click the keys work on; who came with Tab stays where he is.
      if (event.detail > 0) this.focus();
      act();
    };
    return h("button", { type: "button", onclick, ...props }, label, keyName ? [" ", key(keyName)] : null);
  }

  build(el) {
    const small = (label, keyName, act, props) => this.button(label, keyName, act, { class: "wb-small", ...props });
    this.live = h("div", { class: "wb-sr", "aria-live": "polite" });
    this.hint = h("div", { class: "wb-hint" });
    this.reveal = h("div", { class: "wb-reveal", tabindex: 0, role: "region", "aria-label": "What others said", "aria-live": "polite" });
    this.form = new Form(this);
    this.summary = this.buildSummary();
    this.help = this.buildHelp();
    const keysButton = small("Keys", "?", () => this.help.showModal(), { "aria-keyshortcuts": "?" });
    this.root = h("div", { class: "wb", tabindex: 0, role: "application", "aria-label": `${this.words.panel}. Press question mark for the keys.`, "data-lm-suppress-shortcuts": "true", "data-jp-suppress-context-menu": "true" },
      this.buildHead(small, keysButton), this.buildWork(small), this.summary, this.hint, this.buildFoot(), this.help, this.live);
    this.form.build();
    el.replaceChildren(h("div", { class: "wb-frame" }, this.root));
    this.watchSize();
  }

  buildHead(small, keysButton) {
    this.title = h("div", { class: "wb-title" });
    this.saving = h("div", { class: "wb-saving" });
    this.bar = h("div", { class: "wb-bar", role: "progressbar", "aria-label": this.words.done, "aria-valuemin": 0 }, h("div", { class: "wb-fill" }), h("div", { class: "wb-fill wb-waiting" }));
    this.counts = h("div", { class: "wb-counts" });
    const refreshButton = small(h("span", null, "Refresh"), "⇧R", () => this.refresh(), { class: "wb-small wb-refresh", "aria-label": "Refresh", "aria-keyshortcuts": "Shift+R", title: "Read the store again: new traces, and what was said elsewhere" });
    this.banner = h("div", { class: "wb-banner", role: "alert", hidden: true });
    return [
      h("header", { class: "wb-head" }, this.title, h("div", { class: "wb-headright" }, this.saving, keysButton)),
      h("div", { class: "wb-progress" }, this.bar, h("div", { class: "wb-told" }, this.counts, refreshButton)),
      this.banner];
  }

  buildWork(small) {
    this.where = h("div", { class: "wb-where" });
    this.rawButton = small("Plain text", "t", () => this.toggleRaw(), { "aria-pressed": "false", "aria-keyshortcuts": "t", title: "Show the text as it is, without Markdown" });
    const scroll = (sign, keyName, step, props) => small(sign, keyName, () => this.scroll(step), { class: "wb-small wb-arrow", ...props });
    this.scrolling = h("span", { class: "wb-scrolling", role: "group", "aria-label": "Scroll the text" },
      scroll("↑", null, -1, { "aria-label": "Scroll the text up", title: "Scroll the text up (↑, Page Up)" }),
      scroll("↓", "Space", 1, { "aria-label": "Scroll the text down", "aria-keyshortcuts": "Space", title: "Scroll the text down (↓, Space, Page Down)" }));
    this.page = h("div", { class: "wb-page" });
    this.text = h("div", { class: "wb-reading", tabindex: 0, role: "document", "aria-label": "The item to judge" }, this.page);
    return h("div", { class: "wb-work" },
      h("section", { class: "wb-left" }, h("div", { class: "wb-itemhead" }, this.where, h("div", { class: "wb-itemkeys" }, this.scrolling, this.rawButton)), this.text),
      h("section", { class: "wb-right", "aria-label": "Rating" }, this.form.switcher, this.form.box, this.reveal));
  }

  buildFoot() {
    const icon = (sign, name, keys, act) => this.button(sign, null, act, { class: "wb-icon", "aria-label": name, "aria-keyshortcuts": keys, title: `${name} (${sign})` });
    this.back = icon("←", "Previous item", "ArrowLeft", () => this.goBack());
    this.next = icon("→", "Next item", "ArrowRight", () => this.go(this.position + 1));
    this.undoButton = this.button("Undo", "u", () => this.undo(), { "aria-keyshortcuts": "u" });
    this.skipButton = this.button("Skip", "s", () => this.skip(), { "aria-keyshortcuts": "s" });
    this.balance = h("div", { class: "wb-balance" });
    const saveButton = this.button("Save and go on", "↵", () => this.saveFromField(), { class: "wb-primary", "aria-keyshortcuts": "Enter" });
    return h("footer", { class: "wb-foot" }, h("div", { class: "wb-moves" }, this.back, this.next, this.undoButton, this.skipButton), this.balance, saveButton);
  }

  buildSummary() {
    const { table, holds, summary } = this.words;
    this.through = h("h3");
    this.figures = h("tbody");
    this.skippedButton = this.button("Look at what you skipped", "↵", () => this.leaveSummary());
    return h("div", { class: "wb-summary" }, this.through, h("table", null, this.figures),
      h("p", { class: "wb-onward" }, this.skippedButton, this.button("Back to the items", "←", () => this.goBack())),
      h("p", { class: "wb-quiet" }, h("code", null, table), ` holds ${holds} as a table`, summary ? [", ", h("code", null, summary), " the figures"] : null, "."));
  }

  buildHelp() {
    const row = ({ keys, shown = keys, help }) => h("tr", null, h("td", null, shown.map((each) => [key(each), " "])), h("td", null, help));
    const answering = { shown: ["1", "…", "9"], help: "give the answer with this key; letters that are underlined work, too" };
    const close = this.button("Close", "Esc", () => this.help.close(), { class: "wb-small", "aria-keyshortcuts": "Escape" });
    return h("dialog", { class: "wb-help", "aria-label": "Keys" },
      h("div", { class: "wb-helphead" }, h("strong", null, "Keys"), close),
      h("table", null, h("tbody", null, [answering, ...KEYMAP.filter(({ help }) => help)].map(row))),
      h("p", { class: "wb-quiet" }, "Keys work while the panel has the focus, and reach nothing else in the notebook."));
  }

  watchSize() {
    let isFirst = true;
    const laid = new ResizeObserver(() => {
      this.scrolling.classList.toggle("wb-idle", this.text.scrollHeight <= this.text.clientHeight);
      const { clientWidth } = this.root;
      if (!isFirst || !clientWidth) return;
      isFirst = false;
      // In a narrow place the rubric would push the answers out of view.
      if (clientWidth <= 680) for (const each of this.root.querySelectorAll(".wb-rubric")) each.open = false;
      this.form.keepInView();
    });
    for (const each of [this.root, this.text, this.page]) laid.observe(each);
  }

  // -- the item

  paint() {
    this.root.classList.toggle("wb-done", this.done);
    this.paintItem();
    this.form.paint();
    this.paintReveal();
    this.paintStatus();
    // What had the focus may have gone, or be hidden now: the keys work on.
    const active = document.activeElement;
    const within = active !== this.root && this.root.contains(active);
    if (within ? !active.getClientRects().length : !active?.matches(".wb") && this.root.classList.contains("wb-focused")) this.focus();
  }

  paintItem() {
    const { item } = this;
    const isSame = !!item && this.root.dataset.trace === item.trace_id;
    this.root.dataset.position = this.done ? "done" : String(this.position);
    this.root.dataset.trace = item?.trace_id ?? "";
    if (this.done) return;
    this.rawButton.setAttribute("aria-pressed", String(this.raw));
    // What has not changed stays, so that the reader keeps the place and what is unfolded.
    const contents = [this.raw, item?.blocks, item?.cuts, item?.gone];
    if (!isSame || !same(this.contents, contents)) {
      if (this.page.contains(document.activeElement)) this.focus();
      this.page.replaceChildren(...this.contentsOf(item));
      if (!isSame) this.text.scrollTop = 0;
    }
    this.contents = contents;
  }

  contentsOf(item) {
    if (!item) return [h("p", { class: "wb-quiet" }, this.total ? "Waiting for the kernel to send this item …" : this.words.nothing)];
    if (item.gone) return [h("p", { class: "wb-quiet" }, "This trace was deleted from the store. Enter goes on.")];
    return sections(item, { raw: this.raw });
  }

  paintItemState() {
    const { item } = this;
    const place = `Item ${number(this.position + 1)} of ${number(this.total)}`;
    if (!item) return this.where.replaceChildren(this.total ? place : "");
    const { done, skipped } = this.statusOf(item);
    const isWaiting = this.isWaiting(item);
    const isChanged = this.changesOf(item).length > 0;
    const chips = [
      [isChanged, "changed, not saved", "warn"],
      [done && !isChanged, isWaiting ? "not saved yet" : "saved", isWaiting ? "warn" : "good"],
      [done?.earlier_rubric, "made under an earlier rubric", "warn"],
      [Object.keys(done?.changed ?? {}).length, "changed after the verdict", "plain"],
      [done && this.isOfferedAgain(item), "offered again: Enter confirms", "warn"],
      [done?.elsewhere, "labelled elsewhere", "plain"],
      [!done && skipped, isWaiting ? "skipped, not saved yet" : "skipped", "plain"],
      [!done && item.taken, "not needed any more", "plain"],
      [item.gone, "deleted", "warn"],
    ].filter(([holds]) => holds).flatMap(([, text, kind]) => [" ", h("span", { class: `wb-chip wb-${kind}` }, text)]);
    const short = item.trace_id.length > 14 ? `${item.trace_id.slice(0, 11)}…` : item.trace_id;
    this.where.replaceChildren(h("span", { class: "wb-number" }, place), " ",
      h("span", { class: "wb-id wb-quiet", title: item.trace_id }, visible(short)), ...chips);
  }

  // -- what others said

  paintReveal() {
    const { item } = this;
    this.reveal.replaceChildren();
    if (!this.setup.reveal || !item || this.done || !this.statusOf(item).done || this.isOfferedAgain(item)) return;
    const said = this.revealed.get(item.trace_id);
    if (!said) {
      this.reveal.append(h("p", { class: "wb-quiet" }, "The judge's verdict is shown as soon as your label is saved. Enter goes on without."));
      return;
    }
    const groups = this.questions.map((question) => ({ question, voices: this.voices(question, said) }));
    const alone = groups.filter(({ voices }) => !voices.length).map(({ question }) => question.title);
    const many = this.form.hasMany;
    append(this.reveal, [
      h("div", { class: "wb-sectionhead", role: "heading", "aria-level": 3 }, "What others said"),
      groups.filter(({ voices }) => voices.length).map(({ question, voices }) => h("div", { class: "wb-heard", role: "group", "aria-label": question.title },
        many ? h("div", { class: "wb-about", dir: "auto" }, visible(question.title)) : null,
        this.ownVoice(question, this.statusOf(item).done), voices)),
      alone.length ? h("p", { class: "wb-quiet" }, "No one else has judged: ", visible(alone.join(", ")), ".") : null,
      h("p", { class: "wb-quiet" }, "Your first label is kept and is the one that counts. If you change your mind now, that is recorded beside it.")]);
    this.reveal.scrollTop = 0;
    this.form.keepInView();
  }

  /** What the judge and others said to one question. */
  voices(question, { judges, others }) {
    const verdict = judges[question.name];
    const voice = (kind, who, said) => voiceOf(kind, who, valueChip(question, said.value), said);
    const people = others.filter((other) => other.question === question.name).map((other) => voice("wb-person", other.annotator, other));
    return verdict ? [voice("wb-judge", "Judge", verdict), ...people] : people;
  }

  ownVoice(question, done) {
    const first = done.answers?.[question.name];
    const then = done.changed?.[question.name];
    return h("div", { class: "wb-own" }, h("span", { class: "wb-who" }, "You:"), " ",
      first ? valueChip(question, first.value) : quiet("no answer"), then ? [" first, now ", valueChip(question, then.value)] : null);
  }

  // -- how far one is

  paintStatus() {
    const progress = this.state.progress ?? {};
    const { total = this.total, labelled = 0 } = progress;
    this.title.replaceChildren(h("strong", { dir: "auto" }, visible(this.setup.title ?? "")), " ",
      quiet("as ", visible(String(this.setup.annotator ?? ""))));
    const waiting = [...this.waiting.values()].filter(({ done }) => done).length;
    [labelled, waiting].forEach((n, k) => { this.bar.children[k].style.width = `${(100 * n) / Math.max(total, 1)}%`; });
    this.bar.setAttribute("aria-valuemax", String(total));
    this.bar.setAttribute("aria-valuenow", String(labelled));
    const facts = [`${number(labelled)} of ${number(total)} ${this.words.done}`];
    if (progress.skipped) facts.push(`${number(progress.skipped)} skipped`);
    this.counts.replaceChildren(facts.join(" · "));
    this.paintBalance();
    this.banner.hidden = !this.state.message;
    this.banner.replaceChildren(...visible(this.state.message ?? ""));
    this.paintSaving();
    this.back.disabled = this.position <= 0 && !this.done;
    this.next.disabled = this.position >= this.total - 1 || this.done;
    this.skipButton.disabled = this.done;
    this.undoButton.disabled = !this.undoable.length;
    if (this.done) this.paintSummary();
  }

  /** Labels were saved or refused, perhaps in another view. */
  paintSaved() {
    this.paintStatus();
    this.form.paint();
  }

  paintSaving() {
    const { outbox } = this;
    let ahead = 0;
    while (this.items.has(this.position + ahead + 1)) ahead += 1;
    Object.assign(this.root.dataset, { ahead, unsaved: outbox.size, epoch: this.setup.epoch ?? "" });
    const lost = this.state.lost ?? 0;
    const [text, hint] = this.savingText(outbox, lost);
    const isShown = outbox.size || lost || this.undoable.length;
    const needsHint = outbox.isStuck || (outbox.size && !outbox.isKept);
    this.saving.className = `wb-saving ${outbox.size || lost ? "wb-warn" : "wb-good"}`;
    this.saving.title = hint;
    this.saving.replaceChildren(isShown ? text : "", needsHint ? h("div", { class: "wb-why-not" }, hint) : "");
  }

  savingText(outbox, lost) {
    if (outbox.size) {
      const text = `Not saved yet (${outbox.size})`;
      if (!outbox.isKept) return [text, "This browser keeps nothing when the page is closed: leave it open until all is saved."];
      const busy = outbox.isStuck ? " The kernel is busy, or it was restarted; then run the cell again." : "";
      return [text, `These ratings are kept in this browser and written as soon as the kernel is free.${busy}`];
    }
    if (lost) return [`${number(lost)} could not be saved`, "All else that you rated is in the store. panel.unsaved tells what could not be written, and why."];
    return ["All saved", "Everything that you rated is in the store."];
  }

  /** The labels by value. */
  paintBalance() {
    const choices = this.questions[0]?.choices ?? [];
    const found = Object.entries(this.state.progress?.balance ?? {}).filter(([, n]) => n > 0);
    const entries = found.map(([label, n]) => [label, n, hueStyle(choices.find((each) => each.label === label))]);
    const all = entries.reduce((sum, [, n]) => sum + n, 0);
    this.balance.replaceChildren(...(all ? [
      h("div", { class: "wb-stack", "aria-hidden": "true" }, entries.map(([label, n, hue]) => h("div", { style: `flex: ${n}; ${hue}`, title: `${label}: ${n}` }))),
      h("div", { class: "wb-legend" }, entries.slice(0, 6).map(([label, n, hue]) => h("span", { class: "wb-share" },
        h("i", { style: hue }), visible(label), " ", h("b", null, number(n)), quiet(` ${Math.round((100 * n) / all)} %`))))] : []));
  }

  paintSummary() {
    const progress = this.state.progress ?? {};
    const rows = [[this.words.done, progress.labelled ?? 0], ["skipped", progress.skipped ?? 0], ["not saved yet", this.outbox.size]];
    this.figures.replaceChildren(...rows.map(([name, n]) => h("tr", null, h("th", { scope: "row" }, name), h("td", null, number(n)))));
    this.through.replaceChildren(this.outbox.size ? "You are through; the last ratings are still being saved" : "You are through");
    this.skippedButton.hidden = this.skippedAt() === null;
  }

  /** Show something, and have it read out unless what is read out says it already. */
  say(text, aloud = true) {
    if (this.note === text) return;
    this.note = text;
    this.hint.replaceChildren(...visible(text));
    if (text && aloud) this.announce(text);
  }

  announce(text) {
    this.live.replaceChildren(text);
  }
}
