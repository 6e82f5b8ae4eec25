// Elements of the page, and the contents of an item made of them.
//
// What a trace holds is hostile. Nothing here parses HTML or Markdown: texts reach the page as text
// nodes, and their structure comes from the kernel as tokens and blocks (see `content.py`).

// -- elements ---------------------------------------------------------------------------------

/** An element: properties as attributes, functions as handlers of the event they are named by. */
function h(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  return append(node, children);
}

function append(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(typeof child === "object" ? child : document.createTextNode(String(child)));
  }
  return node;
}

const key = (name) => h("kbd", null, name);
const quiet = (...children) => h("span", { class: "wb-quiet" }, children);
const number = (n) => n.toLocaleString("en");
const count = (n, word, plural) => `${number(n)} ${n === 1 ? word : (plural ?? `${word}s`)}`;
/** The number that someone has typed, NaN where it is none; "1,000" may be one or a thousand. */
const typedNumber = (typed) => Number(/^[-+]?[1-9]\d*,\d{3}$/.test(typed.trim()) ? NaN : typed.trim().replace(",", "."));
const same = (a, b) => JSON.stringify(a ?? null) === JSON.stringify(b ?? null);

const choiceOf = (question, value) => question.choices.find((each) => same(each.value, value));

/** An answer in the words of its question. */
function inWords(question, { value, abstain = false }) {
  if (abstain || value === null || value === undefined) return "Can't judge";
  const words = { true: "yes", false: "no" };
  return choiceOf(question, value)?.label ?? (typeof value === "boolean" ? words[value] : String(value));
}

// -- text -------------------------------------------------------------------------------------

// Characters that do something instead of showing something: controls, those that turn the
// direction of what follows, invisible ones, and the tags and selectors in which text can be hidden.
const HIDDEN =
  // eslint-disable-next-line no-control-regex
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb]|[\u{e0000}-\u{e007f}\u{e0100}-\u{e01ef}]/gu;

