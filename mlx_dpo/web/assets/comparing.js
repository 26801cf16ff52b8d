// The blind comparison: two answers to each prompt, one of them with the adapter, and which is better.

import { call, ConnectionLost, readEvents } from "./api.js";
import { create, element, isTextField, showHtml } from "./dom.js";
import { session, showCounts } from "./session.js";
import { currentView } from "./views.js";

const NAMES = { base: "Without the adapter", tuned: "With the adapter" };

const asked = {
  messages: [], answers: [], comparison: null, promptIndex: null, request: null, isComplete: false, isSaving: false, // as in `session`
  verdicts: [], // ids, for undo
};
let showError = null;
let isShown = false;
let ratedAdapter = null; // whose win rate is shown
let numPrompts = 0;

const showStatus = (text) => { element("comparison-status").textContent = text; };
const percent = (share) => `${Math.round(100 * share)}%`;

function showRate({ tuned, base, tie, win_rate: rate, interval, file, num_prompts: prompts }) {
  numPrompts = prompts;
  const count = tuned + base + tie;
  element("comparison-rate").textContent = count
    ? `Win rate of the adapter: ${percent(rate)}, 95% interval ${percent(interval[0])} to ${percent(interval[1])}. `
      + `Of ${count} comparisons it won ${tuned}, lost ${base}, and ${tie} were equal. They are in ${file}`
    : "No comparisons with this adapter yet.";
  element("comparison-reveal").disabled = !count;
}

function showResult(result) {
  session.server.wins = result;
  showCounts(session.server.counts);
  showRate(result);
}

function showControls() {
  element("comparison-bar").hidden = !asked.isComplete;
  element("comparison-stop").hidden = !asked.request && !asked.isComplete;
  element("comparison-ask").disabled = Boolean(asked.request);
  element("comparison-next").hidden = !numPrompts;
  element("comparison-next").disabled = Boolean(asked.request) || asked.isComplete;
  element("comparison-undo").disabled = !asked.verdicts.length;
}

// Headings of a text begin at h1: none may be skipped after them.
function buildAnswer(i) {
  const card = create("article", "answer");
  card.setAttribute("aria-label", `Answer ${i + 1}`);
  const text = create("div", "text");
  text.dir = "auto";
  card.append(create("h2", "", `Answer ${i + 1}`), text);
  return card;
}

function clear() {
  Object.assign(asked, { messages: [], answers: [], comparison: null, isComplete: false, request: null });
  element("comparison-turns").replaceChildren();
  element("comparison-answers").replaceChildren();
  showControls();
}

function showTurns(html) {
  element("comparison-turns").replaceChildren(...html.map((turn, i) => {
    const item = create("li", asked.messages[i].role);
    const text = create("div", "text");
    text.dir = "auto";
    showHtml(text, turn);
    item.append(create("h2", "", asked.messages[i].role), text);
    return item;
  }));
}

// Asks what was typed or, if that is null, the first fresh prompt of the file from a number on.
async function ask(typed, promptIndex) {
  clear();
  showError("");
  element("comparison-revealed").hidden = true;
  const request = new AbortController();
  Object.assign(asked, { request, promptIndex });
  showControls();
  showStatus("Answering…");
  try {
    asked.messages = typed ?? await loadPrompt(request);
    if (request.signal.aborted) return;
    if (!asked.messages.length) return leave("No fresh prompt is left in the file.");
    asked.answers = [{ text: "" }, { text: "" }];
    element("comparison-answers").replaceChildren(buildAnswer(0), buildAnswer(1));
    element("comparison-answers").focus({ preventScroll: true });
    await readAnswers(request);
  } catch (error) {
    if (request.signal.aborted) return;
    if (typed) element("comparison-prompt").value ||= typed.at(-1).content;
    leave("");
    showError(error.message);
  }
}

async function loadPrompt(request) {
  const prompt = await call(`/api/comparisons/prompts/${asked.promptIndex}`);
  if (!request.signal.aborted) asked.promptIndex = prompt.index;
  return prompt.messages;
}

// No answers on the screen; a prompt is next.
function leave(status) {
  clear();
  showStatus(status);
  element("comparison-prompt").focus();
}

async function readAnswers(request) {
  const body = {
    messages: asked.messages, num_answers: 2, compare: true,
    temperature: element("temperature").valueAsNumber, max_tokens: element("max-tokens").valueAsNumber,
  };
  await readEvents("/api/answers", body, request.signal, (name, data) => {
    if (request.signal.aborted) return;
    if (name === "begin") showTurns(data.html);
    if (name === "failed") throw new Error(data.message);
    if (name === "answers") showAnswers(data.answers);
    if (name === "end") complete(data.comparison);
  });
  if (!asked.isComplete && !request.signal.aborted) throw new ConnectionLost();
}

function showAnswers(answers) {
  for (const answer of answers) {
    asked.answers[answer.index] = answer;
    showHtml(element("comparison-answers").children[answer.index].querySelector(".text"), answer.html);
  }
}

