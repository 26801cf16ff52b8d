// The keyboard alone is enough: what each key does in the collecting view.

import { ask, startConversation, stop } from "./asking.js";
import { element, isTextField, showStatus } from "./dom.js";
import { allBad, beginEdit, choose, mark, skip, tie, undo } from "./judging.js";
import { session } from "./session.js";
import { currentView } from "./views.js";

const WITH_A_NUMBER = {
  e: { words: "edit", run: beginEdit },
  g: { words: "mark as good", run: (index) => mark(index, true) },
  x: { words: "mark as bad", run: (index) => mark(index, false) },
};
const KEYS = {
  t: tie, b: allBad, " ": skip, u: undo, n: startConversation, Escape: stop, "/": () => element("prompt").focus(),
};
const REVIEW_KEYS = { e: tie, t: tie, b: allBad, " ": skip, u: undo };

let pendingKey = null; // e, g or x, which wait for the number of an answer

function handleKey(event) {
  if (currentView() !== "collect" || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (isTextField(event.target)) return;
  if (event.target.matches("button, summary, a, input") && [" ", "Enter"].includes(event.key)) return;
  const isReview = Boolean(session.server?.review);
  const keys = isReview ? REVIEW_KEYS : KEYS;
  const pending = pendingKey;
  pendingKey = null;
  const index = event.key.length === 1 ? "1234".indexOf(event.key) : -1;
  if (index >= 0) {
    if (pending) WITH_A_NUMBER[pending].run(index); else choose(index);
  } else if (!isReview && Object.hasOwn(WITH_A_NUMBER, event.key)) {
    if (!session.isComplete) return;
    const { words, run } = WITH_A_NUMBER[event.key];
    if (session.answers.length === 1) {
      run(0);
    } else {
      pendingKey = event.key;
      showStatus(`Number of the answer to ${words}?`);
    }
  } else if (Object.hasOwn(keys, event.key)) {
    keys[event.key]();
  } else return;
  event.preventDefault();
}

function handlePromptKey(event) {
  if (event.key === "Escape") {
    if (session.request) stop(); else element("prompt").blur();
  }
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ask();
  }
}

export function startKeys() {
  document.addEventListener("keydown", handleKey);
  element("prompt").addEventListener("keydown", handlePromptKey);
}
