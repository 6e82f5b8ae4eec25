// The questions of an item with their answers and reasons.

const hueStyle = (choice) => `--wb-hue: ${choice?.hue ?? 220}`;

/** An answer in the words of its question, with its colour. */
function valueChip(question, value) {
  const choice = choiceOf(question, value);
  return h("span", { class: "wb-chip wb-value-chip", dir: "auto" },
    choice ? h("i", { style: hueStyle(choice) }) : null, visible(inWords(question, { value })));
}

/** What stands on the button of an answer: its key, and the label unless that is the key. */
function choiceFace({ label, keys }) {
  const [first] = keys;
  const shown = (...text) => h("span", { dir: "auto" }, text);
  if (label === first) return shown(h("b", { class: "wb-figure" }, label));
  if (/^\d$/.test(first) && label.startsWith(first)) return shown(key(first), visible(label.slice(1)));
  const isUnderlined = keys.length > 1 && keys.includes(label[0].toLowerCase());
  return [first ? key(first) : null, isUnderlined ? shown(h("u", null, label[0]), visible(label.slice(1))) : shown(visible(label))];
}

/** The form of a panel: what is chosen and typed is the panel's draft. */
class Form {
  constructor(panel) {
    this.panel = panel;
    this.rows = [];
    this.active = 0; // the question that keys answer
    this.box = h("div", { class: "wb-answers" });
    this.which = h("span", { class: "wb-which" });
    const arrow = (sign, name, step, keys) => panel.button(sign, null, () => this.step(step), { class: "wb-small wb-arrow", "aria-label": name, title: `${name} (${sign})`, "aria-keyshortcuts": keys });
    this.switcher = h("div", { class: "wb-switcher", hidden: true }, this.which,
      arrow("↑", "Previous question", -1, "ArrowUp"), arrow("↓", "Next question", 1, "ArrowDown"));
  }

  get hasMany() {
    return this.panel.questions.length > 1;
  }

  // -- building

  build() {
    const fields = () => this.rows.flatMap(({ reason, input }) => [reason, input]);
    const held = fields().indexOf(document.activeElement);
    this.rows = this.panel.questions.map((question, index) => this.buildQuestion(question, index));
    this.box.classList.toggle("wb-many", this.hasMany);
    this.box.replaceChildren(...this.rows.map(({ box }) => box));
    this.switcher.hidden = !this.hasMany;
    this.setActive(Math.min(this.active, Math.max(this.rows.length - 1, 0)));
    fields()[held]?.focus({ preventScroll: true }); // what is typed on would be taken for keys
  }

  buildQuestion(question, index) {
    const { panel } = this;
    const { choices, title: name } = question;
    const choiceButton = (value, abstain, props, face) => h("button", {
      type: "button", "aria-pressed": "false", onclick: () => panel.rate(index, { value, abstain }), ...props,
    }, face);
    const buttons = choices.map((choice) => choiceButton(choice.value, false,
      { class: "wb-choice", "aria-keyshortcuts": choice.keys.join(" "), style: hueStyle(choice) }, choiceFace(choice)));
    const abstain = choiceButton(null, true, { class: "wb-choice wb-abstain", "aria-keyshortcuts": "x" }, [key("x"), h("span", null, "Can't judge")]);
    const input = choices.length ? null : this.buildInput(question);
    const reason = h("textarea", { class: "wb-rationale", dir: "auto", rows: this.hasMany ? 1 : 2, "aria-label": `Reason: ${name}`, placeholder: "reason (optional)", title: "Enter saves, Shift+Enter begins a new line", oninput: () => this.edit((draft) => { draft.rationale[question.name] = reason.value; }) });
    const why = h("button", { type: "button", class: "wb-small", "aria-keyshortcuts": "r", onclick: () => reason.focus() }, "Why? ", key("r"));
    // Numbers stand in a row, and so do many short answers.
    const isScale = choices.length && choices.every(({ label }) => label.length <= 3 && (choices.length > 5 || /^[-+]?\d+$/.test(label)));
    const answers = h("div", { class: "wb-choices" }, buttons, input, abstain);
    const optional = question.required === false ? quiet(" (may be left out)") : null;
    // Where the panel has the question's name above it, once is enough.
    const head = !this.hasMany && panel.setup.title === name ? null : h("div", { class: "wb-asked", dir: "auto" }, visible(name), optional);
    const box = h("div", { class: `wb-question${isScale ? " wb-scale" : ""}`, role: "group", "aria-label": name, tabindex: -1, onfocusin: () => this.setActive(index) },
      head, this.buildRubric(question), answers, h("div", { class: "wb-why" }, why, reason));
    return { box, answers, buttons, abstain, input, reason };
  }

  buildInput(question) {
    const { kind, low, high, integer, title } = question;
    const oninput = ({ target }) => this.answerByText(question, target.value);
    const props = { class: "wb-input", dir: "auto", "aria-label": title, oninput };
    if (kind === "text") return h("textarea", { ...props, rows: 2, placeholder: "type your answer", title: "Enter saves, Shift+Enter begins a new line" });
    const range = [low, high].every((each) => typeof each === "number") ? `${low} to ${high}` : integer ? "a whole number" : "a number";
    return h("input", { ...props, inputmode: "decimal", autocomplete: "off", placeholder: range });
  }

