// What a panel knows, and how it talks to the kernel.
//
// It decides nothing about labels: every rating is an action that goes to the outbox first and then
// to the kernel, and counts as saved only when the kernel says that the store has it. Items ahead
// are held here, so that a key is answered without asking the kernel.

const AHEAD = 220; // items held ahead of the one shown
const BEHIND = 60; // and behind it; as many are asked for at once
const IDLE = 60000; // ms without a sign of life that count as time spent
const RETRY_AFTER = 15000; // ms until what was not answered is sent again

/** The answers of a label as they are now: those of a change of mind where there is one. */
const latest = (done) => ({ ...done.answers, ...done.changed });
/** The same with their reasons, to be changed. */
const draftOf = (done) => structuredClone({ answers: done ? latest(done) : {}, rationale: done?.rationale ?? {} });

/** What an action makes of its item, until the kernel says so. `before` is what the item was, or
 * what an undo makes it again. */
function statusAfter({ kind, before, answers, rationale, after_reveal: isChange }) {
  const done = before?.done ?? null;
  if (kind === "skip") return { done: null, skipped: true };
  if (kind === "undo") return { done, skipped: !!before?.skipped };
  // An answer given after a look at the verdict stands beside the first label, which is kept.
  if (isChange && done) return { done: { ...done, changed: { ...done.changed, ...answers }, rationale }, skipped: false };
  return { done: { answers, rationale }, skipped: false };
}

/** Actions that the store has not confirmed. The browser keeps them over a reload of the page, and
 * they are sent until they are answered. */
class Outbox {
  constructor(panelKey, send) {
    this.prefix = `workbench:${panelKey}:`;
    this.send = send;
    this.isKept = true; // whether the browser keeps them when the page is closed
    this.actions = this.stored(); // the last one last
    this.restartClock();
  }

  get size() {
    return this.actions.length;
  }

  /** The last action on a trace, or undefined. */
  last(trace) {
    return this.actions.findLast((action) => action.trace_id === trace);
  }

  /** Keep an action, and send it once the next item is on the page: writing to the socket takes time. */
  add(action) {
    if (!this.size) this.restartClock();
    this.actions.push(action);
    this.attempt(() => localStorage.setItem(this.prefix + action.id, JSON.stringify(action)));
    // What waits of the same trace goes along, before it: it may have been lost on its way, and
    // sent again later it would undo this action.
    setTimeout(() => this.send({ type: "act", actions: this.actions.filter((each) => each.trace_id === action.trace_id) }), 0);
  }

  /** Forget an action that is settled; returns it, or undefined. */
  remove(id) {
    const action = this.actions.find((each) => each.id === id);
    this.actions = this.actions.filter((each) => each !== action);
    this.attempt(() => localStorage.removeItem(this.prefix + id));
    return action;
  }

  /** Something was answered, or nothing waits. */
  restartClock() {
    this.waitingSince = performance.now();
  }

  get isStuck() {
    return this.size > 0 && performance.now() - this.waitingSince > RETRY_AFTER;
  }

  /** The actions that another view of the same panel has settled: those are no longer stored. */
  settledElsewhere() {
    const ids = new Set(this.stored().map(({ id }) => id));
    return this.isKept ? this.actions.filter(({ id }) => !ids.has(id)) : [];
  }

  stored() {
    const names = () => Object.keys(localStorage).filter((name) => name.startsWith(this.prefix));
    const found = this.attempt(() => names().map((name) => JSON.parse(localStorage.getItem(name))));
    return (found ?? []).sort((a, b) => a.at - b.at);
  }

  /** Use the browser's storage, which may be full or forbidden. */
  attempt(use) {
    try {
      return use();
    } catch {
      this.isKept = false;
      return null;
    }
  }
}

/** State of a panel. Whoever extends it shows it: `paint`, `paintStatus`, `paintItemState`,
 * `paintReveal`, `say`, `announce`, `onSaved` and so on. */
class Store {
  constructor(model) {
    this.model = model;
    this.setup = model.get("setup") ?? {};
    this.state = model.get("state") ?? {};
    this.outbox = new Outbox(this.setup.panel_key ?? "", (message) => this.send(message));
    this.items = new Map(); // by position
    this.drafts = new Map(); // by trace: {answers, rationale, typed} that someone has touched here
    this.lastSaved = new Map(); // by trace: {stamp, status} that the kernel told last
    this.undoable = []; // saves and skips, the last one last
    this.revealed = new Map(); // by trace: what the kernel revealed
    this.total = this.setup.total ?? 0;
    // The page does not begin at an item that is done but not saved yet.
    const over = new Map(this.outbox.actions.map((action) => [action.position, action]));
    let position = Math.max(0, this.state.position ?? 0);
    while (position < this.total - 1 && over.has(position) && over.get(position).kind !== "undo") position += 1;
    this.position = Math.min(position, Math.max(0, this.total - 1));
    this.done = this.total > 0 && position >= this.total; // whether the summary is shown
    this.search = null; // {said, passed} while the next open item is not here yet
    this.sent = new Map(); // by type of message: when the last one was sent
    this.lastAt = 0; // when the last action was made: no two at the same time
    this.spent = 0; // ms spent on the item
    this.alive = performance.now(); // the last sign of life
  }

