// What the label panel and the adjudication panel share: shows items, takes ratings, keeps what is
// not saved yet. The module of a panel is this file followed by its own, which exports the view.
//
// It decides nothing about labels: every rating is an action that goes to localStorage first and
// then to the kernel, and counts as saved only when the kernel says that the store has it. Items
// ahead are held here, so that a key is answered without asking the kernel.
//
// What a trace holds is hostile. Nothing in this file parses HTML: text reaches the page as text
// nodes and attributes that `h` sets one by one.

const AHEAD = 220; // items held ahead of the one shown
const BEHIND = 60; // and behind it
const ENOUGH = 8e6; // characters held ahead that are enough, however few items
const STEP = 20000; // characters of one text shown at once
const LONGEST_MARKDOWN = 30000; // longer text is shown as it is
const IDLE = 60000; // ms without a sign of life that count as time spent
const PATIENCE = 15000; // ms until what was not answered is sent again; doubles

// -- elements ---------------------------------------------------------------------------------

/** An element: properties by name, `class`, `data-*` and `aria-*` as attributes, `on*` handlers. */
function h(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  append(node, children);
  return node;
}

function append(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(typeof child === "object" ? child : document.createTextNode(String(child)));
  }
  return node;
}

const key = (name, spoken) => h("kbd", { "aria-label": spoken ?? null }, name);
const count = (n, word, plural) => `${number(n)} ${n === 1 ? word : (plural ?? `${word}s`)}`;
const number = (n) => n.toLocaleString("en");
const same = (a, b) => JSON.stringify(a ?? null) === JSON.stringify(b ?? null);

// -- text -------------------------------------------------------------------------------------

// Characters that do something instead of showing something: controls, those that turn the
// direction of what follows, invisible ones, and the tags in which text can be hidden.
const HIDDEN =
  // eslint-disable-next-line no-control-regex
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u180e\u200b\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]/gu;