function complete(comparison) {
  Object.assign(asked, { request: null, comparison, isComplete: true });
  showControls();
  showStatus("Which one is better?");
  if (isTextField(document.activeElement)) return;
  element("comparison-answers").focus({ preventScroll: true });
  element("comparison-bar").scrollIntoView({ block: "nearest" });
}

function askTyped() {
  const text = element("comparison-prompt").value.trim();
  if (!text || asked.isSaving) return;
  if (asked.request) return showStatus("Wait for these answers, or stop them (esc).");
  if (asked.isComplete) return showStatus("Judge these answers first, or skip them (space).");
  const system = element("system").value.trim();
  element("comparison-prompt").value = "";
  ask([...(system ? [{ role: "system", content: system }] : []), { role: "user", content: text }], null);
}

function advance(status) {
  if (asked.promptIndex === null) leave(status); else ask(null, asked.promptIndex + 1);
}

async function judge(choice) {
  if (!asked.isComplete || asked.isSaving) return;
  asked.isSaving = true;
  const { comparison, messages, answers } = asked;
  try {
    const result = await call("/api/comparisons", { comparison, messages, answers: answers.map(({ text }) => text), choice });
    asked.verdicts.push(result.id);
    showResult(result);
  } catch (error) {
    return showError(`${error.message}\nThis verdict is not saved.`);
  } finally {
    asked.isSaving = false;
  }
  showError("");
  advance("Saved.");
}

function skip() { if (asked.isComplete && !asked.isSaving) advance("Skipped."); }

// Discards the answers; those of a file's prompt are asked for again later.
function stop() {
  if (asked.isSaving || !(asked.request || asked.isComplete)) return;
  asked.request?.abort();
  if (asked.promptIndex === null) element("comparison-prompt").value ||= asked.messages.at(-1).content;
  leave("Stopped.");
}

async function undo() {
  if (!asked.verdicts.length || asked.isSaving) return;
  asked.isSaving = true;
  try {
    showResult(await call("/api/comparisons/remove", { id: asked.verdicts.at(-1) }));
  } catch (error) {
    return showError(error.message);
  } finally {
    asked.isSaving = false;
  }
  asked.verdicts.pop();
  showControls();
  showStatus("Undone: that verdict is removed.");
}

function buildRevealed({ prompt, answers, policies, winner }) {
  const item = create("li", "");
  item.append(create("p", "prompt", prompt.at(-1).content));
  answers.forEach((answer, i) => {
    const isPreferred = policies[i] === winner;
    const column = create("div", isPreferred ? "answer chosen" : "answer");
    column.append(create("h3", "", `${NAMES[policies[i]]}${isPreferred ? ": preferred" : ""}`), create("p", "sample-text", answer));
    item.append(column);
  });
  return item;
}

async function reveal() {
  const list = element("comparison-revealed");
  if (!list.hidden) { list.hidden = true; return; }
  try {
    const { rows } = await call("/api/comparisons/revealed");
    list.replaceChildren(...rows.reverse().map(buildRevealed));
    list.hidden = false;
  } catch (error) {
    showError(error.message);
  }
}

const KEYS = {
  1: () => judge(0), 2: () => judge(1), e: () => judge(null), t: () => judge(null), " ": skip, u: undo, Escape: stop,
  "/": () => element("comparison-prompt").focus(),
};

function handleKey(event) {
  if (!isShown || currentView() !== "train" || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (isTextField(event.target) || !Object.hasOwn(KEYS, event.key)) return;
  if (event.key === " " && event.target.matches("button, summary, a, input")) return;
  KEYS[event.key]();
  event.preventDefault();
}

function handlePromptKey(event) {
  if (event.key === "Escape") {
    if (asked.request || asked.isComplete) stop(); else element("comparison-prompt").blur();
  }
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    askTyped();
  }
}

// Shows the comparison if there is an adapter to compare; `state` is that of /api/training.
export async function showComparison(state) {
  const isFinished = state.run?.state === "finished";
  isShown = state.is_ready && Boolean(state.adapter) && !state.error;
  element("comparison").hidden = !isFinished && !isShown;
  element("comparison-load").hidden = !isFinished || state.has_run_adapter || !state.is_ready;
  element("comparison-body").hidden = !isShown;
  if (!isShown || state.adapter === ratedAdapter) return;
  ratedAdapter = state.adapter;
  try {
    showRate(await call("/api/comparisons"));
    showControls();
  } catch (error) {
    showError(error.message);
  }
}

export function startComparing({ showError: show, onLoad }) {
  showError = show;
  element("comparison-load").addEventListener("click", onLoad);
  element("comparison-form").addEventListener("submit", (event) => { event.preventDefault(); askTyped(); });
  element("comparison-prompt").addEventListener("keydown", handlePromptKey);
  element("comparison-first").addEventListener("click", () => judge(0));
  element("comparison-second").addEventListener("click", () => judge(1));
  element("comparison-tie").addEventListener("click", () => judge(null));
  element("comparison-skip").addEventListener("click", skip);
  element("comparison-next").addEventListener("click", () => ask(null, 0));
  element("comparison-stop").addEventListener("click", stop);
  element("comparison-undo").addEventListener("click", undo);
  element("comparison-reveal").addEventListener("click", reveal);
  document.addEventListener("keydown", handleKey);
}
