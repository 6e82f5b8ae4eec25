// The keys of a panel.

// What each key does: the first row that fits counts. `at` is where it does it: at an "item", at
// the "end" of the queue, by default at both. A key with Shift counts as itself unless it is named
// with it. Answers have keys of their own, see `answer_keys` in `content.py`.
const KEYMAP = [
  { keys: ["x"], at: "item", act: (panel) => panel.abstain(), help: "can't judge" },
  { keys: ["Enter"], at: "item", act: (panel) => panel.save(), help: "save and go on to the next item without a label" },
  { keys: ["Enter"], at: "end", act: (panel) => panel.leaveSummary() },
  { keys: ["ArrowLeft"], act: (panel) => panel.goBack(), shown: ["←", "→"], help: "previous, next item" },
  { keys: ["ArrowRight"], act: (panel) => panel.go(panel.position + 1) },
  { keys: ["ArrowUp"], act: (panel, target) => panel.goUp(target), shown: ["↑", "↓"], help: "previous, next question, where there are several; else scroll the text" },
  { keys: ["ArrowDown"], act: (panel, target) => panel.goDown(target) },
  { keys: ["Space", "PageDown"], act: (panel) => panel.scroll(1), shown: ["Space", "Page ↓"], help: "scroll the text by a page; back with Shift or Page ↑" },
  { keys: ["Shift+Space", "PageUp"], act: (panel) => panel.scroll(-1) },
  { keys: ["r"], at: "item", act: (panel) => panel.toReason(), help: "write a reason; Esc leaves the field, Ctrl+Enter saves from within" },
  { keys: ["s"], at: "item", act: (panel) => panel.skip(), help: "skip this item" },
  { keys: ["u"], act: (panel) => panel.undo(), help: "undo the last save or skip" },
  { keys: ["t"], at: "item", act: (panel) => panel.toggleRaw(), help: "show the text as it is, or with Markdown" },
  { keys: ["Shift+r"], act: (panel) => panel.refresh(), shown: ["Shift", "r"], help: "refresh: read the store again" },
  { keys: ["?"], act: (panel) => panel.toggleHelp(), help: "show or hide the keys" },
  { keys: ["a"], at: "end", act: (panel) => panel.offerAgain() },
];

/** The name of a pressed key in the keymap. */
function pressedKey(event) {
  if (event.key === " ") return "Space";
  return event.key.length === 1 ? event.key.toLowerCase() : event.key;
}

/** What a pressed key does: its row of the keymap, or undefined. */
function commandOf(event, place) {
  const pressed = pressedKey(event);
  const named = (name) => KEYMAP.find(({ keys, at = place }) => at === place && keys.includes(name));
  return (event.shiftKey && named(`Shift+${pressed}`)) || named(pressed);
}

/** Rows of the help: the keys of a command, and what it does. */
function keyHelp() {
  const rows = KEYMAP.filter(({ help }) => help).map(({ keys, shown = keys, help }) => [shown, help]);
  return [[["1", "…", "9"], "give the answer with this key; letters that are underlined work, too"], ...rows];
}