/** Text for the page, with characters that would hide or turn others shown by their number. */
function visible(text) {
  const parts = [];
  let from = 0;
  for (const found of text.matchAll(HIDDEN)) {
    if (found[0] === "\r" && text[found.index + 1] === "\n") {
      parts.push(text.slice(from, found.index));
    } else {
      const code = found[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
      parts.push(
        text.slice(from, found.index),
        h("span", { class: "wb-hidden", title: `hidden character U+${code}` }, `U+${code}`),
      );
    }
    from = found.index + found[0].length;
  }
  parts.push(text.slice(from));
  return parts.filter((part) => part !== "");
}

/** Text as it is, in pieces that the browser lays out when they come into view; `length` is that of
 * the whole, where only its beginning is here. */
function plainText(text, length = text.length) {
  const box = h("div", { class: "wb-text", dir: "auto" });
  const show = (from, until) => {
    for (let at = from; at < until; ) {
      let end = Math.min(at + 4000, until);
      if (end < until) {
        const line = text.lastIndexOf("\n", end);
        if (line > at) end = line + 1;
        else if (/[\ud800-\udbff]/.test(text[end - 1])) end -= 1;
      }
      box.append(append(h("span", { class: "wb-piece" }), visible(text.slice(at, end))));
      at = end;
    }
    if (until < text.length) {
      const next = Math.min(until + 10 * STEP, text.length);
      const more = h(
        "button",
        {
          type: "button",
          class: "wb-more",
          onclick: () => {
            more.remove();
            show(until, next);
          },
        },
        `Show ${number(next - until)} more of ${number(length)} characters`,
      );
      box.append(more);
    }
  };
  show(0, Math.min(STEP, text.length));
  return box;
}

// -- Markdown ---------------------------------------------------------------------------------

/** Markdown as elements. HTML in it is text, pictures are named and not loaded. */
function markdown(text, depth = 0) {
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  const out = [];
  let i = 0;
  const isItem = (line) => /^\s{0,12}([-*+]|\d{1,9}[.)])\s+\S/.test(line);
  const startsBlock = (line) =>
    /^(\s{0,3}(#{1,6}\s|>|```|~~~)|\s{0,3}([-*_])(\s*\3){2,}\s*$)/.test(line) || isItem(line);
  while (i < lines.length) {
    const line = lines[i];
    if (!line.trim()) {
      i += 1;
      continue;
    }
    let found;
    if ((found = line.match(/^\s{0,3}(```+|~~~+)\s*([\w+#.-]{0,20})/))) {
      const body = [];
      const fence = found[1];
      for (i += 1; i < lines.length && !lines[i].trimStart().startsWith(fence); i++) body.push(lines[i]);
      i += 1;
      out.push(h("pre", { class: "wb-code", tabindex: 0 }, h("code", null, visible(body.join("\n")))));
    } else if ((found = line.match(/^\s{0,3}(#{1,6})\s+(.*)$/))) {
      // The panel's own headings come first: those of a text are under them.
      out.push(h("div", { class: `wb-h wb-h${found[1].length}`, role: "heading", "aria-level": Math.min(found[1].length + 3, 6), dir: "auto" }, inline(unclosed(found[2]))));
      i += 1;
    } else if (/^\s{0,3}([-*_])(\s*\1){2,}\s*$/.test(line)) {
      out.push(h("hr"));
      i += 1;
    } else if (/^\s{0,3}>/.test(line) && depth < 5) {
      const body = [];
      for (; i < lines.length && /^\s{0,3}>/.test(lines[i]); i++) body.push(lines[i].replace(/^\s{0,3}> ?/, ""));
      out.push(h("blockquote", { dir: "auto" }, markdown(body.join("\n"), depth + 1)));
    } else if (isItem(line) && depth < 5) {
      const [list, next] = listFrom(lines, i, depth, isItem);
      out.push(list);
      i = next;
    } else if (line.includes("|") && i + 1 < lines.length && /^\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?$/.test(lines[i + 1].trim())) {
      const rows = [cells(line)];
      for (i += 2; i < lines.length && lines[i].includes("|") && lines[i].trim(); i++) rows.push(cells(lines[i]));
      const [head, ...body] = rows;
      out.push(
        h("div", { class: "wb-table", tabindex: 0 },
          h("table", null,
            h("thead", null, h("tr", null, head.map((c) => h("th", { dir: "auto" }, inline(c))))),
            h("tbody", null, body.map((row) => h("tr", null, row.map((c) => h("td", { dir: "auto" }, inline(c)))))))),
      );
    } else {
      const body = [line];
      for (i += 1; i < lines.length && lines[i].trim() && !startsBlock(lines[i]); i++) body.push(lines[i]);
      const paragraph = h("p", { dir: "auto" });
      body.forEach((each, n) => {
        if (n) paragraph.append(h("br"));
        append(paragraph, inline(each.trim() === each ? each : each.trim()));
      });
      out.push(paragraph);
    }
  }
  return out;
}

/** A heading without the signs that may close it. Not by one pattern, which would try every split
 * of the spaces within: a line of a trace may be made to hold up whoever reads it. */
function unclosed(heading) {
  let end = heading.trimEnd().length;
  while (heading[end - 1] === "#") end -= 1;
  return heading.slice(0, end).trimEnd();
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).slice(0, 50).map((c) => c.trim().replace(/\\\|/g, "|"));
}

function listFrom(lines, start, depth, isItem) {
  const indent = (line) => line.match(/^\s*/)[0].length;
  const first = lines[start].match(/^\s*(?:([-*+])|(\d{1,9})[.)])/);
  const ordered = first[2] !== undefined;
  const list = h(ordered ? "ol" : "ul", ordered ? { start: Number(first[2]) } : null);
  const base = indent(lines[start]);
  let i = start;
  while (i < lines.length && isItem(lines[i]) && indent(lines[i]) <= base + 1) {
    const number = /^\s*\d/.test(lines[i]);
    if (number !== ordered) break;
    const body = [lines[i].replace(/^\s*([-*+]|\d{1,9}[.)])\s+/, "")];
    for (i += 1; i < lines.length; i++) {
      const blank = !lines[i].trim();
      const deeper = indent(lines[i]) > base + 1;
      if (blank ? !(i + 1 < lines.length && indent(lines[i + 1]) > base + 1 && lines[i + 1].trim()) : !deeper) break;
      body.push(lines[i].slice(Math.min(indent(lines[i]), base + 2)));
    }
    const parts = body.length === 1 ? inline(body[0]) : markdown(body.join("\n"), depth + 1);
    list.append(append(h("li", { dir: "auto" }), [parts]));
    while (i + 1 < lines.length && !lines[i].trim() && isItem(lines[i + 1]) && indent(lines[i + 1]) <= base + 1) i += 1;
  }
  return [list, i];
}

const SPECIAL = /[\\`*_~[!]|https?:\/\//g;

/** What stands in a line: code, emphasis, links. Linear: a sign without a partner is looked for once. */
function inline(text, depth = 0) {
  if (depth > 5 || text.length > 8000) return visible(text);
  const out = [];
  const missing = new Set();
  let from = 0;
  let at = 0;
  const closing = (sign, start) => {
    if (missing.has(sign)) return -1;
    const end = text.indexOf(sign, start);
    if (end < 0) missing.add(sign);
    return end;
  };
  const take = (node, until) => {
    out.push(...visible(text.slice(from, at)), node);
    from = at = until;
  };
  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const found = SPECIAL.exec(text);
    if (!found) break;
    at = found.index;
    const sign = found[0];
    if (sign === "\\" && /[\\`*_~[\]!#>|.(){}+-]/.test(text[at + 1] ?? "")) {
      take(text[at + 1], at + 2);
    } else if (sign === "`") {
      const ticks = text.slice(at).match(/^`+/)[0];
      const end = closing(ticks, at + ticks.length);
      if (end > 0) take(h("code", null, visible(text.slice(at + ticks.length, end))), end + ticks.length);
      else at += ticks.length;
    } else if (sign === "*" || sign === "_" || sign === "~") {
      const twice = text[at + 1] === sign;
      const mark = twice ? sign + sign : sign;
      const before = text[at - 1] ?? " ";
      const opens = /\S/.test(text[at + mark.length] ?? " ") && !(sign === "_" && /\w/.test(before)) && (twice || sign !== "~");
      let end = opens ? closing(mark, at + mark.length + 1) : -1;
      if (end > 0 && (/\s/.test(text[end - 1]) || (sign === "_" && /\w/.test(text[end + mark.length] ?? " ")))) end = -1;
      if (end > 0) {
        const tag = sign === "~" ? "s" : twice ? "strong" : "em";
        take(h(tag, null, inline(text.slice(at + mark.length, end), depth + 1)), end + mark.length);
      } else at += mark.length;
    } else if (sign === "[" || sign === "!") {
      const picture = sign === "!" && text[at + 1] === "[";
      const start = at + (picture ? 2 : 1);
      const end = sign === "[" || picture ? closing("](", start) : -1;
      const stop = end > 0 ? closing(")", end) : -1;
      const inner = end > 0 ? text.slice(start, end) : "";
      if (stop > 0 && stop - at < 4000 && !inner.includes("[")) {
        const target = text.slice(end + 2, stop).trim().split(/\s/)[0];
        take(picture ? pictureNamed(inner, target) : link(inner, target, depth), stop + 1);
      } else at += 1;
    } else {
      const address = text.slice(at).match(/^https?:\/\/[^\s<>"'`|\\^{}\]]+/)?.[0].replace(/[.,;:!?)]+$/, "");
      if (address && address.length > 8) take(link(address, address, 9), at + address.length);
      else at += sign.length;
    }
  }
  out.push(...visible(text.slice(from)));
  return out;
}

/** A link where it leads to the web, with its host told where the text is another; else text. */
function link(text, target, depth) {
  const label = depth < 9 ? inline(text, depth + 1) : visible(text);
  let url = null;
  try {
    url = new URL(target);
  } catch {
    // Not an address by itself: shown as text.
  }
  if (!url || !["http:", "https:"].includes(url.protocol) || url.username || url.password) {
    return h("span", { class: "wb-nolink" }, label, " ", h("span", { class: "wb-quiet" }, "(", visible(target), ")"));
  }
  const told = text.includes(url.host) ? null : h("span", { class: "wb-quiet" }, ` (${url.host})`);
  return h("span", null, h("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow", referrerpolicy: "no-referrer", title: url.href }, label), told);
}

function pictureNamed(alt, target) {
  return h("span", { class: "wb-chip", title: target.slice(0, 300) }, "picture, not loaded: ", visible(alt || target.slice(0, 80)));
}

// -- JSON -------------------------------------------------------------------------------------

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

/** Where a value stands in an item, and what of the item was cut: `cuts` is path -> true length. */
const below = (at, name) => ({ ...at, path: typeof name === "number" ? `${at.path}[${name}]` : `${at.path}.${name}` });
const lengthAt = (value, at) => at.cuts[at.path] ?? (typeof value === "string" ? value.length : 0);

/** The length of a long text, for the line above it. */
function lengthTold(value, at) {
  const length = lengthAt(value, at);
  return length > 3000 ? h("span", { class: "wb-length" }, ` ${count(length, "character")}`) : null;
}

/** JSON as a tree; what lies deeper is made when it is opened. */
function tree(value, at, name = null, level = 0) {
  const label = name === null ? null : h("span", { class: "wb-key" }, visible(String(name)), h("span", { class: "wb-quiet" }, ": "));
  if (value === null || typeof value !== "object") return h("div", { class: "wb-leaf" }, label, leaf(value, at));
  const entries = Array.isArray(value) ? value.map((v, n) => [n, v]) : Object.entries(value);
  const size = Array.isArray(value) ? `[${count(entries.length, "entry", "entries")}]` : `{${count(entries.length, "field")}}`;
  if (!entries.length) return h("div", { class: "wb-leaf" }, label, h("span", { class: "wb-quiet" }, Array.isArray(value) ? "[]" : "{}"));
  const children = h("div", { class: "wb-children" });
  const fill = (from) => {
    const until = Math.min(from + 100, entries.length);
    for (const [each, held] of entries.slice(from, until)) children.append(tree(held, below(at, each), each, level + 1));
    if (until < entries.length) {
      const more = h("button", { type: "button", class: "wb-more", onclick: () => { more.remove(); fill(until); } }, `Show more of ${count(entries.length, "entry", "entries")}`);
      children.append(more);
    }
  };
  const open = level < 2 && entries.length <= 40;
  if (open) fill(0);
  const details = h("details", { class: "wb-node", open, ontoggle: () => details.open && !children.childNodes.length && fill(0) },
    h("summary", null, label, h("span", { class: "wb-quiet" }, size)), children);
  return details;
}

function leaf(value, at) {
  if (typeof value !== "string") return h("span", { class: "wb-value" }, String(value));
  if (value.length <= 600) return h("span", { class: "wb-string", dir: "auto" }, visible(value));
  const length = lengthAt(value, at);
  const box = h("span", { class: "wb-string", dir: "auto" }, visible(value.slice(0, 300)), "… ");
  const more = h("button", { type: "button", class: "wb-more", onclick: () => box.replaceChildren(plainText(value, length)) },
    length > value.length ? `Show ${number(value.length)} of ${number(length)} characters` : `Show all ${number(length)} characters`);
  box.append(more);
  return box;
}

// -- reading ----------------------------------------------------------------------------------

const isTurn = (each) => isObject(each) && typeof each.role === "string" && ("content" in each || "tool_calls" in each);
const isChat = (value) => Array.isArray(value) && value.length > 0 && value.every(isTurn);

/** A value as a person reads it. */
function reading(value, at, raw = false) {
  if (raw) return typeof value === "string" ? plainText(value, lengthAt(value, at)) : plainText(JSON.stringify(value, null, 2));
  if (typeof value === "string") return prose(value, at);
  if (isChat(value)) return chat(value, at);
  if (Array.isArray(value?.choices) && value.choices.some((c) => isTurn(c?.message))) {
    const within = below(at, "choices");
    const turns = value.choices.map((c, n) => [c.message, below(below(within, n), "message")]).filter(([message]) => isTurn(message));
    return [chat(turns.map(([message]) => message), within, turns.map(([, place]) => place)), rest(value, at, "choices")];
  }
  if (isChat(value?.messages)) return [chat(value.messages, below(at, "messages")), rest(value, at, "messages")];
  if (isObject(value)) {
    const fields = Object.entries(value);
    if (fields.length === 1 && typeof fields[0][1] !== "object") return field(...fields[0], at);
    if (fields.length && fields.length <= 20) return fields.map(([name, each]) => field(name, each, at));
  }
  if (Array.isArray(value) && value.length && value.length <= 50 && value.every((each) => typeof each === "string")) {
    return h("ol", { class: "wb-list" }, value.map((each, n) => h("li", null, lengthTold(each, below(at, n)), prose(each, below(at, n)))));
  }
  return h("div", { class: "wb-tree" }, tree(value, at));
}

function rest(value, at, without) {
  const others = Object.fromEntries(Object.entries(value).filter(([name]) => name !== without));
  return Object.keys(others).length ? h("div", { class: "wb-tree wb-rest" }, tree(others, at, "other fields", 2)) : null;
}

function field(name, value, around) {
  const at = below(around, name);
  return h("div", { class: "wb-field" },
    h("div", { class: "wb-fieldname" }, visible(name), lengthTold(value, at)),
    value !== null && typeof value === "object" ? reading(value, at) : typeof value === "string" ? prose(value, at) : h("div", { class: "wb-value" }, String(value)));
}

function prose(text, at) {
  if (!text) return h("div", { class: "wb-quiet" }, "(empty text)");
  const trimmed = text.trimStart();
  if (/^[[{]/.test(trimmed) && text.length <= 200000) {
    try {
      const data = JSON.parse(text);
      return isChat(data) ? chat(data, at) : h("div", { class: "wb-tree" }, tree(data, at));
    } catch {
      // Text that begins like JSON.
    }
  }
  if (text.length > LONGEST_MARKDOWN) {
    return [h("div", { class: "wb-note" }, `Longer than ${number(LONGEST_MARKDOWN)} characters: shown as plain text, without Markdown.`), plainText(text, lengthAt(text, at))];
  }
  return h("div", { class: "wb-prose", dir: "auto" }, markdown(text));
}

/** Chat messages as turns; `places` where they do not stand one after the other. */
function chat(turns, at, places = turns.map((_, n) => below(at, n))) {
  const shown = turns.slice(0, 100).map((turn, n) => {
    const role = /^(system|developer|user|assistant|tool|function)$/.test(turn.role) ? turn.role : "other";
    const place = below(places[n], "content");
    const parts = [turn.content ?? []].flat(1).map((part, k) => {
      const within = Array.isArray(turn.content) ? below(place, k) : place;
      if (typeof part === "string") return [part === turn.content ? null : lengthTold(part, within), prose(part, within)];
      if (typeof part?.text === "string") return [lengthTold(part.text, below(within, "text")), prose(part.text, below(within, "text"))];
      const address = part?.image_url?.url ?? part?.image_url;
      if (typeof address === "string") return pictureNamed("", address);
      return h("div", { class: "wb-tree" }, tree(part, within));
    });
    const calls = Array.isArray(turn.tool_calls) && turn.tool_calls.length
      ? h("div", { class: "wb-tree" }, tree(turn.tool_calls, below(places[n], "tool_calls"), "tool calls", 1)) : null;
    const name = [turn.role, turn.name].filter((each) => typeof each === "string" && each).join(" · ");
    return h("div", { class: `wb-turn wb-${role}` },
      h("div", { class: "wb-role" }, visible(name), lengthTold(turn.content, place)),
      h("div", { class: "wb-said" }, parts, calls));
  });
  const left = turns.length - shown.length;
  return h("div", { class: "wb-chat" }, shown, left > 0 ? h("div", { class: "wb-tree" }, tree(turns.slice(100), { path: "", cuts: {} }, `${number(left)} more turns`, 2)) : null);
}

// -- what is not saved yet --------------------------------------------------------------------

/** Actions that the store has not confirmed, kept over a reload of the page. */
class Pending {
  constructor(panelKey) {
    this.prefix = `workbench:${panelKey}:`;
    this.actions = new Map();
    this.kept = true; // whether the browser keeps them when the page is closed
    this.seq = 0;
    for (const { action } of this.stored()) this.actions.set(action.id, action);
  }

  stored() {
    const found = [];
    try {
      for (let n = 0; n < localStorage.length; n++) {
        const name = localStorage.key(n);
        if (!name.startsWith(`${this.prefix}act:`)) continue;
        try {
          const entry = JSON.parse(localStorage.getItem(name));
          if (entry?.action?.id) found.push(entry);
        } catch {
          // Not ours, or cut short: leave it.
        }
      }
    } catch {
      this.kept = false;
    }
    return found.sort((a, b) => a.action.at - b.action.at || a.seq - b.seq);
  }

  add(action) {
    this.actions.set(action.id, action);
    this.write(`act:${action.id}`, { action, seq: this.seq++ });
  }

  remove(id) {
    this.actions.delete(id);
    try {
      localStorage.removeItem(`${this.prefix}act:${id}`);
    } catch {
      // Not kept in the first place.
    }
  }

  write(name, value) {
    try {
      localStorage.setItem(this.prefix + name, JSON.stringify(value));
    } catch {
      this.kept = false;
    }
  }

  read(name, otherwise) {
    try {
      return JSON.parse(localStorage.getItem(this.prefix + name)) ?? otherwise;
    } catch {
      return otherwise;
    }
  }

  list() {
    return [...this.actions.values()];
  }
}

// -- the keys of a question -------------------------------------------------------------------

const RESERVED = new Set(["u", "s", "r", "x", "t"]);

/** The answers of a question that have a button: [{value, label, keys}]; empty where one types. */
function choices(question) {
  let values = question.values ?? [];
  const whole = question.kind === "numeric";
  if (whole) {
    const { low, high, integer } = question;
    // A digit means itself: with numbers of two digits but for 10 one types.
    const few = integer && Number.isInteger(low) && Number.isInteger(high) && high >= 0 && high <= 10 && high - low <= 10;
    values = few ? Array.from({ length: high - low + 1 }, (_, n) => ({ value: low + n, label: String(low + n) })) : [];
  }
  const labels = values.map(({ label }) => String(label));
  const digits = digitKeys(labels, values, whole);
  const initials = labels.map((label) => label[0]?.toLowerCase() ?? "");
  const spare = [..."abcdefghijklmnopqvwyz"].filter((letter) => !initials.includes(letter));
  return values.map(({ value }, n) => {
    const keys = digits[n] ? [digits[n]] : [];
    const initial = initials[n];
    if (/^[a-z]$/.test(initial) && !RESERVED.has(initial) && initials.filter((each) => each === initial).length === 1) keys.push(initial);
    if (!keys.length && spare.length) keys.push(spare.shift());
    return { value, label: labels[n], keys };
  });
}

/** The digit that chooses each answer, "" for none: the one that it shows, else its place. */
function digitKeys(labels, values, whole) {
  const keys = labels.map(() => "");
  const claim = (digits) => digits.forEach((digit, n) => {
    if (digit && !keys[n] && !keys.includes(digit) && digits.filter((each) => each === digit).length === 1) keys[n] = digit;
  });
  if (!labels.some((label) => /^[-+]?\d/.test(label))) {
    const numbers = values.map(({ value }) => (Number.isInteger(value) && value >= 0 && value <= 9 ? String(value) : ""));
    if (numbers.length && numbers.every(Boolean)) claim(numbers);
    else claim(labels.map((_, n) => (n < 9 ? String(n + 1) : n === 9 ? "0" : "")));
    return keys;
  }
  claim(labels.map((label) => label.match(/^(\d)(?!\d|[.,]\d)/)?.[1] ?? ""));
  // On a scale from 1 to 10, as on the keyboard.
  if (keys.includes("1")) claim(labels.map((label) => (/^10(?!\d|[.,]\d)/.test(label) ? "0" : "")));
  // "10", "20", "30": the first digit, where it stands for nothing else.
  if (!whole) claim(labels.map((label, n) => (keys[n] ? "" : label.match(/^\d/)?.[0] ?? "")));
  return keys;
}

/** What stands on the button of an answer: its key, and the label unless that is the key. */
function face(label, keys) {
  const [first] = keys;
  const shown = (text) => h("span", { dir: "auto" }, text);
  if (label === first) return shown(h("b", { class: "wb-figure" }, label));
  if (/^\d$/.test(first) && label.startsWith(first)) return h("span", { dir: "auto" }, key(first), visible(label.slice(1)));
  const letter = keys.find((each) => /^[a-z]$/.test(each) && label[0]?.toLowerCase() === each);
  return [
    first ? key(first) : null,
    shown(letter && keys.length > 1 ? [h("u", null, label[0]), visible(label.slice(1))] : visible(label)),
  ];
}

/** An answer in the words of its question. */
function inWords(question, value, abstain = false) {
  if (abstain || value === null || value === undefined) return "Can't judge";
  const known = (question?.values ?? []).find((each) => same(each.value, value));
  if (known) return String(known.label);
  return typeof value === "boolean" ? (value ? "yes" : "no") : String(value);
}

// -- the panel --------------------------------------------------------------------------------

class Panel {
  constructor(model, el, signal) {
    this.model = model;
    this.setup = model.get("setup") ?? {};
    this.state = model.get("state") ?? {};
    this.pending = new Pending(this.setup.panel_key ?? "");
    this.items = new Map(); // position -> item
    this.sizes = new Map(); // position -> characters
    this.drafts = new Map(); // trace id -> {answers, rationale}, of what someone has touched here
    this.over = new Map(); // trace id -> what stands here until the kernel says it
    this.undoable = this.pending.read("history", []);
    this.revealed = new Map(); // trace id -> what the kernel revealed
    this.seen = new Set(this.pending.read("revealed", [])); // traces whose verdicts were shown
    this.failed = []; // {action, error}
    this.total = this.setup.total ?? 0;
    this.position = Math.max(0, this.state.position ?? 0);
    this.active = 0;
    this.raw = false;
    this.done = false; // whether the summary is shown
    this.seeking = false; // whether an item that is done is to be passed over when it arrives
    this.passed = 0; // items that were passed over since the search began
    this.kept = ""; // the trace that is shown while the items are fetched anew
    this.asked = null; // the items that were asked for: {start, count, at, wait}
    this.outbox = [];
    this.lastSaved = new Map(); // by trace: {stamp, done, skipped?}
    this.spent = 0;
    this.alive = performance.now();
    this.since = null; // when the oldest action that is not saved was sent
    this.note = "";
    this.refreshing = false; // whether the store is being read again
    this.offering = false; // whether labels made under an earlier rubric are gone through again
    this.onTheWay = ""; // what is read out once the item looked for is found
    for (const action of this.pending.list()) this.overlay(action);

    this.build(el);
    const listen = (target, name, handler, options) => {
      target.addEventListener(name, handler, { signal, ...options });
    };
    // The notebook must not see keys that are meant for the panel. What it listens for at the
    // document, before the panel, it leaves alone below `data-lm-suppress-shortcuts`.
    listen(this.root, "keydown", (event) => {
      event.stopPropagation();
      this.onKey(event);
    });
    for (const name of ["keyup", "keypress"]) listen(this.root, name, (event) => event.stopPropagation());
    for (const name of ["keydown", "pointermove", "wheel"]) listen(this.root, name, () => this.tick(), { capture: true, passive: true });
    listen(this.root, "focusin", () => this.root.classList.add("wb-focused"));
    listen(this.root, "focusout", (event) => {
      if (!this.root.contains(event.relatedTarget)) this.root.classList.remove("wb-focused");
    });
    // A host that moves the focus to its own element on a click would take the keys away.
    listen(this.root, "mousedown", (event) => {
      event.stopPropagation();
      const within = this.help.hidden ? "button, a, input, textarea, summary, select, [tabindex]:not(.wb)" : "button";
      if (event.target.closest(within)) return;
      if (this.help.hidden) this.root.focus({ preventScroll: true });
      else event.preventDefault(); // the focus stays in the dialog
    });

    const onMessage = (message) => this.receive(message);
    const onSetup = () => this.onSetup();
    const onState = () => {
      this.state = model.get("state") ?? {};
      this.paintStatus();
    };
    model.on("msg:custom", onMessage);
    model.on("change:setup", onSetup);
    model.on("change:state", onState);
    this.timer = setInterval(() => this.onTimer(), 1000);
    this.stop = () => {
      clearInterval(this.timer);
      this.laid.disconnect();
      model.off("msg:custom", onMessage);
      model.off("change:setup", onSetup);
      model.off("change:state", onState);
    };

    this.skipPast();
    this.done = this.total > 0 && this.position >= this.total;
    this.position = Math.min(this.position, Math.max(0, this.total - 1));
    this.paint();
    this.since = this.pending.actions.size ? performance.now() : null;
    this.send({ type: "hello", epoch_seen: this.pending.read("epoch", null), pending: this.pending.list() });
    this.pending.write("epoch", this.setup.epoch ?? null);
    this.ask();
  }

  /** What the panel calls what one does in it. */
  get words() {
    return { panel: "Label panel", done: "labelled", table: "panel.labels", holds: "your labels", summary: "panel.summary()", nothing: "There is nothing to label." };
  }

  // -- talking to the kernel

  send(message) {
    try {
      this.model.send(message);
    } catch {
      // No kernel: what matters is kept and sent with the next "hello".
    }
  }

  post(action) {
    const empty = !this.outbox.length;
    // What waits of the same trace goes along, before it: it may have been lost on its way, and
    // sent again later it would undo what is said now.
    for (const one of this.pending.list()) if (one.trace_id === action.trace_id && !this.outbox.includes(one)) this.outbox.push(one);
    if (this.since === null) this.since = performance.now();
    // After the next item is on the page: writing to the socket takes time.
    if (empty) {
      setTimeout(() => this.send({ type: "act", actions: this.outbox.splice(0) }), 0);
    }
  }

  receive(message) {
    if (this.refreshing && ["items", "queue", "problem"].includes(message?.type)) this.refreshed();
    if (message?.type === "items") this.onItems(message);
    else if (message?.type === "saved") this.onSaved(message);
    else if (message?.type === "unsaved") this.onUnsaved(message);
    else if (message?.type === "revealed") this.onRevealed(message);
    else if (message?.type === "queue") {
      if (this.offering) this.say("");
      this.onQueue(message);
    }
    else if (message?.type === "problem") this.say(String(message.error));
  }

  onItems({ items, stamp }) {
    this.asked = null;
    const current = this.items.get(this.position);
    for (const item of items ?? []) {
      // Read before what was told as saved since, though it comes after.
      const later = this.lastSaved.get(item.trace_id);
      if (later && stamp < later.stamp) Object.assign(item, { done: later.done, skipped: later.skipped ?? item.skipped, again: false });
      this.items.set(item.position, item);
      this.sizes.set(item.position, JSON.stringify([item.inputs, item.outputs]).length);
    }
    for (const position of this.items.keys()) {
      if (position < this.position - 2 * BEHIND || position > this.position + 3 * AHEAD) {
        this.items.delete(position);
        this.sizes.delete(position);
      }
    }
    const found = this.kept && this.byTrace(this.kept);
    this.kept = "";
    // Whoever reads an item keeps it, wherever it stands now.
    if (found) this.position = found.position;
    if (this.seeking) {
      this.forward(this.position, true, this.onTheWay, this.passed);
    } else if (!same(current, this.items.get(this.position))) {
      this.paint();
    }
    this.ask();
  }

  onSaved({ ids, labelled, stamp }) {
    for (const [trace, done] of Object.entries(labelled ?? {})) this.lastSaved.set(trace, { stamp, done });
    for (const id of ids ?? []) {
      const action = this.pending.actions.get(id);
      this.pending.remove(id);
      if (!action) continue;
      const stands = this.over.get(action.trace_id);
      if (stands?.id === id) {
        const item = this.byTrace(action.trace_id);
        if (item) {
          item.done = stands.done;
          item.skipped = stands.skipped;
          item.again = false;
        }
        this.lastSaved.set(action.trace_id, { stamp, done: stands.done, skipped: stands.skipped });
        this.over.delete(action.trace_id);
      }
    }
    for (const [trace, done] of Object.entries(labelled ?? {})) {
      const item = this.byTrace(trace);
      if (item && !this.over.has(trace)) item.done = done;
    }
    if (this.late && !this.pending.actions.size && !this.failed.length) this.announce("All saved.");
    this.since = this.pending.actions.size ? performance.now() : null;
    this.wait = PATIENCE;
    this.paintStatus();
    // It may have been said in another view; in a field that someone types in nothing changes.
    this.paintAnswers(!document.activeElement?.matches("input, textarea"));
    this.askReveal();
  }

  onUnsaved({ ids, error, retry }) {
    // What is tried again is told by the state's message.
    for (const id of retry ? [] : (ids ?? [])) {
      const action = this.pending.actions.get(id);
      if (!action) continue;
      this.failed.push({ action, error });
      if (this.over.get(action.trace_id)?.id === id) this.over.delete(action.trace_id);
      this.pending.remove(id);
    }
    if (!this.pending.actions.size) this.since = null;
    this.paintStatus();
    this.paintItemState();
  }

  onRevealed(message) {
    this.revealed.set(message.trace_id, message);
    this.seen.add(message.trace_id);
    this.pending.write("revealed", [...this.seen].slice(-5000));
    this.paintReveal();
  }

  /** There is more of the queue, or less, or it is in another order. `stay`: nobody asked for that,
   * so whoever is at an item stays there. */
  onQueue({ total, position, stay = false }) {
    const grew = total > this.total;
    const before = this.done ? null : this.item;
    this.total = total;
    const moves = position !== null && position !== undefined && (this.done || !(stay || grew));
    const at = Math.min(moves ? position : this.position, Math.max(0, total - 1));
    const done = moves ? total > 0 && position >= total : this.done;
    this.items.clear();
    this.sizes.clear();
    this.asked = null;
    if (before && total && !done && at === this.position) {
      // It stays on the page, with what is being typed, until it comes again.
      this.items.set(at, before);
      this.kept = before.trace_id;
      this.want(at, Math.min(AHEAD, total - at));
      this.paintStatus();
      return;
    }
    if (!this.done) this.readFields();
    this.position = at;
    this.done = done;
    this.ask();
    this.paint();
  }

  onSetup() {
    const before = this.setup;
    this.setup = this.model.get("setup") ?? {};
    if (!same(before.questions, this.setup.questions)) this.buildQuestions();
    this.paint();
  }

  /** Ask for what is missing ahead; one request at a time. */
  ask(full = false) {
    if (full) {
      this.send({ type: "want", start: this.position, count: 1, full: true });
      return;
    }
    if (this.asked) return;
    let held = 0;
    let missing = null;
    const last = Math.min(this.position + AHEAD, this.total - 1);
    for (let at = this.position; at <= last && missing === null; at++) {
      if (!this.items.has(at)) missing = at;
      held += this.sizes.get(at) ?? 0;
    }
    // The request goes out early enough for the answer to be here in time, not for every key.
    const near = missing !== null && (missing - this.position < AHEAD / 2 || last === this.total - 1);
    if (near && (held < ENOUGH || missing - this.position < 10)) {
      this.want(missing, Math.min(AHEAD, this.total - missing));
    } else if (this.position > 0 && !this.items.has(this.position - 1)) {
      const start = Math.max(0, this.position - BEHIND);
      this.want(start, this.position - start);
    }
  }

  want(start, wanted) {
    this.asked = { start, count: wanted, at: performance.now() };
    this.send({ type: "want", start, count: wanted });
  }

  onTimer() {
    this.wait ??= PATIENCE;
    const now = performance.now();
    if (this.since !== null && now - this.since > this.wait) {
      this.send({ type: "act", actions: this.pending.list() });
      this.since = now;
      this.late = true;
      this.wait = Math.min(2 * this.wait, 8 * PATIENCE);
    }
    if (this.asked && now - this.asked.at > this.wait) {
      this.asked = null;
      this.ask();
    }
    this.paintSaving();
  }

  // -- what stands

  byTrace(trace) {
    for (const item of this.items.values()) if (item.trace_id === trace) return item;
    return null;
  }

  /** What the annotator did to an item last, as far as this page knows: {done, skipped}. */
  standing(item) {
    return this.over.get(item.trace_id) ?? { done: item.done, skipped: item.skipped };
  }

  /** Whether a label is offered again, and nothing has been said about it since. */
  isAgain(item) {
    return !this.over.has(item.trace_id) && !!(item.again || (this.offering && item.done?.earlier_rubric));
  }

  overlay(action, before = null) {
    const { id, trace_id: trace, kind } = action;
    if (kind === "save") {
      // What is said after a look at the verdict stands beside the first label, which is kept.
      const first = action.after_reveal && before?.done;
      const done = first
        ? { ...before.done, changed: action.answers }
        : { answers: action.answers, rationale: action.rationale };
      this.over.set(trace, { id, done, skipped: false });
    }
    else if (kind === "skip") this.over.set(trace, { id, done: null, skipped: true });
    else this.over.set(trace, { id, done: before?.done ?? null, skipped: before?.skipped ?? false });
  }

  get item() {
    return this.items.get(this.position) ?? null;
  }

  /** The answers to the item that is shown: those being given, else those of its label. */
  draft() {
    const { item } = this;
    const touched = item && this.drafts.get(item.trace_id);
    if (touched) return touched;
    const given = item && (this.standing(item).done ?? item.partial);
    return { answers: structuredClone(given ? latest(given) : {}), rationale: { ...(given?.rationale ?? {}) } };
  }

  /** The same, kept as something that this person says. */
  edit() {
    const draft = this.draft();
    this.drafts.set(this.item.trace_id, draft);
    return draft;
  }

  changed(item) {
    const { done } = this.standing(item);
    const draft = this.drafts.get(item.trace_id);
    if (!draft) return false;
    if (!done) return Object.keys(draft.answers).length > 0;
    const kept = (texts) => Object.fromEntries(Object.entries(texts ?? {}).filter(([, text]) => text?.trim()));
    const plain = (answers) => Object.fromEntries(Object.entries(answers ?? {}).sort().map(([name, a]) => [name, [a.value ?? null, !!a.abstain]]));
    return !same(plain(draft.answers), plain(latest(done))) || !same(kept(draft.rationale), kept(done.rationale));
  }

  // -- acting

  act(kind, extra = {}) {
    const { item } = this;
    this.tick();
    const action = {
      id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random().toString(16).slice(2)}`,
      kind,
      position: this.position,
      trace_id: item.trace_id,
      at: Date.now(),
      seconds: Math.round(this.spent / 100) / 10,
      answers: {},
      rationale: {},
      undoes: null,
      after_reveal: this.seen.has(item.trace_id),
      chosen: item.chosen ?? null, // as it was told when it was shown, whatever the order is since
      rubrics: this.rubricsShown(), // likewise, whatever the rubric is since
      ...extra,
    };
    this.spent = 0;
    this.pending.add(action);
    return action;
  }

  /** The version of the rubric beside each question, 0 where there is none. */
  rubricsShown() {
    const versions = this.questions.map(({ name, rubric_version: version }) => [name, version ?? 0]);
    return Object.fromEntries(versions.filter(([, version]) => Number.isInteger(version)));
  }

  remember(action, before) {
    this.undoable.push({ id: action.id, position: action.position, trace_id: action.trace_id, before });
    if (this.undoable.length > 100) this.undoable.shift();
    this.pending.write("history", this.undoable);
  }

  rate(index, answer) {
    const question = this.questions[index];
    if (!this.item || this.item.gone || this.setup.read_only) return;
    this.edit().answers[question.name] = answer;
    this.setActive(index);
    this.say("");
    this.paintAnswers();
    // With several questions the next one without an answer is up.
    const open = this.questions.findIndex((each) => !this.draft().answers[each.name] && choices(each).length);
    if (this.questions.length > 1 && open >= 0) {
      if (this.answers.contains(document.activeElement)) this.rows[open].box.focus({ preventScroll: true });
      this.setActive(open);
    }
    this.announce(`${question.title || question.name}: ${inWords(question, answer.value, answer.abstain)}`);
  }

  save() {
    const { item } = this;
    if (this.done || !item) return;
    if (item.gone) return this.forward(this.position + 1);
    if (this.setup.read_only) return this.forward(this.position + 1, false);
    const { done } = this.standing(item);
    if (done && !this.changed(item) && !this.isAgain(item)) return this.forward(this.position + 1);
    this.readFields();
    const draft = this.draft();
    const open = this.questions.findIndex((each) => each.required !== false && !draft.answers[each.name]);
    const answered = Object.keys(draft.answers).length > 0;
    if (open >= 0 || !answered) {
      this.setActive(Math.max(open, 0));
      this.say("Not rated yet: choose an answer, or say that you can't judge (x), or skip (s).");
      return;
    }
    const before = this.standing(item);
    const rationale = Object.fromEntries(Object.entries(draft.rationale).filter(([, text]) => text.trim()));
    const action = this.act("save", { answers: structuredClone(draft.answers), rationale });
    this.overlay(action, before);
    this.remember(action, before);
    this.drafts.delete(item.trace_id);
    if (this.setup.reveal && !action.after_reveal) {
      this.post(action);
      this.paint();
      this.setActive(0);
      this.announce(`Saving ${this.spoken(action)}. What the judge and others said follows; Enter goes on.`);
      return;
    }
    this.forward(this.position + 1, true, `Saving ${this.spoken(action)}.`);
    this.post(action);
  }

  /** The answers of an action, to be read out. */
  spoken({ answers }) {
    return this.questions.filter(({ name }) => answers[name])
      .map((question) => inWords(question, answers[question.name].value, answers[question.name].abstain)).join(", ");
  }

  skip() {
    const { item } = this;
    if (this.done || !item || this.setup.read_only) return;
    const before = this.standing(item);
    if (before.done) return this.forward(this.position + 1); // a label is not thrown away by a skip
    const action = this.act("skip");
    this.overlay(action);
    this.remember(action, before);
    this.drafts.delete(item.trace_id);
    this.forward(this.position + 1, true, "Skipped.");
    this.post(action);
  }

  undo() {
    if (this.setup.read_only) return;
    const last = this.undoable.pop();
    this.pending.write("history", this.undoable);
    if (!last) return this.say("Nothing to undo.");
    // Positions change when the kernel is restarted, traces do not.
    const there = this.items.get(last.position);
    const held = there?.trace_id === last.trace_id ? there : this.byTrace(last.trace_id);
    const given = held ? this.standing(held).done : null;
    const trace = last.trace_id;
    this.tick();
    this.spent = 0;
    const action = {
      id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random().toString(16).slice(2)}`,
      kind: "undo", position: held?.position ?? last.position, trace_id: trace, at: Date.now(), seconds: 0,
      answers: {}, rationale: {}, undoes: last.id, after_reveal: this.seen.has(trace),
    };
    this.pending.add(action);
    this.overlay(action, last.before);
    // What was undone is offered again, as a choice that is not saved.
    if (given) this.drafts.set(trace, { answers: structuredClone(latest(given)), rationale: { ...(given.rationale ?? {}) } });
    if (held || !there) this.go(held?.position ?? last.position, "Undone.");
    else this.announce("Undone.");
    this.say("Undone.", false);
    this.post(action);
  }

  /** To the next item that is neither labelled nor skipped, from `from` on and round the end;
   * `said` is read out before the item's number. `passed` items were passed over on the way: once
   * round is enough, whatever the kernel counts. */
  forward(from, open = true, said = "", passed = 0) {
    if (!this.total) return;
    if (!open) {
      this.go(Math.min(from, this.total - 1), said);
      return;
    }
    for (let n = 0; passed + n < this.total; n++) {
      const at = (from + n) % this.total;
      if (this.offering && from + n >= this.total) break; // once through is enough
      const item = this.items.get(at);
      if (item) {
        const { done, skipped } = this.standing(item);
        if ((!done || this.isAgain(item)) && !skipped && !item.gone) return this.go(at, said);
      } else if (n === 0 || this.offering || !this.everythingDone()) {
        // Not here: it is asked for, and passed over if it turns out to be done.
        this.go(at, said);
        this.seeking = true;
        this.passed = passed + n;
        this.onTheWay = said;
        return;
      } else break;
    }
    this.seeking = false;
    this.offering = false;
    this.done = true;
    this.paint();
    this.announce(`${said} You are through: ${this.counts.textContent}.`.trim());
  }

  everythingDone() {
    const { labelled = 0, skipped = 0, again = 0 } = this.state.progress ?? {};
    return labelled - again + skipped + this.pending.actions.size >= this.total;
  }

  go(position, said = "") {
    if (position < 0 || position >= this.total) return;
    if (!this.done) this.readFields();
    this.done = false;
    this.seeking = false;
    this.position = position;
    this.setActive(0);
    this.spent = 0;
    this.say("");
    this.paint();
    this.announce(`${said} Item ${number(position + 1)} of ${number(this.total)}${this.heard()}`.trim());
    // Items further ahead can wait until this one is on the page.
    setTimeout(() => {
      this.ask();
      this.askReveal();
    }, 0);
  }

  /** What stands at the item, to be read out behind its number. */
  heard() {
    const { item } = this;
    const { done, skipped } = item ? this.standing(item) : {};
    if (done) return `, ${this.words.done}: ${this.spoken({ answers: latest(done) })}`;
    return skipped ? ", skipped" : "";
  }

  /** Where the page begins: not at an item that is done but not saved yet. */
  skipPast() {
    const over = new Map(this.pending.list().map((action) => [action.position, action]));
    while (this.position < this.total - 1 && over.has(this.position) && over.get(this.position).kind !== "undo") this.position += 1;
  }

  askReveal() {
    const { item } = this;
    if (!this.setup.reveal || !item || this.done || this.revealed.has(item.trace_id)) return;
    if (this.isAgain(item)) return; // first it is said anew, then it is compared
    // Only after one's own label is in the store.
    if (item.done && !this.over.has(item.trace_id)) this.send({ type: "reveal", trace_id: item.trace_id });
  }

  tick() {
    const now = performance.now();
    this.spent += Math.min(now - this.alive, IDLE);
    this.alive = now;
  }

  // -- keys

  onKey(event) {
    if (event.isComposing || event.defaultPrevented) return;
    const { target } = event;
    const own = (act, ...args) => {
      event.preventDefault();
      act.apply(this, args);
    };
    const typing = target.matches("input, textarea, select");
    const modified = event.ctrlKey || event.metaKey || event.altKey;
    if (!this.help.hidden) {
      if (event.key === "Escape" || event.key === "?") return own(this.toggleHelp);
      if (event.key === "Tab") return own(this.focusHelp, event.shiftKey ? -1 : 1);
      return; // what scrolls the keys, or presses the button
    }
    if ((event.ctrlKey || event.metaKey) && event.key === "Enter") return own(this.saveFromField);
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "s") return own(() => {});
    if (event.key === "Escape") return own(() => this.root.focus({ preventScroll: true }));
    if (typing) {
      if (event.key === "Enter" && target.matches("input")) own(this.saveFromField);
      return;
    }
    if (modified) return;
    if (event.key === "?") return own(this.toggleHelp);
    const native = target.closest("summary, a, button:not(.wb-choice)");
    if (native && (event.key === "Enter" || event.key === " ")) return;
    const pressed = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (event.repeat && !pressed.startsWith("Arrow") && !pressed.startsWith("Page")) return own(() => {});
    if (pressed === "Enter") return own(this.done ? this.leaveSummary : this.save);
    if (pressed === " " && target.matches(".wb-choice")) return;
    if (pressed === "ArrowRight") return own(this.go, this.position + 1);
    if (pressed === "ArrowLeft") return own(this.done ? this.backToItems : this.go, this.position - 1);
    if (pressed === "ArrowDown" || pressed === "ArrowUp") {
      const step = pressed === "ArrowDown" ? 1 : -1;
      if (this.questions.length > 1 && !this.text.contains(target)) return own(this.nextQuestion, step);
      return own(this.scroll, step, false);
    }
    if (pressed === "PageDown" || pressed === "PageUp" || pressed === " ") {
      return own(this.scroll, pressed === "PageUp" || event.shiftKey ? -1 : 1);
    }
    if (pressed === "r" && event.shiftKey) return own(this.refresh);
    if (pressed === "u") return own(this.undo);
    if (this.done) {
      if (pressed === "a" && !this.againButton.hidden) own(this.offerAgain);
      return;
    }
    if (pressed === "s") return own(this.skip);
    if (pressed === "r") return own(this.toRationale);
    if (pressed === "t") return own(this.toggleRaw);
    const question = this.questions[this.active];
    if (!question) return;
    if (pressed === "x") return own(this.rate, this.active, { value: null, abstain: true });
    const chosen = choices(question).find(({ keys }) => keys.includes(pressed));
    if (chosen) return own(this.rate, this.active, { value: chosen.value, abstain: false });
    const { input } = this.rows[this.active];
    if (input && (question.kind === "text" || /^[\d.,-]$/.test(pressed)) && event.key.length === 1) {
      own(() => {
        input.value = question.kind === "text" ? input.value + event.key : event.key;
        input.focus();
        this.readFields();
        this.paintAnswers(false);
      });
    }
  }

  saveFromField() {
    this.readFields();
    if (this.root.contains(document.activeElement)) this.root.focus({ preventScroll: true });
    if (this.done) this.leaveSummary();
    else this.save();
  }

  /** From the summary to what was skipped, and where nothing was, back to the items. */
  leaveSummary() {
    const skipped = this.skippedAt();
    if (skipped !== null) return this.go(skipped);
    this.backToItems();
  }

  backToItems() {
    this.go(this.position);
  }

  /** Whether some label here was made under an earlier rubric, and may be gone through again. */
  madeEarlier() {
    return !this.setup.read_only && [...this.items.values()].some((item) => this.standing(item).done?.earlier_rubric);
  }

  /** The kernel offers them again, so that it shows no verdict before the new answer, and says
   * where to begin. */
  offerAgain() {
    this.offering = true;
    this.say("Labels made under an earlier rubric are offered again as soon as the kernel is free …");
    this.send({ type: "offer_again" });
  }

  skippedAt() {
    const held = [...this.items.values()].filter((item) => this.standing(item).skipped);
    if (held.length) return Math.min(...held.map(({ position }) => position));
    const { position = this.total, progress = {} } = this.state;
    return progress.skipped && position < this.total ? position : null;
  }

  toRationale(index = this.active) {
    this.rows[index]?.rationale.focus();
  }

  toggleRaw() {
    this.raw = !this.raw;
    this.paintItem();
    this.text.scrollTop = 0;
  }

  /** Move the text by a page, or by some lines. */
  scroll(step, page = true) {
    this.text.scrollBy({ top: step * (page ? 0.85 * this.text.clientHeight : 60) });
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

  refresh() {
    if (this.refreshing) return;
    this.refreshing = true;
    this.refreshButton.disabled = true;
    this.say("The store is being read again …");
    this.send({ type: "refresh" });
  }

  refreshed() {
    this.refreshing = false;
    this.refreshButton.disabled = false;
    this.say("");
    this.announce("The store was read again.");
  }

  setActive(index) {
    this.active = index;
    this.rows.forEach((row, n) => row.box.classList.toggle("wb-active", n === index && this.rows.length > 1));
    if (this.rows.length > 1) this.which.replaceChildren(`Question ${index + 1} of ${this.rows.length}`);
    this.keepInView();
  }

  nextQuestion(step) {
    this.setActive((this.active + step + this.rows.length) % this.rows.length);
    this.rows[this.active].box.focus({ preventScroll: true });
  }

  /** The answers of the question that is up stay in view, whatever else takes the room. */
  keepInView() {
    const row = this.rows[this.active];
    if (!row) return;
    const pane = this.answers.getBoundingClientRect();
    for (const part of this.rows.length > 1 ? [row.box, row.choices] : [row.choices]) {
      const { top, bottom } = part.getBoundingClientRect();
      // Its end first, but not at the cost of its beginning; the answers before the rest.
      if (bottom > pane.bottom) this.answers.scrollTop += Math.min(bottom - pane.bottom, top - pane.top);
      else if (top < pane.top) this.answers.scrollTop -= pane.top - top;
    }
  }

  /** Take over what stands in the fields one types in, where it is something else than before. */
  readFields() {
    if (!this.item || this.setup.read_only) return;
    const before = this.draft();
    const draft = structuredClone(before);
    this.questions.forEach((question, n) => {
      const { rationale, input } = this.rows[n];
      if (rationale.value || draft.rationale[question.name]) draft.rationale[question.name] = rationale.value;
      if (!input) return;
      const typed = input.value.trim();
      if (!typed) {
        if (draft.answers[question.name] && !draft.answers[question.name].abstain) delete draft.answers[question.name];
      } else if (question.kind === "text") {
        draft.answers[question.name] = { value: input.value, abstain: false };
      } else {
        const value = Number(typed.replace(",", "."));
        const fits = Number.isFinite(value) && !(question.integer && !Number.isInteger(value)) &&
          value >= (question.low ?? -Infinity) && value <= (question.high ?? Infinity);
        input.classList.toggle("wb-wrong", !fits);
        if (fits) draft.answers[question.name] = { value, abstain: false };
        else delete draft.answers[question.name];
      }
    });
    if (!same(draft, before)) this.drafts.set(this.item.trace_id, draft);
  }

  // -- building

  get questions() {
    return this.setup.questions ?? [];
  }

  build(el) {
    const button = (label, keyName, act, extra) => h("button", {
      type: "button", onclick: (event) => {
        // After a click the keys work on; who came with Tab stays where he is.
        if (event.detail > 0) this.root.focus({ preventScroll: true });
        act.call(this);
      }, ...extra,
    }, label, keyName ? [" ", key(keyName)] : null);
    const arrow = (sign, name, keys, act, extra) => button(sign, null, act, { class: "wb-small wb-arrow", "aria-label": name, title: `${name} (${keys})`, ...extra });

    this.title = h("div", { class: "wb-title" });
    this.bar = h("div", { class: "wb-bar", role: "progressbar", "aria-label": this.words.done, "aria-valuemin": 0 }, h("div", { class: "wb-fill" }), h("div", { class: "wb-fill wb-waiting" }));
    this.counts = h("div", { class: "wb-counts" });
    this.refreshButton = button(h("span", null, "Refresh"), "⇧R", this.refresh, { class: "wb-small wb-refresh", "aria-label": "Refresh", "aria-keyshortcuts": "Shift+R", title: "Read the store again: new traces, and what was said elsewhere" });
    this.saving = h("div", { class: "wb-saving" });
    this.banner = h("div", { class: "wb-banner", role: "alert", hidden: true });
    this.lost = h("div", { class: "wb-lost" });
    this.where = h("div", { class: "wb-where" });
    this.rawButton = button("Plain text", "t", this.toggleRaw, { class: "wb-small", "aria-pressed": "false", "aria-keyshortcuts": "t", title: "Show the text as it is, without Markdown" });
    this.scrolling = h("span", { class: "wb-scrolling", role: "group", "aria-label": "Scroll the text" },
      arrow("↑", "Scroll the text up", "↑, Page Up", () => this.scroll(-1)),
      button("↓", "Space", () => this.scroll(1), { class: "wb-small wb-arrow", "aria-label": "Scroll the text down", "aria-keyshortcuts": "Space", title: "Scroll the text down (↓, Space, Page Down)" }));
    this.page = h("div", { class: "wb-page" });
    this.text = h("div", { class: "wb-reading", tabindex: 0, role: "document", "aria-label": "The item to judge" }, this.page);
    this.which = h("span", { class: "wb-which" });
    this.switcher = h("div", { class: "wb-switcher", hidden: true }, this.which,
      arrow("↑", "Previous question", "↑", () => this.nextQuestion(-1), { "aria-keyshortcuts": "ArrowUp" }),
      arrow("↓", "Next question", "↓", () => this.nextQuestion(1), { "aria-keyshortcuts": "ArrowDown" }));
    this.answers = h("div", { class: "wb-answers" });
    this.reveal = h("div", { class: "wb-reveal", "aria-live": "polite" });
    this.hint = h("div", { class: "wb-hint" });
    this.back = button("←", null, () => (this.done ? this.backToItems() : this.go(this.position - 1)), { class: "wb-icon", "aria-label": "Previous item", "aria-keyshortcuts": "ArrowLeft", title: "Previous item (←)" });
    this.next = button("→", null, () => this.go(this.position + 1), { class: "wb-icon", "aria-label": "Next item", "aria-keyshortcuts": "ArrowRight", title: "Next item (→)" });
    this.undoButton = button("Undo", "u", this.undo, { "aria-keyshortcuts": "u" });
    this.skipButton = button("Skip", "s", this.skip, { "aria-keyshortcuts": "s" });
    this.saveButton = button("Save and go on", "↵", () => (this.done ? this.leaveSummary() : this.saveFromField()), { class: "wb-primary", "aria-keyshortcuts": "Enter" });
    this.balance = h("div", { class: "wb-balance" });
    this.live = h("div", { class: "wb-sr", "aria-live": "polite" });
    this.buildSummary(button);
    this.help = this.buildHelp(button);

    this.work = h("div", { class: "wb-work" },
      h("section", { class: "wb-left" }, h("div", { class: "wb-itemhead" }, this.where, h("div", { class: "wb-itemkeys" }, this.scrolling, this.rawButton)), this.text),
      h("section", { class: "wb-right", "aria-label": "Rating" }, this.switcher, this.answers, this.reveal));
    this.root = h("div", { class: "wb", tabindex: 0, role: "application", "aria-label": `${this.words.panel}. Press question mark for the keys.`, "data-lm-suppress-shortcuts": "true", "data-jp-suppress-context-menu": "true" },
      h("header", { class: "wb-head" }, this.title, h("div", { class: "wb-headright" }, this.saving, button("Keys", "?", this.toggleHelp, { class: "wb-small", "aria-keyshortcuts": "?" }))),
      h("div", { class: "wb-progress" }, this.bar, h("div", { class: "wb-told" }, this.counts, this.refreshButton)),
      this.banner, this.lost, this.work, this.summary, this.hint,
      h("footer", { class: "wb-foot" }, h("div", { class: "wb-moves" }, this.back, this.next, this.undoButton, this.skipButton), this.balance, this.saveButton),
      this.help, this.live);
    this.buildQuestions();
    el.replaceChildren(h("div", { class: "wb-frame" }, this.root));
    let first = true;
    this.laid = new ResizeObserver(() => {
      this.scrolling.classList.toggle("wb-idle", this.text.scrollHeight <= this.text.clientHeight);
      const { clientWidth } = this.root;
      if (!first || !clientWidth) return;
      first = false;
      // In a narrow place the rubric would push the answers out of view.
      if (clientWidth <= 680) for (const each of this.root.querySelectorAll(".wb-rubric")) each.open = false;
      this.keepInView();
    });
    for (const each of [this.root, this.text, this.page]) this.laid.observe(each);
  }

  buildSummary(button) {
    this.through = h("h3");
    this.figures = h("div", { class: "wb-two" });
    this.skippedButton = button("Look at what you skipped", "↵", this.leaveSummary);
    this.againButton = button("Go again through what was labelled under an earlier rubric", "a", this.offerAgain, { "aria-keyshortcuts": "a" });
    this.summary = h("div", { class: "wb-summary" }, this.through, this.figures,
      h("p", { class: "wb-onward" }, this.skippedButton, this.againButton, button("Back to the items", "←", this.backToItems)),
      h("p", { class: "wb-quiet" }, h("code", null, this.words.table), ` holds ${this.words.holds} as a table`, this.words.summary ? [", ", h("code", null, this.words.summary), " the figures"] : null, "."));
  }

  buildQuestions() {
    const many = this.questions.length > 1;
    this.rows = this.questions.map((question, index) => {
      const offered = choices(question);
      const name = question.title || question.name;
      const abstain = h("button", {
        type: "button", class: "wb-choice wb-abstain", "aria-pressed": "false", "aria-keyshortcuts": "x",
        onclick: () => this.rate(index, { value: null, abstain: true }),
      }, key("x"), h("span", null, "Can't judge"));
      const buttons = offered.map(({ value, label, keys }, n) => h("button", {
        type: "button", class: "wb-choice", "aria-pressed": "false", "aria-keyshortcuts": keys.join(" "),
        style: `--wb-hue: ${hue(question, n, offered.length)}`,
        onclick: () => this.rate(index, { value, abstain: false }),
      }, face(label, keys)));
      let input = null;
      if (!offered.length) {
        const range = [question.low, question.high].every((each) => typeof each === "number") ? `${question.low} to ${question.high}` : question.integer ? "a whole number" : "a number";
        input = question.kind === "text"
          ? h("textarea", { class: "wb-input", rows: 2, "aria-label": name, placeholder: "type your answer" })
          : h("input", { class: "wb-input", inputmode: "decimal", autocomplete: "off", "aria-label": name, placeholder: range });
        input.addEventListener("input", () => {
          this.readFields();
          this.paintAnswers(false);
        });
      }
      const rationale = h("textarea", { class: "wb-rationale", rows: many ? 1 : 2, "aria-label": `Reason: ${name}`, placeholder: "reason (optional)" });
      const grow = () => {
        rationale.style.height = "auto";
        rationale.style.height = `${Math.min(rationale.scrollHeight + 2, 200)}px`;
      };
      rationale.addEventListener("input", () => {
        grow();
        this.readFields();
        this.paintItemState();
      });
      const why = h("button", { type: "button", class: "wb-small", "aria-keyshortcuts": "r", onclick: () => this.toRationale(index) }, "Why? ", key("r"));
      // Numbers stand in a row, and so do many short answers.
      const short = offered.every(({ label }) => label.length <= 3);
      const scale = offered.length && short && (offered.length > 5 || offered.every(({ label }) => /^[-+]?\d+$/.test(label)));
      const answers = h("div", { class: "wb-choices" }, buttons, input, abstain);
      const optional = question.required === false ? h("span", { class: "wb-quiet" }, " (may be left out)") : null;
      const box = h("div", { class: `wb-question${scale ? " wb-scale" : ""}`, role: "group", "aria-label": name, tabindex: -1, onfocusin: () => this.setActive(index) },
        // Where the panel has the question's name above it, once is enough.
        !many && this.shownTitle() === name ? null : h("div", { class: "wb-asked", dir: "auto" }, visible(name), optional),
        this.buildRubric(question), answers, h("div", { class: "wb-why" }, why, rationale));
      return { box, choices: answers, buttons, abstain, offered, input, rationale, grow };
    });
    this.answers.classList.toggle("wb-many", many);
    this.answers.replaceChildren(...this.rows.map(({ box }) => box));
    this.switcher.hidden = !many;
    this.setActive(Math.min(this.active, Math.max(this.rows.length - 1, 0)));
  }

  /** What stands above the panel: its title, unless that only lists the questions below. */
  shownTitle() {
    const names = this.questions.map(({ title, name }) => title || name);
    const { title } = this.setup;
    if (names.length > 1 && (!title || title === names.join(", "))) return `${names.length} questions`;
    return title || names[0] || "Labels";
  }

  buildRubric(question) {
    if (!question.rubric?.trim()) return null;
    const version = typeof question.rubric_version === "number" ? ` · version ${question.rubric_version}` : "";
    return h("details", { class: "wb-rubric", open: this.questions.length === 1 },
      h("summary", null, "Rubric", h("span", { class: "wb-quiet" }, version)), h("div", { class: "wb-prose", dir: "auto" }, markdown(question.rubric)));
  }

  buildHelp(button) {
    const row = (keys, text) => h("tr", null, h("td", null, keys.map((each) => [key(each), " "])), h("td", null, text));
    const close = button("Close", "Esc", this.toggleHelp, { class: "wb-small", "aria-keyshortcuts": "Escape" });
    return h("div", { class: "wb-help", role: "dialog", "aria-modal": "true", "aria-label": "Keys", hidden: true },
      h("div", { class: "wb-helpbox" }, h("div", { class: "wb-helphead" }, h("strong", null, "Keys"), close),
        h("table", null, h("tbody", null,
          row(["1", "…", "9"], "give the answer with this key; letters that are underlined work, too"),
          row(["x"], "can't judge"),
          row(["Enter"], "save and go on to the next item without a label"),
          row(["←", "→"], "previous, next item"),
          row(["↑", "↓"], "previous, next question, where there are several; else scroll the text"),
          row(["Space", "Page ↓"], "scroll the text by a page; back with Shift or Page ↑"),
          row(["r"], "write a reason; Esc leaves the field, Ctrl+Enter saves from within"),
          row(["s"], "skip this item"),
          row(["u"], "undo the last save or skip"),
          row(["t"], "show the text as it is, or with Markdown"),
          row(["Shift", "r"], "refresh: read the store again"),
          row(["?"], "show or hide the keys"))),
        h("p", { class: "wb-quiet" }, "Keys work while the panel has the focus, and reach nothing else in the notebook.")));
  }

  // -- painting

  paint() {
    this.root.classList.toggle("wb-done", this.done);
    this.paintItem();
    this.paintAnswers();
    this.paintReveal();
    this.paintStatus();
    // What had the focus may have gone, or be hidden now: the keys work on.
    const active = document.activeElement;
    const within = active !== this.root && this.root.contains(active);
    if (within ? !active.getClientRects().length : !active?.matches(".wb") && this.root.classList.contains("wb-focused")) {
      this.root.focus({ preventScroll: true });
    }
  }

  paintItem() {
    const { item } = this;
    const again = !!item && this.root.dataset.trace === item.trace_id;
    this.root.dataset.position = this.done ? "done" : String(this.position);
    this.root.dataset.trace = item?.trace_id ?? "";
    if (this.done) return;
    this.rawButton.setAttribute("aria-pressed", String(this.raw));
    const held = this.page.contains(document.activeElement);
    if (!item) {
      this.page.replaceChildren(h("p", { class: "wb-quiet" }, this.total ? "Waiting for the kernel to send this item …" : this.words.nothing));
    } else if (item.gone) {
      this.page.replaceChildren(h("p", { class: "wb-quiet" }, "This trace was deleted from the store. Enter goes on."));
    } else {
      const sections = [["Input", "inputs"], ["Output", "outputs"], ["Expected", "expectations"]].filter(([, name]) => {
        const value = item[name];
        return value !== null && value !== undefined && !(name === "expectations" && isObject(value) && !Object.keys(value).length);
      });
      this.page.replaceChildren(...sections.map(([title, name]) => this.section(title, name, item)));
    }
    if (!again) this.text.scrollTop = 0;
    if (held) this.root.focus({ preventScroll: true });
    this.paintItemState();
  }

  section(title, name, item) {
    const at = { path: name, cuts: item.cuts ?? {} };
    let body;
    try {
      body = reading(item[name], at, this.raw);
    } catch {
      body = plainText(String(JSON.stringify(item[name])).slice(0, 200000));
    }
    const cuts = Object.entries(at.cuts).filter(([path]) => path === name || path.startsWith(`${name}.`) || path.startsWith(`${name}[`));
    return h("section", { class: `wb-section wb-${name}` },
      h("div", { class: "wb-sectionhead", role: "heading", "aria-level": 3 }, title, lengthTold(item[name], at)),
      append(h("div", { class: "wb-body" }), [body]),
      cuts.map(([path, length]) => h("div", { class: "wb-cut" },
        `Only the beginning of ${path} is here: it has ${count(length, "character")}. `,
        h("button", { type: "button", class: "wb-more", onclick: () => this.ask(true) }, "Load all of it"))));
  }

  paintItemState() {
    const { item } = this;
    if (!item) {
      this.where.replaceChildren(this.total ? `Item ${number(this.position + 1)} of ${number(this.total)}` : "");
      return;
    }
    const { done, skipped } = this.standing(item);
    const waiting = this.over.has(item.trace_id);
    const chips = [];
    const chip = (text, kind) => chips.push(h("span", { class: `wb-chip wb-${kind}` }, text));
    if (done) {
      const changed = this.changed(item);
      if (changed) chip("changed, not saved", "warn");
      else if (waiting) chip("not saved yet", "warn");
      else chip("saved", "good");
      if (done.earlier_rubric) chip("made under an earlier rubric", "warn");
      if (Object.keys(done.changed ?? {}).length) chip("changed after the verdict", "plain");
      if (this.isAgain(item)) chip("offered again: Enter confirms", "warn");
      if (done.elsewhere) chip("labelled elsewhere", "plain");
    } else if (skipped) chip(waiting ? "skipped, not saved yet" : "skipped", "plain");
    if (item.gone) chip("deleted", "warn");
    const short = item.trace_id.length > 14 ? `${item.trace_id.slice(0, 11)}…` : item.trace_id;
    this.where.replaceChildren(
      h("span", { class: "wb-number" }, `Item ${number(this.position + 1)} of ${number(this.total)}`), " ",
      h("span", { class: "wb-id wb-quiet", title: item.trace_id }, visible(short)), ...chips.flatMap((each) => [" ", each]));
  }

  paintAnswers(fields = true) {
    const draft = this.draft();
    const locked = !this.item || this.item.gone || this.setup.read_only;
    this.questions.forEach((question, n) => {
      const { buttons, abstain, offered, input, rationale, grow, box } = this.rows[n];
      const answer = draft.answers[question.name];
      buttons.forEach((button, k) => {
        button.setAttribute("aria-pressed", String(!!answer && !answer.abstain && same(answer.value, offered[k].value)));
        button.disabled = !!locked;
      });
      abstain.setAttribute("aria-pressed", String(!!answer?.abstain));
      abstain.disabled = !!locked;
      box.classList.toggle("wb-answered", !!answer);
      if (fields) {
        if (input) {
          input.value = answer && !answer.abstain ? String(answer.value ?? "") : "";
          input.disabled = !!locked;
        }
        const text = draft.rationale[question.name] ?? "";
        if (rationale.value !== text) {
          rationale.value = text;
          grow();
        }
        rationale.disabled = !!locked;
      }
    });
    this.paintItemState();
  }

  paintReveal() {
    const { item } = this;
    this.reveal.replaceChildren();
    if (!this.setup.reveal || !item || this.done || !this.standing(item).done) return;
    if (this.isAgain(item)) return;
    const said = this.revealed.get(item.trace_id);
    if (!said) {
      this.reveal.append(h("p", { class: "wb-quiet" }, "The judge's verdict is shown as soon as your label is saved. Enter goes on without."));
      return;
    }
    const { done } = this.standing(item);
    const many = this.questions.length > 1;
    const groups = this.questions.map((question) => ({ question, voices: this.voices(question, said) }));
    const alone = groups.filter(({ voices }) => !voices.length).map(({ question }) => question.title || question.name);
    this.reveal.append(
      h("div", { class: "wb-sectionhead", role: "heading", "aria-level": 3 }, "What others said"),
      ...groups.filter(({ voices }) => voices.length).map(({ question, voices }) => h("div", { class: "wb-heard", role: "group", "aria-label": question.title || question.name },
        many ? h("div", { class: "wb-about", dir: "auto" }, visible(question.title || question.name)) : null,
        this.ownVoice(question, done), voices)),
      alone.length ? h("p", { class: "wb-quiet" }, many ? ["No one else has judged: ", visible(alone.join(", ")), "."] : "No one else has judged this item.") : "",
      h("p", { class: "wb-quiet" }, "Your first label is kept and is the one that counts. If you change your mind now, that is recorded beside it."));
    this.reveal.scrollTop = 0;
    this.keepInView();
  }

  /** What the judge and others said to one question. */
  voices(question, said) {
    const { name } = question;
    const verdict = said.judges ? said.judges[name] : name === this.questions[0].name ? said.judge : null;
    const others = (said.others ?? []).filter((other) => (other.question ?? this.questions[0].name) === name);
    const voice = (kind, who, { value, rationale }) => h("div", { class: `wb-voice ${kind}${rationale ? "" : " wb-brief"}` },
      h("div", null, h("span", { class: "wb-who", dir: "auto" }, visible(String(who))), " ", this.valueChip(question, value)),
      rationale ? h("div", { class: "wb-prose", dir: "auto" }, markdown(String(rationale))) : null);
    return [
      ...(verdict ? [voice("wb-judge", "Judge", verdict)] : []),
      ...others.map((other) => voice("wb-person", other.annotator, other)),
    ];
  }

  ownVoice(question, done) {
    const first = done.answers?.[question.name];
    const then = done.changed?.[question.name];
    return h("div", { class: "wb-own" }, h("span", { class: "wb-who" }, "You:"), " ",
      first ? this.valueChip(question, first.value) : h("span", { class: "wb-quiet" }, "no answer"),
      then ? [" first, now ", this.valueChip(question, then.value)] : null);
  }

  /** An answer in the words of its question, with its colour. */
  valueChip(question, value) {
    const offered = choices(question);
    const at = offered.findIndex((each) => same(each.value, value));
    return h("span", { class: "wb-chip wb-value-chip", dir: "auto" },
      at < 0 ? null : h("i", { style: `--wb-hue: ${hue(question, at, offered.length)}` }), visible(inWords(question, value)));
  }

  paintStatus() {
    const progress = this.state.progress ?? {};
    const total = progress.total ?? this.total;
    const labelled = progress.labelled ?? 0;
    const waiting = this.waiting();
    this.title.replaceChildren(h("strong", { dir: "auto" }, visible(this.shownTitle())), " ",
      h("span", { class: "wb-quiet" }, "as ", visible(String(this.setup.annotator ?? ""))), this.setup.read_only ? h("span", { class: "wb-chip wb-warn" }, "read only") : "");
    const percent = (n) => `${total ? Math.min(100, (100 * n) / total) : 0}%`;
    this.bar.children[0].style.width = percent(labelled);
    this.bar.children[1].style.width = percent(waiting);
    this.bar.setAttribute("aria-valuemax", String(total));
    this.bar.setAttribute("aria-valuenow", String(labelled));
    const facts = [`${number(labelled)} of ${number(total)} ${this.words.done}`];
    if (progress.skipped) facts.push(`${number(progress.skipped)} skipped`);
    if (progress.per_hour && labelled >= 5) facts.push(`${number(Math.round(progress.per_hour))} an hour`);
    if (progress.seconds_left && labelled >= 5) facts.push(`${duration(progress.seconds_left)} left`);
    this.counts.replaceChildren(...facts.flatMap((fact, n) => (n ? [h("span", { class: "wb-dot" }, "·"), fact] : [fact])));
    this.paintBalance(progress.balance ?? {});
    this.banner.hidden = !this.state.message;
    this.banner.replaceChildren(...visible(this.state.message ?? ""));
    this.paintSaving();
    this.paintLost();
    this.back.disabled = this.position <= 0 && !this.done;
    this.next.disabled = this.position >= this.total - 1 || this.done;
    this.skipButton.disabled = this.done || !!this.setup.read_only;
    this.undoButton.disabled = !this.undoable.length || !!this.setup.read_only;
    if (this.done) this.paintSummary();
  }

  /** How many items after the one shown are here. */
  ahead() {
    let n = 0;
    while (this.items.has(this.position + n + 1)) n += 1;
    return n;
  }

  waiting() {
    let n = 0;
    for (const { done } of this.over.values()) if (done) n += 1;
    return n;
  }

  paintSaving() {
    const n = this.pending.actions.size;
    this.root.dataset.ahead = String(this.ahead());
    this.root.dataset.unsaved = String(n);
    this.root.dataset.epoch = this.setup.epoch ?? "";
    const lost = Math.max(this.state.lost ?? 0, this.failed.length);
    let text = n ? `Not saved yet (${n})` : lost ? `${number(lost)} could not be saved` : "All saved";
    let hint = n ? "These ratings are kept in this browser and written as soon as the kernel is free."
      : lost ? "All else that you rated is in the store. panel.unsaved tells what could not be written, and why."
      : "Everything that you rated is in the store.";
    const oldest = this.since === null ? 0 : performance.now() - this.since;
    if (n && (this.late || oldest > PATIENCE)) hint += " The kernel is busy, or it was restarted; then run the cell again.";
    if (n && !this.pending.kept) hint = "This browser keeps nothing when the page is closed: leave it open until all is saved.";
    if (!n) this.late = false;
    if (!n && !lost && !this.undoable.length) text = "";
    const shown = `${text}|${hint}`;
    if (this.shownSaving === shown) return;
    this.shownSaving = shown;
    this.saving.className = `wb-saving ${n || lost ? "wb-warn" : "wb-good"}`;
    this.saving.title = hint;
    this.saving.replaceChildren(text);
    const stuck = n && (this.late || oldest > PATIENCE || !this.pending.kept);
    this.saving.append(...(stuck ? [h("div", { class: "wb-why-not" }, hint)] : []));
  }

  paintLost() {
    this.lost.replaceChildren(...this.failed.map((each) => h("div", { class: "wb-banner wb-bad", role: "alert" },
      h("span", null, `The ${each.action.kind === "save" ? "label" : each.action.kind} of item ${number(each.action.position + 1)} could not be saved: `, visible(String(each.error))),
      " ", h("button", { type: "button", class: "wb-small", onclick: () => {
        this.failed = this.failed.filter((other) => other !== each);
        this.paintLost();
        this.root.focus({ preventScroll: true });
      } }, "I have seen it"))));
  }

  paintBalance(balance) {
    const question = this.questions[0];
    const entries = Object.entries(balance).filter(([, n]) => n > 0);
    const all = entries.reduce((sum, [, n]) => sum + n, 0);
    const offered = question ? choices(question) : [];
    const order = (label) => {
      const at = offered.findIndex((each) => each.label === label || String(each.value) === label);
      return at < 0 ? 99 : at;
    };
    entries.sort(([a], [b]) => order(a) - order(b));
    this.balance.replaceChildren(...(all ? [
      h("div", { class: "wb-stack", "aria-hidden": "true" }, entries.map(([label, n]) => h("div", { style: `flex: ${n}; --wb-hue: ${hue(question, order(label), offered.length)}`, title: `${label}: ${n}` }))),
      h("div", { class: "wb-legend" }, entries.slice(0, 6).map(([label, n]) => h("span", { class: "wb-share" }, h("i", { style: `--wb-hue: ${hue(question, order(label), offered.length)}` }), visible(label), " ", h("b", null, number(n)), h("span", { class: "wb-quiet" }, ` ${Math.round((100 * n) / all)} %`))))] : []));
  }

  paintSummary() {
    const progress = this.state.progress ?? {};
    const balance = Object.entries(progress.balance ?? {});
    const all = balance.reduce((sum, [, n]) => sum + n, 0);
    const rows = [[this.words.done, number(progress.labelled ?? 0)], ["skipped", number(progress.skipped ?? 0)], ["not saved yet", number(this.pending.actions.size)]];
    if (progress.per_hour) rows.push(["an hour", number(Math.round(progress.per_hour))]);
    this.through.replaceChildren(this.pending.actions.size ? "You are through; the last ratings are still being saved" : "You are through");
    this.figures.replaceChildren(
      h("table", null, h("tbody", null, rows.map(([name, value]) => h("tr", null, h("th", { scope: "row" }, name), h("td", null, value))))),
      all ? h("table", null, h("tbody", null, balance.map(([label, n]) => h("tr", null, h("th", { scope: "row", dir: "auto" }, visible(label)), h("td", null, number(n)), h("td", { class: "wb-quiet" }, `${Math.round((100 * n) / all)} %`))))) : "");
    this.skippedButton.hidden = this.skippedAt() === null;
    this.againButton.hidden = !this.madeEarlier();
  }

  /** Show something, and have it read out unless what is read out says it already. */
  say(text, aloud = true) {
    if (this.note === text) return;
    this.note = text;
    this.hint.replaceChildren(text);
    if (text && aloud) this.announce(text);
  }

  announce(text) {
    this.live.replaceChildren(text);
  }
}

/** What a label says today: its answers, or those of a change of mind. */
const latest = (done) => ({ ...done.answers, ...done.changed });

/** The colour of an answer, as a hue: worst to best on ordered scales, apart on others. */
function hue(question, index, many) {
  if (!question || index < 0 || index >= 99) return 220;
  const ordered = question.kind !== "nominal" && many > 1;
  return ordered ? Math.round(25 + (150 * index) / (many - 1)) : [215, 35, 170, 280, 330, 95, 250, 10, 190][index % 9];
}

function duration(seconds) {
  const minutes = Math.max(1, Math.round(seconds / 60));
  return minutes < 90 ? `${minutes} min` : `${(minutes / 60).toFixed(1)} h`;
}

/** What a notebook needs of a panel: how it is shown, and how it ends. */
// eslint-disable-next-line no-unused-vars
const viewOf = (Kind) => ({
  render({ model, el, signal }) {
    const panel = new Kind(model, el, signal);
    return () => panel.stop();
  },
});