  buildRubric(question) {
    if (!question.rubric?.trim()) return null;
    const version = typeof question.rubric_version === "number" ? ` · version ${question.rubric_version}` : "";
    return h("details", { class: "wb-rubric", open: !this.hasMany && this.panel.words.opensRubric },
      h("summary", null, "Rubric", quiet(version)), boxed(question.rubric_blocks, "Rubric"));
  }

  // -- what is shown and typed

  paint() {
    const { panel } = this;
    const draft = panel.draft();
    const locked = !panel.item || !!panel.item.gone;
    panel.questions.forEach((question, n) => {
      const { buttons, abstain, input, reason, box } = this.rows[n];
      const answer = draft.answers[question.name];
      const press = (button, isPressed) => {
        button.setAttribute("aria-pressed", String(isPressed));
        button.disabled = locked;
      };
      buttons.forEach((button, k) => press(button, !!answer && !answer.abstain && same(answer.value, question.choices[k].value)));
      press(abstain, !!answer?.abstain);
      box.classList.toggle("wb-answered", !!answer);
      const show = (field, text) => {
        if (field.value !== text) field.value = text;
        field.disabled = locked;
      };
      if (input) show(input, draft.typed?.[question.name] ?? String(answer?.value ?? ""));
      show(reason, draft.rationale[question.name] ?? "");
      input?.classList.toggle("wb-wrong", question.kind !== "text" && !!input.value.trim() && this.readNumber(question, input.value) === null);
    });
    panel.paintItemState();
  }

  /** Take over what was typed for the item that is shown. */
  edit(change) {
    const draft = this.panel.draft();
    change(draft);
    this.panel.drafts.set(this.panel.item.trace_id, draft);
    this.paint();
  }

  answerByText(question, typed) {
    const value = question.kind === "text" ? typed : this.readNumber(question, typed);
    this.edit((draft) => {
      const { answers } = draft;
      draft.typed = { ...draft.typed, [question.name]: typed }; // it stays, whatever it is read as
      if (typed.trim() && value !== null) answers[question.name] = { value, abstain: false };
      else if (typed.trim() || !answers[question.name]?.abstain) delete answers[question.name];
    });
  }

  /** A typed number, or null where it is none that the question takes. */
  readNumber({ low, high, integer }, typed) {
    const value = typedNumber(typed);
    const fits = (integer ? Number.isInteger(value) : Number.isFinite(value)) && value >= (low ?? -Infinity) && value <= (high ?? Infinity);
    return fits ? value : null;
  }

  /** What a key answers to the active question, or null. */
  actionOf(pressed) {
    const question = this.panel.questions[this.active];
    const choice = question?.choices.find(({ keys }) => keys.includes(pressed.toLowerCase()));
    if (choice) return () => this.panel.rate(this.active, { value: choice.value, abstain: false });
    const input = this.rows[this.active]?.input;
    const isText = question?.kind === "text";
    if (!input || pressed.length !== 1 || !(isText || /^[\d.,-]$/.test(pressed))) return null;
    return () => {
      input.value = isText ? input.value + pressed : pressed;
      input.focus();
      this.answerByText(question, input.value);
    };
  }

  // -- the active question

  setActive(index) {
    this.active = index;
    this.rows.forEach((row, n) => row.box.classList.toggle("wb-active", n === index && this.hasMany));
    if (this.hasMany) this.which.replaceChildren(`Question ${index + 1} of ${this.rows.length}`);
    this.keepInView();
  }

  /** To a question, and the focus with it: on an answer Enter would choose that. */
  moveTo(index) {
    if (this.box.contains(document.activeElement)) this.rows[index].box.focus({ preventScroll: true });
    this.setActive(index);
  }

  /** On to the next question that can be answered by a key and has no answer. */
  toOpen() {
    const { answers } = this.panel.draft();
    const open = this.panel.questions.findIndex(({ name, choices }) => !answers[name] && choices.length);
    if (this.hasMany && open >= 0) this.moveTo(open);
    else if (document.activeElement?.matches('.wb-choice[aria-pressed="false"]')) this.moveTo(this.active);
  }

  step(step) {
    this.setActive((this.active + step + this.rows.length) % this.rows.length);
    this.rows[this.active].box.focus({ preventScroll: true });
  }

  /** The answers of the active question stay in view, whatever else takes the room. */
  keepInView() {
    const row = this.rows[this.active];
    if (!row) return;
    const pane = this.box.getBoundingClientRect();
    for (const part of this.hasMany ? [row.box, row.answers] : [row.answers]) {
      const { top, bottom } = part.getBoundingClientRect();
      // Its end first, but not at the cost of its beginning; the answers before the rest.
      if (bottom > pane.bottom) this.box.scrollTop += Math.min(bottom - pane.bottom, top - pane.top);
      else if (top < pane.top) this.box.scrollTop -= pane.top - top;
    }
  }
}