  get questions() {
    return this.setup.questions ?? [];
  }

  get item() {
    return this.items.get(this.position) ?? null;
  }

  // -- talking to the kernel

  /** Listen to the kernel and greet it; returns what ends it. */
  connect() {
    const handlers = {
      "msg:custom": (message) => this.receive(message),
      "change:setup": () => this.onSetup(),
      "change:state": () => {
        this.state = this.model.get("state") ?? {};
        this.paintStatus();
      },
    };
    for (const [name, handler] of Object.entries(handlers)) this.model.on(name, handler);
    const timer = setInterval(() => this.onTimer(), 1000);
    this.readNext(this.setup.refresh_every);
    this.send({ type: "hello", pending: this.outbox.actions });
    for (const type of ["act", "want"]) this.sent.set(type, performance.now()); // with it
    return () => {
      clearInterval(timer);
      for (const [name, handler] of Object.entries(handlers)) this.model.off(name, handler);
    };
  }

  send(message) {
    this.sent.set(message.type, performance.now());
    try {
      this.model.send(message);
    } catch {
      // No kernel: what matters is kept and sent with the next "hello".
    }
  }

  receive(message) {
    const { type } = message ?? {};
    if (type === "items") this.onItems(message);
    else if (type === "saved") this.onSaved(message);
    else if (type === "unsaved") this.onUnsaved(message);
    else if (type === "queue") this.onQueue(message);
    else if (type === "read") this.readNext(message.wait);
    else if (type === "problem") this.say(String(message.error));
    else if (type === "revealed") {
      this.revealed.set(message.trace_id, message);
      this.paintReveal();
    }
  }

  onItems({ items, stamp }) {
    this.sent.delete("want");
    const current = this.item;
    for (const item of items ?? []) {
      // Read before it was said to be saved, though it comes after.
      const later = this.lastSaved.get(item.trace_id);
      if (later && stamp < later.stamp) Object.assign(item, later.status);
      this.items.set(item.position, item);
    }
    if (this.search) this.forward(this.position, this.search);
    else if (!same(current, this.item)) this.paint();
    this.ask(AHEAD);
  }

  onSaved({ ids, statuses, stamp }) {
    for (const id of ids) this.outbox.remove(id);
    for (const [trace, status] of Object.entries(statuses)) {
      this.lastSaved.set(trace, { stamp, status });
      Object.assign(this.byTrace(trace) ?? {}, status);
    }
    this.outbox.restartClock();
    this.paintSaved();
    this.askReveal();
  }

  onUnsaved({ ids, error, retry }) {
    // What is tried again is told by the state's message.
    for (const id of retry ? [] : (ids ?? [])) {
      const action = this.outbox.remove(id);
      if (action) this.say(`The ${action.kind === "save" ? "label" : action.kind} of item ${number(action.position + 1)} could not be saved: ${error}`);
    }
    this.paintSaved();
    if (!retry) this.paintReveal(); // an undo that is refused had hidden it
  }

  /** There is more of the queue, or it says something else; places stay. Whoever is through goes on
   * where something is open again. `stay`: nobody asked for that. */
  onQueue({ total, position, stay = false }) {
    if (!stay) {
      this.say("");
      this.announce("The store was read again.");
    }
    this.total = total;
    const { item } = this;
    this.items.clear();
    const isNew = !stay || position !== this.state.position; // else it is one that was skipped
    if (this.done && position < total && isNew) Object.assign(this, { position, done: false });
    // It stays on the page, with what is being typed, until it comes again.
    else if (item) this.items.set(this.position, item);
    this.send({ type: "want", start: this.position, count: BEHIND });
    if (this.item) this.paintStatus();
    else this.paint();
  }

  /** Ask for what is missing ahead where fewer than `least` are there; one request at a time. */
  ask(least = AHEAD / 2) {
    if (this.sent.has("want")) return;
    const last = Math.min(this.position + AHEAD, this.total - 1);
    let missing = this.position;
    while (missing <= last && this.items.has(missing)) missing += 1;
    // The request goes out early enough for the answer to be here in time, not for every key.
    if (missing <= last && (missing - this.position < least || last === this.total - 1)) {
      this.send({ type: "want", start: missing, count: BEHIND });
    } else if (this.position > 0 && !this.items.has(this.position - 1)) {
      const start = Math.max(0, this.position - BEHIND);
      this.send({ type: "want", start, count: this.position - start });
    }
  }

  askReveal() {
    const { item } = this;
    if (!this.setup.reveal || !item || this.done || this.revealed.has(item.trace_id)) return;
    if (this.isOfferedAgain(item)) return; // first it is answered anew, then it is compared
    // Only after one's own label is in the store.
    if (!item.done || this.isWaiting(item)) return;
    this.send({ type: "reveal", trace_id: item.trace_id });
  }