/** Text for the page, with characters that would hide or turn others shown by their number. */
function visible(text) {
  const parts = [];
  let from = 0;
  for (const found of text.matchAll(HIDDEN)) {
    parts.push(text.slice(from, found.index));
    if (found[0] !== "\r" || text[found.index + 1] !== "\n") {
      const code = found[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
      parts.push(h("span", { class: "wb-hidden", title: `hidden character U+${code}` }, `U+${code}`));
    }
    from = found.index + found[0].length;
  }
  parts.push(text.slice(from));
  return parts.filter((part) => part !== "");
}

/** Text as it is; of a long one the beginning, and the rest when it is asked for. */
function plainText(text) {
  const first = text.slice(0, 20000).replace(/[\ud800-\udbff]$/, ""); // no half of a character
  const rest = text.slice(first.length);
  const box = h("div", { class: "wb-text", dir: "auto" }, visible(first));
  if (rest) box.append(moreButton(`Show ${count(rest.length, "more character")}`, () => append(box, visible(rest))));
  return box;
}

/** A button that is replaced by what it shows; the focus goes to what it stands in, where keys work on. */
function moreButton(label, show) {
  const onclick = ({ currentTarget }) => {
    currentTarget.closest('[tabindex="0"]')?.focus({ preventScroll: true });
    currentTarget.remove();
    show();
  };
  return h("button", { type: "button", class: "wb-more", onclick }, label);
}

// -- Markdown ---------------------------------------------------------------------------------

const TOKENS = {
  paragraph: (inner) => h("p", { dir: "auto" }, inner),
  softbreak: () => h("br"),
  linebreak: () => h("br"),
  thematic_break: () => h("hr"),
  emphasis: (inner) => h("em", null, inner),
  strong: (inner) => h("strong", null, inner),
  strikethrough: (inner) => h("s", null, inner),
  codespan: (inner) => h("code", null, inner),
  block_code: codeBlock,
  block_html: (_, { raw }) => h("p", { dir: "auto" }, raw.trimEnd().split("\n").map((line, n) => [n ? h("br") : null, visible(line)])),
  block_quote: (inner) => h("blockquote", { dir: "auto" }, inner),
  list: (inner, { attrs }) => (attrs.ordered ? h("ol", { start: attrs.start ?? 1 }, inner) : h("ul", null, inner)),
  list_item: (inner) => h("li", { dir: "auto" }, inner),
  // The panel's own headings come first: those of a text are below them.
  heading: (inner, { attrs: { level } }) => h("div", { class: `wb-h wb-h${level}`, role: "heading", "aria-level": Math.min(level + 3, 6), dir: "auto" }, inner),
  table: (inner) => h("div", { class: "wb-table", tabindex: 0 }, h("table", null, inner)),
  table_head: (inner) => h("thead", null, h("tr", null, inner)),
  table_body: (inner) => h("tbody", null, inner),
  table_row: (inner) => h("tr", null, inner),
  table_cell: (inner, { attrs }) => h(attrs?.head ? "th" : "td", { dir: "auto" }, inner),
  link: (inner, { attrs }) => link(inner, attrs.url),
  image: (inner, { attrs }) => pictureNamed(h("span", null, inner).textContent, attrs.url),
};

/** Elements of the tokens that mistune makes of Markdown; what is not known is shown as text. */
function markdown(tokens) {
  return tokens.map((token) => {
    if (typeof token === "string") return visible(token);
    const inner = token.children ? markdown(token.children) : visible(token.raw ?? "");
    return TOKENS[token.type] ? TOKENS[token.type](inner, token) : inner;
  });
}

/** A block of code, with what stands behind its fence unless that names a language. */
function codeBlock(_, { raw, marker = "", attrs }) {
  const info = attrs?.info ?? "";
  const code = raw.replace(/\n$/, "");
  const text = /^[\w+#.-]{0,20}$/.test(info) ? code : `${marker}${info}\n${code}`;
  return h("pre", { class: "wb-code", tabindex: 0 }, h("code", null, visible(text)));
}

/** A link to the web or a mail address, with its host unless the text plainly names it; else text. */
function link(inner, target) {
  const label = h("span", null, inner);
  const url = URL.canParse(target) ? new URL(target) : null;
  if (!url || !["http:", "https:", "mailto:"].includes(url.protocol) || url.username || url.password) {
    return h("span", { class: "wb-nolink" }, label, label.textContent === target ? null : [" ", quiet("(", visible(target), ")")]);
  }
  const host = url.host || url.pathname; // of a mail address all of it
  const isNamed = label.textContent === host || (label.textContent === target && target.startsWith(url.origin));
  return h("span", null, h("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow", referrerpolicy: "no-referrer", title: url.href }, label), isNamed ? null : quiet(` (${host})`));
}

function pictureNamed(alt, address) {
  return h("span", { class: "wb-chip", title: address.slice(0, 300) }, "picture, not loaded: ", visible(alt || address.slice(0, 80)));
}

// -- JSON -------------------------------------------------------------------------------------

/** JSON as a tree; what lies deeper is made when it is opened. */
function tree(value, name = null, level = 0) {
  const label = name === null ? null : h("span", { class: "wb-key" }, visible(String(name)), quiet(": "));
  if (value === null || typeof value !== "object") return h("div", { class: "wb-leaf" }, label, leaf(value));
  const entries = Object.entries(value);
  if (!entries.length) return h("div", { class: "wb-leaf" }, label, quiet(JSON.stringify(value)));
  const size = Array.isArray(value) ? `[${count(entries.length, "entry", "entries")}]` : `{${count(entries.length, "field")}}`;
  const children = h("div", { class: "wb-children" });
  const fill = (from) => {
    const until = Math.min(from + 100, entries.length);
    append(children, entries.slice(from, until).map(([each, held]) => tree(held, each, level + 1)));
    if (until < entries.length) children.append(moreButton(`Show more of ${count(entries.length, "entry", "entries")}`, () => fill(until)));
  };
  const open = level < 2 && entries.length <= 40;
  if (open) fill(0);
  return h("details", { class: "wb-node", open, ontoggle: ({ currentTarget }) => currentTarget.open && !children.childNodes.length && fill(0) },
    h("summary", null, label, quiet(size)), children);
}

function leaf(value) {
  if (typeof value !== "string") return h("span", { class: "wb-value" }, String(value));
  return h(value.length <= 600 ? "span" : "div", { class: "wb-string", dir: "auto" }, value.length <= 600 ? visible(value) : plainText(value));
}

// -- blocks -----------------------------------------------------------------------------------

const BLOCKS = {
  markdown: ({ tokens }) => h("div", { class: "wb-prose", dir: "auto" }, markdown(tokens)),
  text: ({ value }) => plainText(value),
  tree: ({ value, label = null, closed }) => h("div", { class: `wb-tree${closed ? " wb-rest" : ""}` }, tree(value, label, closed ? 2 : label ? 1 : 0)),
  value: ({ value }) => h("div", { class: "wb-value" }, String(value)),
  note: ({ text }) => h("div", { class: "wb-quiet" }, text),
  warning: ({ text }) => h("div", { class: "wb-note" }, text),
  picture: ({ address }) => pictureNamed("", address),
  field: ({ name, blocks }) => h("div", { class: "wb-field" }, h("div", { class: "wb-fieldname" }, visible(name)), drawn(blocks)),
  list: ({ entries }) => h("ol", { class: "wb-list" }, entries.map((entry) => h("li", null, drawn(entry)))),
  chat: ({ turns }) => h("div", { class: "wb-chat" }, turns.map(({ role, name, blocks }) => h("div", { class: `wb-turn wb-${role}` },
    h("div", { class: "wb-role" }, visible(name)), h("div", { class: "wb-said" }, drawn(blocks))))),
};

/** Elements of the blocks that `content.py` makes of a value. */
const drawn = (blocks) => (blocks ?? []).map((block) => BLOCKS[block.kind](block));
/** The same in a box that scrolls where they are long, also by key. */
const boxed = (blocks, name) => h("div", { class: "wb-boxed", tabindex: 0, role: "group", "aria-label": name }, drawn(blocks));

/** What someone said of an item: who, the value as a chip, and why. */
function voiceOf(kind, who, value, { rationale, rationale_blocks: blocks }, ...more) {
  return h("div", { class: `wb-voice ${kind}` },
    h("div", { class: "wb-voicehead" }, h("span", { class: "wb-who", dir: "auto" }, visible(String(who))), " ", value), more,
    rationale ? boxed(blocks, "Reason") : null);
}

/** The parts of an item, each below its title. */
function sections(item, { raw = false, level = 3 } = {}) {
  const parts = [["Input", "inputs"], ["Output", "outputs"], ["Expected", "expectations"]];
  return parts.filter(([, name]) => item.blocks[name] && !(name === "expectations" && same(item[name], {}))).map(([title, name]) => {
    const value = item[name];
    const whole = item.cuts?.[name]; // where only the beginning is here
    const length = whole ?? (typeof value === "string" ? value.length : 0);
    const text = () => plainText(typeof value === "string" ? value : JSON.stringify(value, null, 2));
    return h("section", { class: `wb-section wb-${name}` },
      h("div", { class: "wb-sectionhead", role: "heading", "aria-level": level }, title, length > 3000 ? h("span", { class: "wb-length" }, ` ${count(length, "character")}`) : null),
      h("div", { class: "wb-body" }, raw ? text() : drawn(item.blocks[name])),
      whole ? h("div", { class: "wb-cut" }, `Only the beginning is here, of ${count(whole, "character")}. MLflow's page shows all.`) : null);
  });
}

// -- views ------------------------------------------------------------------------------------

/** What a notebook needs of a view: how it is shown, and how it ends. */
const viewOf = (Kind) => ({ render: ({ model, el, signal }) => new Kind(model, el, signal).stop });

/** Do what `actionOf` tells of a key. The notebook must not see keys and clicks that are meant for
 * the view. What it listens for at the document it leaves alone below `data-lm-suppress-shortcuts`. */
function ownKeys(root, signal, actionOf) {
  for (const name of ["keyup", "keypress", "mousedown"]) root.addEventListener(name, (event) => event.stopPropagation(), { signal });
  root.addEventListener("keydown", (event) => {
    event.stopPropagation();
    // In Safari the key that ends a composition comes after it, with the code of one within.
    if (event.isComposing || event.keyCode === 229 || event.defaultPrevented) return;
    const isSave = (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "s";
    const act = isSave ? () => {} : actionOf(event); // the browser would save the page
    if (!act) return;
    event.preventDefault();
    act();
  }, { signal });
}
