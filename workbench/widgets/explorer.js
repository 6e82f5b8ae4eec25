// The explorer: a confusion matrix whose cells open their items.
//
// It holds the query, and what is typed and not sent. Items are found in the kernel and come a page
// at a time. All texts are hostile and reach the page as text nodes (see `content.js`).

const NOTHING = { judge: 0, cell: null, change: "", search: "", field: "", value: "", order: "far", start: 0 };
const PATIENCE = 1500; // ms without an answer until the kernel is said to be busy
const TYPING = 180; // ms between a letter of a search and the question to the kernel

/** Text where only plain text can stand, such as an option: hidden characters by their number. */
const flat = (text) => h("span", null, visible(String(text ?? ""))).textContent;
const chip = (text, kind = "") => h("span", { class: `wb-chip ${kind}`, dir: "auto" }, visible(String(text)));
const small = (label, onclick, props) => h("button", { type: "button", class: "wb-small", onclick, ...props }, label);
const options = (given, chosen) => given.map(([value, label]) => h("option", { value, selected: value === chosen }, flat(label)));

class Explorer {
  constructor(model, el, signal) {
    this.model = model;
    this.setup = model.get("setup");
    this.names = this.setup.judges.map((name) => (name === "judge" ? "judge" : `judge ${name}`));
    this.query = { ...NOTHING, judge: this.setup.judges.length - 1 };
    this.asked = Math.random(); // the last question; answers go to all views of a widget
    this.rows = [];
    this.total = 0;
    this.at = [0, 0]; // the cell that Tab comes to
    this.opened = null; // the trace id of the open item
    this.sent = new Map(); // by action that is not settled: its trace, and what it is
    this.drafts = new Map(); // by trace: what is typed and not saved
    this.build(el);
    ownKeys(this.root, signal, (event) => this.actionOf(event));
    const receive = (message) => this.receive(message);
    model.on("msg:custom", receive);
    this.stop = () => model.off("msg:custom", receive);
    this.send({ type: "hello" });
    this.ask();
  }

  // -- talking to the kernel

  send(message) {
    try {
      this.model.send(message);
    } catch {
      for (const place of [this.status, this.told]) place.replaceChildren("There is no kernel: run the cell again.");
    }
  }