  onTimer() {
    // A panel made anew, after a restart of the kernel, saves what an older view of it still holds.
    const settled = this.outbox.size ? this.outbox.settledElsewhere() : [];
    for (const { id } of settled) this.outbox.remove(id);
    if (settled.length) this.paintSaved();
    // What was sent and is not answered is sent again.
    const isOverdue = (type) => performance.now() - this.sent.get(type) > RETRY_AFTER;
    if (this.outbox.size && isOverdue("act")) this.send({ type: "act", actions: this.outbox.actions });
    if (isOverdue("want")) {
      this.sent.delete("want");
      this.ask();
    }
    if (isOverdue("reveal")) this.askReveal();
    if (performance.now() > this.readAt && !document.hidden) {
      this.readNext(null); // one at a time
      this.send({ type: "refresh", stay: true });
    }
    this.paintSaving();
  }

  /** Have the store read again in so many seconds, for what is done elsewhere; null: not at all. */
  readNext(seconds) {
    this.readAt = performance.now() + 1000 * (seconds ?? Infinity);
  }

  // -- items and their labels

  byTrace(trace) {
    return [...this.items.values()].find((item) => item.trace_id === trace);
  }

  /** Whether something was done to an item that is not saved yet. */
  isWaiting(item) {
    return !!this.outbox.last(item.trace_id);
  }

  /** What waits to be saved, by trace: {done, skipped}. */
  get waiting() {
    return new Map(this.outbox.actions.map((action) => [action.trace_id, statusAfter(action)]));
  }

  /** What the annotator did to an item last, as far as this page knows: {done, skipped}. */
  statusOf(item) {
    const action = this.outbox.last(item.trace_id);
    return action ? statusAfter(action) : { done: item.done, skipped: item.skipped };
  }

  /** Whether a label is offered again and was not answered since. */
  isOfferedAgain(item) {
    return !this.isWaiting(item) && !!item.again;
  }

  /** The answers to the item that is shown: those being given, else those of its label. */
  draft() {
    const { item } = this;
    if (!item) return draftOf(null);
    return this.drafts.get(item.trace_id) ?? draftOf(this.statusOf(item).done ?? item.partial);
  }

  /** The questions that the draft of a labelled item answers otherwise, or for another reason. */
  changesOf(item) {
    const { done } = this.statusOf(item);
    const draft = this.drafts.get(item.trace_id);
    if (!draft || !done) return [];
    const said = ({ value = null, abstain = false } = {}, text = "") => [value, abstain, text.trim()];
    return this.questions.map(({ name }) => name).filter((name) =>
      !same(said(draft.answers[name], draft.rationale[name]), said(latest(done)[name], done.rationale[name])));
  }

  /** The position of the item that was skipped first, as the kernel says, or null. */
  skippedAt() {
    const { position = this.total, progress = {} } = this.state;
    return progress.skipped && position < this.total ? position : null;
  }

  /** Whether no item is open, as the kernel counts. */
  isEverythingDone() {
    const { labelled = 0, skipped = 0, again = 0, total = this.total } = this.state.progress ?? {};
    // The kernel has not counted what waits: a correction changes nothing, an undo opens an item.
    const settled = (item) => Number(!!item && ((!!item.done && !item.again) || !!item.skipped));
    const waiting = [...this.waiting].map(([trace, status]) => settled(status) - settled(this.byTrace(trace)));
    return labelled - again + skipped + waiting.reduce((sum, n) => sum + n, 0) >= total;
  }

  // -- actions

  /** Make an action on a trace and put it into the outbox. */
  act(kind, { trace_id: trace, position }, more = {}) {
    this.tick();
    const action = {
      id: `${Date.now()}-${Math.random().toString(16).slice(2)}`, // also where a page may not use crypto
      kind, position, trace_id: trace, at: this.lastAt = Math.max(Date.now(), this.lastAt + 1), seconds: Math.round(this.spent / 100) / 10,
      answers: {}, rationale: {}, undoes: null, after_reveal: this.revealed.has(trace), ...more,
    };
    this.spent = 0;
    this.outbox.add(action);
    return action;
  }

  /** Save or skip the item that is shown; what it was before can be restored by undo. */
  actOnItem(kind, more = {}) {
    const { item } = this;
    // The versions of the rubrics that are shown, 0 for none, whatever they are since.
    const rubrics = Object.fromEntries(this.questions.map((question) => [question.name, question.rubric_version ?? 0]));
    const action = this.act(kind, item, { rubrics, before: this.statusOf(item), ...more });
    this.undoable.push(action);
    this.drafts.delete(item.trace_id);
    return action;
  }

  /** Take the last save or skip back; returns the action, or null where there is none. */
  undoLast() {
    const last = this.undoable.pop();
    if (!last) return null;
    const held = this.items.get(last.position);
    const given = held ? this.statusOf(held).done : null;
    const action = this.act("undo", last, { undoes: last.id, seconds: 0, before: last.before });
    // What was undone is offered again, as a choice that is not saved.
    if (given) this.drafts.set(last.trace_id, draftOf(given));
    return action;
  }

  tick() {
    const now = performance.now();
    this.spent += Math.min(now - this.alive, IDLE);
    this.alive = now;
  }
}
