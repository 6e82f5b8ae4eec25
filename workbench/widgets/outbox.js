// What waits in the browser until the store has it.

/** Actions that the store has not confirmed. The browser keeps them over a reload of the page, and
 * they are sent until they are answered. */
class Outbox {
  constructor(panelKey, send) {
    this.prefix = `workbench:${panelKey}:`;
    this.send = send;
    this.actions = new Map(); // by id
    this.isKept = true; // whether the browser keeps them when the page is closed
    this.sequence = 0;
    this.queued = []; // about to be sent
    this.waitingSince = null; // when the oldest action that is not confirmed was sent
    this.wait = RETRY_AFTER;
    this.isLate = false; // whether something had to be sent again
    for (const { action } of this.stored()) this.actions.set(action.id, action);
    this.restartClock();
  }

  get size() {
    return this.actions.size;
  }

  list() {
    return [...this.actions.values()];
  }

  /** Keep an action; `post` sends it. */
  add(action) {
    this.actions.set(action.id, action);
    this.write(`act:${action.id}`, { action, seq: this.sequence++ });
  }

  /** Send an action once the next item is on the page: writing to the socket takes time. */
  post(action) {
    const isFirst = !this.queued.length;
    // What waits of the same trace goes along, before it: it may have been lost on its way, and
    // sent again later it would undo this action.
    for (const one of this.list()) if (one.trace_id === action.trace_id && !this.queued.includes(one)) this.queued.push(one);
    this.waitingSince ??= performance.now();
    if (isFirst) setTimeout(() => this.send({ type: "act", actions: this.queued.splice(0) }), 0);
  }

  /** Forget an action that is settled; returns it, or undefined. */
  remove(id) {
    const action = this.actions.get(id);
    this.actions.delete(id);
    this.attempt(() => localStorage.removeItem(`${this.prefix}act:${id}`));
    if (!this.size) this.restartClock();
    return action;
  }

  restartClock() {
    this.waitingSince = this.size ? performance.now() : null;
    this.wait = RETRY_AFTER;
    if (!this.size) this.isLate = false;
  }

  /** Send again what was not answered in time, each time after twice the wait. */
  retry() {
    if (this.waitingSince === null || performance.now() - this.waitingSince <= this.wait) return;
    this.send({ type: "act", actions: this.list() });
    this.waitingSince = performance.now();
    this.isLate = true;
    this.wait = Math.min(2 * this.wait, 8 * RETRY_AFTER);
  }

  get isStuck() {
    return this.size > 0 && (this.isLate || performance.now() - this.waitingSince > RETRY_AFTER);
  }

  /** The actions that another view of the same panel has settled: those are no longer stored. */
  settledElsewhere() {
    if (!this.isKept) return [];
    const ids = new Set(this.stored().map(({ action }) => action.id));
    return this.isKept ? this.list().filter(({ id }) => !ids.has(id)) : [];
  }

  // -- the browser's storage

  stored() {
    const names = this.attempt(() => Object.keys(localStorage)) ?? [];
    const found = names.filter((name) => name.startsWith(`${this.prefix}act:`))
      .map((name) => this.read(name.slice(this.prefix.length), null)).filter((entry) => entry?.action?.id);
    return found.sort((a, b) => a.action.at - b.action.at || a.seq - b.seq);
  }

  write(name, value) {
    this.attempt(() => localStorage.setItem(this.prefix + name, JSON.stringify(value)));
  }

  read(name, otherwise) {
    const text = this.attempt(() => localStorage.getItem(this.prefix + name));
    try {
      return JSON.parse(text) ?? otherwise;
    } catch {
      return otherwise; // Cut short, or not written by a panel.
    }
  }

  /** Use the storage, which may be full or forbidden. */
  attempt(use) {
    try {
      return use();
    } catch {
      this.isKept = false;
      return null;
    }
  }
}