  /** Ask for the items of the query; `news` is what changes of it. */
  ask(news = {}) {
    this.query = { ...this.query, start: 0, ...news };
    this.asked += 1;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.status.replaceChildren("Waiting for the kernel …"), PATIENCE);
    this.list.setAttribute("aria-busy", "true");
    this.paintFilters();
    this.send({ type: "page", ask: this.asked, ...this.query });
  }

  receive(message) {
    const { type } = message ?? {};
    if (type === "page" && message.ask === this.asked) this.onPage(message);
    else if (type === "items" && message.items[0]?.trace_id === this.awaited) this.paintItem(message.items[0]);
    else if (type === "slices") this.onSlices(message);
    else if (type === "sent" && message.trace_id === this.opened) this.tell(message.text);
    else if (type === "saved") this.onSaved(message.ids);
    else if (type === "unsaved") this.onUnsaved(message);
    else if (type === "problem") this.onProblem(message);
  }

  onProblem({ about, error }) {
    if (about === "page") clearTimeout(this.timer);
    (about === "page" || !this.opened ? this.status : this.told).replaceChildren(...visible(error));
  }

  onPage(page) {
    clearTimeout(this.timer);
    this.root.dataset.total = this.total = page.total;
    this.list.setAttribute("aria-busy", "false");
    this.rows = page.rows;
    this.place = this.rows.findIndex((row) => row.trace_id === this.opened);
    this.paintMatrix(page);
    this.paintList();
    const { openNext } = this;
    this.openNext = null;
    if (openNext && this.rows.length) this.open(openNext > 0 ? 0 : this.rows.length - 1);
    else this.heading?.replaceChildren(this.standing());
  }

  onSlices({ slices, problem }) {
    this.slices = slices;
    this.covers.replaceChildren(...visible(problem ? `Search covers reasons and the beginnings of texts: ${problem}.` : ""));
    this.field.replaceChildren(...options([["", "all items"], ...Object.keys(slices).map((name) => [name, `by ${name}`])], this.query.field));
    this.field.hidden = !Object.keys(slices).length;
    if (this.query.search) this.ask();
  }

  // -- building

  build(el) {
    const { setup } = this;
    this.status = h("div", { class: "wbx-status", role: "status" }, "Waiting for the kernel …");
    this.covers = h("div", { class: "wb-quiet wbx-covers" }, "Search covers reasons and the beginnings of texts until all are read.");
    this.detail = h("section", { class: "wbx-detail", "aria-label": "Item", hidden: true });
    this.told = h("div", { class: "wbx-told", role: "status" });
    this.root = h("section", { class: "wb wbx", "aria-label": "Explorer of agreement", "data-epoch": setup.epoch, "data-lm-suppress-shortcuts": "true", "data-jp-suppress-context-menu": "true" },
      h("header", { class: "wb-head" }, h("div", { class: "wb-title" }, h("strong", { dir: "auto" }, visible(setup.title)), " ", quiet(count(setup.total, "item")))),
      this.buildSwitches(),
      h("div", { class: "wbx-work" }, this.buildMatrix(), this.buildList()), this.detail);
    el.replaceChildren(h("div", { class: "wb-frame" }, this.root));
  }

  /** Which judge, and what became of an item, where there are two. */
  buildSwitches() {
    const { judges, changes } = this.setup;
    this.judges = this.names.map((name, judge) => small(name, () => this.ask({ judge, cell: null }), { "aria-pressed": "false" }));
    this.changes = Object.entries(changes).map(([change, n]) => small(`${change} ${number(n)}`, () => this.ask({ change: this.query.change === change ? "" : change }), { "aria-pressed": "false", "data-change": change }));
    return h("div", { class: "wbx-switches", hidden: judges.length < 2 },
      h("div", { role: "group", "aria-label": "Verdicts of" }, this.judges),
      h("div", { role: "group", "aria-label": "What changed" }, this.changes));
  }

  buildMatrix() {
    const { values } = this.setup;
    const longest = Math.max(...values.map((value) => value.length));
    const kind = `${values.length > 4 || longest * values.length > 40 ? "wbx-tilted" : ""} ${values.length > 7 ? "wbx-many" : ""}`;
    this.cells = values.map((_, row) => values.map((__, column) => {
      const onclick = () => this.ask({ cell: same(this.query.cell, [row, column]) ? null : [row, column] });
      return h("button", { type: "button", class: "wbx-cell", tabindex: -1, onclick, onfocus: () => this.rove(row, column) });
    }));
    this.sums = values.map(() => h("span", { class: "wb-quiet" }));
    this.caption = h("caption");
    this.outside = h("p", { class: "wb-quiet wbx-covers" });
    const head = (value) => h("th", { scope: "col", title: flat(value) }, h("span", { dir: "auto" }, visible(value)));
    this.matrix = h("table", { class: `wbx-matrix ${kind}` }, this.caption,
      h("thead", null, h("tr", null, h("td"), values.map(head))),
      h("tbody", null, values.map((value, row) => h("tr", null,
        h("th", { scope: "row", title: flat(value) }, h("div", null, h("span", { dir: "auto" }, visible(value)), this.sums[row])),
        this.cells[row].map((cell) => h("td", null, cell))))));
    return h("div", { class: "wbx-left" }, this.matrix, this.outside, h("p", { class: "wb-quiet wbx-covers" }, "A cell shows its items. Arrow keys move, Enter opens, Escape goes back."));
  }

  buildList() {
    const select = (label, key, given) => h("select", { "aria-label": label, onchange: ({ target }) => this.onSelect(key, target.value) }, options(given, ""));
    this.search = h("input", { type: "search", dir: "auto", placeholder: "search texts and reasons", "aria-label": "Search texts and reasons", oninput: () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.ask({ search: this.search.value }), TYPING);
    } });
    this.field = select("Slice by", "field", [["", "all items"]]);
    this.field.hidden = true;
    this.value = select("Slice", "value", []);
    this.order = select("Order", "order", [...(this.setup.ordered ? [["far", "farthest first"], ["near", "nearest first"]] : [["far", "wrong first"], ["near", "right first"]]), ["id", "by id"]]);
    this.list = h("ul", { class: "wbx-items", "aria-label": "Items" });
    this.everything = small("Show all", () => {
      this.search.value = this.field.value = "";
      this.ask({ ...NOTHING, judge: this.query.judge, order: this.query.order });
    });
    const turn = (sign, label, step) => small(sign, () => this.ask({ start: this.query.start + step * this.setup.page }), { "aria-label": label, title: label });
    this.pages = [turn("←", "Previous page", -1), turn("→", "Next page", 1)];
    return h("div", { class: "wbx-right" },
      h("div", { class: "wbx-filters", role: "search" }, this.search, this.field, this.value, this.order),
      h("div", { class: "wbx-found" }, this.status, this.everything, this.pages), this.covers, this.list);
  }

  onSelect(key, value) {
    if (key === "field") this.value.replaceChildren(...options((this.slices[value] ?? []).map(([each, n]) => [each, `${each} (${number(n)})`]), ""));
    this.ask(key === "field" ? { field: value, value: this.slices[value]?.[0][0] ?? "" } : { [key]: value });
  }

  // -- the matrix

  /** The cell that Tab comes to; without values there is none. */
  get cell() {
    return this.cells[this.at[0]]?.[this.at[1]];
  }

  rove(row, column) {
    this.cell?.setAttribute("tabindex", -1);
    this.at = [row, column];
    this.cell?.setAttribute("tabindex", 0);
  }

  paintMatrix({ matrix, left }) {
    const { values, total } = this.setup;
    const judge = this.names[this.query.judge];
    const sum = (list) => list.reduce((a, b) => a + b, 0);
    const whose = this.query.field === "annotator" ? [chip(this.query.value), "'s labels"] : "Human labels";
    this.caption.replaceChildren(...[whose].flat(), " on rows, ", h("b", null, judge), " on columns", left < total ? `, ${number(left)} of ${count(total, "item")}` : "");
    matrix.forEach((cells, row) => {
      const all = sum(cells);
      this.sums[row].replaceChildren(`(${number(all)})`);
      cells.forEach((n, column) => {
        const cell = this.cells[row][column];
        const share = all ? n / all : 0;
        const percent = `${Math.round(100 * share)} %`;
        cell.style.setProperty("--wbx-share", `${(55 * share).toFixed(1)}%`);
        cell.classList.toggle("wbx-right-cell", row === column);
        cell.classList.toggle("wbx-empty", !n);
        cell.setAttribute("aria-pressed", String(same(this.query.cell, [row, column])));
        cell.setAttribute("aria-label", `human ${flat(values[row])}, ${judge} ${flat(values[column])}: ${count(n, "item")}, ${percent} of the row`);
        cell.replaceChildren(number(n), h("small", { "aria-hidden": "true" }, n ? percent : ""));
      });
    });
    const outside = left - sum(matrix.flat());
    this.outside.replaceChildren(outside ? `${count(outside, "item")} with rarer values than the ${values.length} of the matrix: they are among all items.` : "");
    this.rove(...this.at);
  }

  paintFilters() {
    const { judge, change, field, value, order, cell } = this.query;
    this.judges.forEach((button, n) => button.setAttribute("aria-pressed", String(n === judge)));
    for (const button of this.changes) button.setAttribute("aria-pressed", String(button.dataset.change === change));
    this.value.hidden = !field;
    this.value.value = value;
    this.order.value = order;
    this.everything.hidden = !(cell || change || this.query.search || field);
  }

  // -- the list

  paintList() {
    const { start, cell, judge } = this.query;
    const { values, page } = this.setup;
    const where = cell ? [`: human ${flat(values[cell[0]])}, ${this.names[judge]} ${flat(values[cell[1]])}`] : [];
    const range = this.total > page ? `${number(start + 1)} to ${number(start + this.rows.length)} of ` : "";
    this.status.replaceChildren(`${range}${count(this.total, "item")}`, ...where);
    this.pages[0].disabled = start <= 0;
    this.pages[1].disabled = start + page >= this.total;
    for (const button of this.pages) button.hidden = this.total <= page;
    this.list.replaceChildren(...this.rows.map((row, n) => h("li", null, this.rowButton(row, n))));
    this.list.scrollTop = 0;
    if (!this.rows.length) this.list.append(h("li", { class: "wb-quiet" }, "No item is left by these filters."));
  }

  rowButton(row, n) {
    const verdicts = this.setup.judges.map((name, judge) => [" ", quiet(`${this.names[judge]} `), chip(row[name], row[name] === row.human ? "wb-good" : "wb-warn")]);
    return h("button", { type: "button", class: "wbx-row", tabindex: n ? -1 : 0, "data-trace": row.trace_id, "aria-current": String(row.trace_id === this.opened), onclick: () => this.open(n) },
      h("span", { class: "wbx-said" }, quiet("human "), chip(row.human), verdicts, row.change ? [" ", quiet(row.change)] : null),
      h("span", { class: "wbx-text", dir: "auto" }, row.outputs ? visible(row.outputs) : quiet("no text is known")),
      h("span", { class: "wbx-text wb-quiet", dir: "auto" }, visible(row.inputs ?? "")));
  }

  // -- one item

  open(n) {
    const row = this.rows[n];
    this.place = n;
    this.opened = row.trace_id;
    for (const each of this.list.querySelectorAll(".wbx-row")) {
      const isOpen = each.dataset.trace === row.trace_id;
      each.setAttribute("aria-current", String(isOpen));
      each.tabIndex = isOpen ? 0 : -1;
      if (isOpen) each.scrollIntoView({ block: "nearest" });
    }
    this.tell("");
    this.awaited = row.trace_id; // answers go to all views of a widget, and what is typed here stays
    this.send({ type: "item", trace_id: row.trace_id });
  }

  /** To the next item or the previous one, on another page where need be. */
  step(step) {
    const n = this.place + step;
    const { start } = this.query;
    if (this.rows[n]) return this.open(n);
    if (start + n < 0 || start + n >= this.total) return;
    this.openNext = step;
    this.ask({ start: start + step * this.setup.page });
  }

  close() {
    this.opened = this.awaited = null;
    this.detail.hidden = true;
    const row = this.list.querySelectorAll(".wbx-row")[this.place];
    row?.setAttribute("aria-current", "false");
    (row ?? this.cell)?.focus();
  }

  /** Where the open item stands in the list. */
  standing() {
    return this.place < 0 ? "Item outside the list" : `Item ${number(this.query.start + this.place + 1)} of ${number(this.total)}`;
  }

  paintItem(item) {
    this.awaited = null;
    this.heading = h("strong", { tabindex: -1, role: "heading", "aria-level": 3 }, this.standing());
    const id = h("input", { class: "wbx-id", readonly: true, value: item.trace_id, "aria-label": "Trace id", size: Math.min(item.trace_id.length, 36) });
    this.detail.dataset.trace = item.trace_id;
    this.detail.replaceChildren(
      h("div", { class: "wb-itemhead" }, h("div", { class: "wbx-which" }, this.heading, id, small("Copy id", () => this.copy(id))),
        h("div", { class: "wb-itemkeys" }, small("←", () => this.step(-1), { "aria-label": "Previous item", "aria-keyshortcuts": "ArrowLeft" }), small("→", () => this.step(1), { "aria-label": "Next item", "aria-keyshortcuts": "ArrowRight" }),
          small("Close", () => this.close(), { "aria-keyshortcuts": "Escape" }))),
      item.fault ? h("div", { class: "wb-banner" }, visible(item.fault)) : "",
      h("div", { class: "wbx-both" },
        h("div", { class: "wbx-reading", tabindex: 0, role: "document", "aria-label": "The item's text" }, sections(item, { level: 4 })),
        h("div", { class: "wbx-aside" }, item.voices.map((voice) => this.voice(voice)), this.form(item))));
    this.detail.hidden = false;
    this.heading.focus({ preventScroll: true });
    this.detail.scrollIntoView({ block: "nearest" });
  }

  voice({ who, value, votes, ...why }) {
    const others = votes.length ? h("div", { class: "wb-quiet" }, votes.map(([name, vote], n) => [n ? ", " : "", visible(name), ": ", visible(vote)])) : null;
    return voiceOf(who === "people" ? "wb-person" : "wb-judge", who, chip(value), why, others);
  }

  // -- label, note and queue

  form(item) {
    const [question, note] = this.setup.questions;
    const queue = h("div", { class: "wbx-actions" }, small("Send to the label queue", () => this.send({ type: "send", trace_id: item.trace_id })));
    if (!this.setup.annotator) return [queue, this.told, h("p", { class: "wb-quiet" }, "To label and take notes here, name the annotator: ", h("code", null, "Explorer(pairs, annotator=…)"), ".")];
    const { answers = {}, changed = {}, rationale = {} } = item.done ?? {};
    const first = answers[question.name];
    const now = changed[question.name] ?? first;
    const draft = this.drafts.get(item.trace_id) ?? {};
    const chosen = draft.answer ?? (now?.abstain ? "x" : now ? JSON.stringify(now.value) : "");
    const field = (tag, label, props, ...inner) => h(tag, { "aria-label": label, dir: "auto", ...props }, inner);
    const answer = question.choices.length
      ? field("select", "Your label", {}, options([["", "choose …"], ...question.choices.map(({ value, label }) => [JSON.stringify(value), label]), ["x", "Can't judge"]], chosen))
      : field("input", "Your label", { inputmode: "decimal", value: chosen, placeholder: "a number" });
    const reason = field("textarea", "Reason for your label", { rows: 1, placeholder: "reason (optional)" }, draft.reason ?? rationale[question.name] ?? "");
    const text = field("textarea", "Note", { rows: 2, placeholder: "a note on this item" }, draft.note ?? answers[note.name]?.value ?? "");
    const rubric = question.rubric?.trim() ? h("details", { class: "wb-rubric" }, h("summary", null, "Rubric"), boxed(question.rubric_blocks, "Rubric")) : null;
    const words = (given) => visible(inWords(question, given));
    const said = first ? h("p", { class: "wb-quiet" }, "Yours so far: ", words(first), same(first, now) ? null : [", after the verdict ", words(now)]) : null;
    const keep = () => this.drafts.set(item.trace_id, { answer: answer.value, reason: reason.value, note: text.value });
    return h("div", { class: "wbx-form", role: "group", "aria-label": `As ${flat(this.setup.annotator)}`, oninput: keep },
      h("div", { class: "wb-sectionhead", role: "heading", "aria-level": 4 }, "As ", visible(this.setup.annotator)), said, rubric,
      h("div", { class: "wbx-line" }, answer, reason, small("Save label", () => this.saveLabel(question, answer, reason))),
      h("div", { class: "wbx-line" }, text, small("Save note", () => (text.value.trim() ? this.save(note, { value: text.value.trim(), abstain: false }, "", "note") : this.tell("The note is empty.")))),
      queue, this.told);
  }

  saveLabel(question, { value: typed }, { value: reason }) {
    if (!typed.trim()) return this.tell("Choose a label first.");
    if (typed === "x") return this.save(question, { value: null, abstain: true }, reason, "label");
    const value = question.choices.length ? JSON.parse(typed) : typedNumber(typed);
    if (Number.isNaN(value)) return this.tell(`${typed} cannot be read as a number.`);
    return this.save(question, { value, abstain: false }, reason, "label");
  }

  save({ name, rubric_version: version }, answer, reason, what) {
    const id = `${Date.now()}-${Math.random().toString(16).slice(2)}`;
    const { trace } = this.detail.dataset; // the item that is shown, though another may be under way
    this.sent.set(id, { trace, what });
    this.tell(`Saving the ${what} …`);
    this.send({ type: "act", actions: [{ id, kind: "save", trace_id: trace, at: Date.now(), answers: { [name]: answer }, rationale: { [name]: reason }, after_reveal: true, rubrics: { [name]: version ?? 0 } }] });
  }

  onSaved(ids) {
    for (const { trace, what } of ids.map((id) => this.sent.get(id)).filter(Boolean)) {
      const draft = this.drafts.get(trace) ?? {};
      this.drafts.set(trace, what === "note" ? { ...draft, note: undefined } : { note: draft.note });
      if (trace === this.detail.dataset.trace) this.tell(what === "note" ? "The note is in the store." : "Your label is in the store, marked as given after the verdict. The matrix stays that of the pairs as they were read.");
    }
    for (const id of ids) this.sent.delete(id);
  }

  onUnsaved({ ids, error, retry }) {
    for (const { trace, what } of (ids ?? []).map((id) => this.sent.get(id)).filter(Boolean)) {
      this.tell(retry ? error : `The ${what} of ${trace} could not be saved: ${error}`);
    }
  }

  copy(input) {
    input.select();
    // The clipboard's own interface is not there over plain HTTP.
    const isCopied = document.execCommand("copy");
    this.tell(isCopied ? "The id is copied." : "The id could not be copied. It is selected: copy it with the keyboard.");
  }

  tell(text) {
    this.told.replaceChildren(...visible(text));
  }

  // -- keys

  actionOf({ key: pressed, target, ctrlKey, metaKey, altKey }) {
    if (ctrlKey || metaKey || altKey) return null;
    const inDetail = this.detail.contains(target);
    if (pressed === "Escape") return inDetail ? () => this.close() : () => this.cell?.focus();
    if (target.matches("input, textarea, select")) return null;
    const sideways = { ArrowLeft: -1, ArrowRight: 1 }[pressed] ?? 0;
    const down = { ArrowUp: -1, ArrowDown: 1 }[pressed] ?? 0;
    if (target.matches(".wbx-cell") && (sideways || down)) {
      const [row, column] = this.at;
      return () => this.cells[row + down]?.[column + sideways]?.focus();
    }
    if (target.matches(".wbx-row") && down) {
      const rows = [...this.list.querySelectorAll(".wbx-row")];
      const next = rows[rows.indexOf(target) + down];
      return () => {
        if (!next) return;
        target.tabIndex = -1;
        next.tabIndex = 0;
        next.focus();
      };
    }
    return inDetail && sideways ? () => this.step(sideways) : null;
  }
}

export default viewOf(Explorer);
