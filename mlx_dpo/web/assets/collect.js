// The page of `mlx-dpo collect`. All HTML that is inserted comes from the server's Markdown renderer, which escapes
// what is in a text; everything else is inserted as text.

const element = (id) => document.getElementById(id);
const RECONNECT_MS = 1000;

const state = {
  server: null, // the last answer of /api/state
  messages: [], // the turns before the answers, {role, content}
  promptIndex: null, // of the prompts' file; null for a prompt that was typed
  answers: [], // {text, html, finish_reason}
  comparison: null, // id by which the server knows which answer is whose
  request: null, // AbortController of the answers that are being sampled
  isComplete: false, // all answers are there, and none was judged
  editing: null, // index of the answer in the editor
  pendingKey: null, // e, g or x, which wait for the number of an answer
  verdicts: [], // for undo: {ids, messages, answers, comparison, promptIndex}
};

async function call(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  const response = await fetch(path, options);
  const isJson = (response.headers.get("content-type") || "").startsWith("application/json");
  const value = isJson ? await response.json() : { message: await response.text() };
  if (!response.ok) throw new Error(value.message);
  return value;
}

function showStatus(text) { element("status").textContent = text; }

function showError(text) {
  element("error").textContent = text || "";
  element("error").hidden = !text;
}

function showCounts(counts) {
  const { preferences, ties, labels } = counts;
  const parts = [`${preferences} ${preferences === 1 ? "preference" : "preferences"}`];
  if (ties) parts.push(`${ties} ${ties === 1 ? "tie" : "ties"}`);
  if (labels) parts.push(`${labels} ${labels === 1 ? "label" : "labels"}`);
  const { tuned, base, tie } = state.server.wins;
  const compared = tuned + base + tie;
  if (compared) parts.push(`adapter preferred in ${Math.round(100 * (tuned + tie / 2) / compared)}% of ${compared} comparisons`);
  element("counts").textContent = parts.join(", ");
}

// ---- the conversation and the answers on the screen

function showConversation(html) {
  const items = state.messages.map((message, i) => {
    const item = document.createElement("li");
    item.className = message.role;
    const role = document.createElement("h2");
    role.textContent = message.role;
    const text = document.createElement("div");
    if (html && html[i] !== undefined) text.innerHTML = html[i]; else text.textContent = message.content;
    item.append(role, text);
    return item;
  });
  element("conversation").replaceChildren(...items);
}

function button(label, key, name, onClick) {
  const node = document.createElement("button");
  node.type = "button";
  node.className = name;
  node.append(label);
  if (key) {
    const keyLabel = document.createElement("kbd");
    keyLabel.textContent = key;
    node.append(" ", keyLabel);
  }
  node.addEventListener("click", onClick);
  return node;
}

function buildAnswers(count) {
  state.answers = Array.from({ length: count }, () => ({ text: "", html: "", finish_reason: null }));
  const cards = state.answers.map((_, i) => {
    const card = document.createElement("article");
    card.className = "answer";
    const heading = document.createElement("h2");
    heading.textContent = `Answer ${i + 1}`;
    const text = document.createElement("div");
    text.className = "text";
    const note = document.createElement("p");
    note.className = "note";
    const actions = document.createElement("div");
    actions.className = "buttons";
    actions.hidden = true;
    if (count > 1) actions.append(button("Better", String(i + 1), "choose", () => choose(i)));
    actions.append(
      button("Edit", "e", "edit", () => beginEdit(i)),
      button("Good", "g", "good", () => label(i, true)),
      button("Bad", "x", "bad", () => label(i, false)),
    );
    card.setAttribute("aria-label", heading.textContent);
    card.append(heading, text, note, actions);
    return card;
  });
  element("answers").replaceChildren(...cards);
}

function showAnswer(i) {
  const card = element("answers").children[i];
  const answer = state.answers[i];
  card.querySelector(".text").innerHTML = answer.html;
  card.querySelector(".note").textContent = answer.finish_reason === "length" ? "Cut off at the longest answer." : "";
}

function showActions() {
  const count = state.answers.length;
  for (const card of element("answers").children) card.querySelector(".buttons").hidden = !state.isComplete;
  element("verdict-bar").hidden = !(state.isComplete || state.request);
  element("tie").hidden = element("both-bad").hidden = count < 2 || !state.isComplete;
  element("skip").hidden = !state.isComplete;
  element("stop").hidden = !state.request;
}

// ---- asking

async function ask() {
  const text = element("prompt").value.trim();
  if (!text || state.request) return;
  if (state.isComplete) return showError("Judge these answers first, or skip them (space).");
  const system = element("system").value.trim();
  if (!state.messages.length && system) state.messages.push({ role: "system", content: system });
  state.messages.push({ role: "user", content: text });
  state.promptIndex = null;
  element("prompt").value = "";
  await sample();
}

async function askNextPrompt(index) {
  if (index >= state.server.num_prompts) {
    state.promptIndex = null;
    startConversation();
    showStatus("All prompts of the file have verdicts.");
    return;
  }
  const prompt = await call(`/api/prompts/${index}`);
  state.promptIndex = index;
  state.messages = prompt.messages;
  showConversation(prompt.html);
  await sample();
}

async function sample() {
  showError("");
  buildAnswers(Number(element("num-answers").value));
  showConversation();
  state.request = new AbortController();
  state.comparison = null;
  showActions();
  showStatus("Waiting for the model…");
  try {
    await readAnswers(state.request);
  } catch (error) {
    state.request = null;
    showActions();
    if (error.name === "AbortError") return showStatus("Stopped.");
    showStatus("");
    showError(error instanceof TypeError ? "The server can't be reached; the prompt is kept." : error.message);
    if (state.promptIndex === null) element("prompt").value = state.messages.pop().content;
    else offerRetry();
    if (error instanceof TypeError) reconnect();
  }
}

function offerRetry() {
  const retry = button("Try again", "", "retry", () => sample());
  element("answers").replaceChildren(retry);
}

async function readAnswers(controller) {
  const number = (id) => Number(element(id).value);
  const response = await fetch("/api/answers", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    signal: controller.signal,
    body: JSON.stringify({
      messages: state.messages, num_answers: number("num-answers"), temperature: number("temperature"),
      max_tokens: number("max-tokens"), compare: element("compare").checked,
    }),
  });
  if (!response.ok) throw new Error((await response.json()).message);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let received = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new TypeError("the connection was lost");
    received += value;
    const events = received.split("\n\n");
    received = events.pop();
    for (const event of events) if (handleEvent(event)) return;
  }
}

function handleEvent(text) {
  const [, name, json] = text.match(/^event: (.*)\ndata: (.*)$/s);
  const data = JSON.parse(json);
  if (name === "begin") showConversation(data.html);
  if (name === "failed") throw new Error(data.message);
  if (name === "answers") {
    showStatus("Answering…");
    for (const answer of data.answers) {
      state.answers[answer.index] = answer;
      showAnswer(answer.index);
    }
  }
  if (name !== "end") return false;
  state.request = null;
  state.comparison = data.comparison;
  state.isComplete = true;
  showActions();
  showStatus("Which one is better?");
  element("prompt").blur();
  element("answers").focus({ preventScroll: true });
  return true;
}

function stop() {
  if (!state.request) return;
  state.request.abort();
  if (state.promptIndex === null && state.messages.length) element("prompt").value = state.messages.pop().content;
  element("answers").replaceChildren();
  showConversation();
}

// ---- verdicts

async function send(verdict) {
  if (!state.isComplete) return;
  state.isComplete = false;
  const sent = { messages: state.messages, answers: state.answers.map((answer) => answer.text), ...verdict };
  let result;
  try {
    result = await call("/api/verdicts", { verdict: sent, comparison: state.comparison });
  } catch (error) {
    state.isComplete = true;
    showActions();
    const isLost = error instanceof TypeError;
    showError(isLost ? "The server can't be reached: this verdict is not saved. Give it again once it is back." : error.message);
    if (isLost) reconnect();
    return;
  }
  state.verdicts.push({ ids: result.ids, messages: state.messages, answers: state.answers, promptIndex: state.promptIndex });
  state.server.wins = result.wins;
  showCounts(result.counts);
  showError("");
  element("undo").disabled = false;
  await advance(verdict, result.policies);
}

async function advance(verdict, policies) {
  const revealed = policies ? ` ${policies.map((policy, i) => `Answer ${i + 1}: ${policy}.`).join(" ")}` : "";
  const kept = verdict.kind === "edit" ? verdict.edited : verdict.kind === "choice" ? state.answers[verdict.index].text : null;
  if (state.promptIndex !== null) {
    await askNextPrompt(state.promptIndex + 1);
    return;
  }
  if (kept === null) state.messages = state.messages.slice(0, -1);
  else state.messages = [...state.messages, { role: "assistant", content: kept }];
  showJudged();
  showStatus(`Saved.${revealed}`);
}

function showJudged() {
  element("answers").replaceChildren();
  state.answers = [];
  showConversation();
  showActions();
  element("prompt").focus();
}

const choose = (index) => index < state.answers.length && state.answers.length > 1 && send({ kind: "choice", index });
const label = (index, isGood) => index < state.answers.length && send({ kind: "thumbs", index, is_good: isGood });

function beginEdit(index) {
  if (!state.isComplete || index >= state.answers.length) return;
  state.editing = index;
  const card = element("answers").children[index];
  const editor = document.createElement("textarea");
  editor.value = state.answers[index].text;
  editor.rows = Math.min(20, editor.value.split("\n").length + 4);
  editor.setAttribute("aria-label", `Answer ${index + 1} as it should be`);
  const cancel = () => { state.editing = null; showAnswer(index); card.querySelector(".save").remove(); element("answers").focus(); };
  const save = () => { state.editing = null; send({ kind: "edit", index, edited: editor.value }); };
  editor.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Escape") cancel();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
  });
  card.querySelector(".text").replaceChildren(editor);
  card.querySelector(".buttons").prepend(button("Save the edit", "ctrl+enter", "save", save));
  editor.focus();
}

async function undo() {
  const last = state.verdicts.at(-1);
  if (!last || state.request) return;
  let result;
  try {
    result = await call("/api/verdicts/remove", { ids: last.ids });
  } catch (error) {
    return showError(error instanceof TypeError ? "The server can't be reached: nothing was undone." : error.message);
  }
  state.verdicts.pop();
  element("undo").disabled = state.verdicts.length === 0;
  showCounts(result.counts);
  Object.assign(state, { messages: last.messages, promptIndex: last.promptIndex, comparison: null, editing: null });
  buildAnswers(last.answers.length);
  state.answers = last.answers;
  state.answers.forEach((_, i) => showAnswer(i));
  state.isComplete = true;
  showConversation();
  showActions();
  showStatus("Undone: judge these answers again.");
  element("answers").focus();
}

async function skip() {
  if (!state.isComplete) return;
  state.isComplete = false;
  if (state.promptIndex !== null) return askNextPrompt(state.promptIndex + 1);
  state.messages = state.messages.slice(0, -1);
  showJudged();
  showStatus("Skipped.");
}

function startConversation() {
  if (state.request) return;
  Object.assign(state, { messages: [], promptIndex: null, isComplete: false });
  showJudged();
  showStatus("");
}

// ---- keys

function handleKey(event) {
  if (event.target.matches("textarea, input") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("button, summary") && [" ", "Enter"].includes(event.key)) return;
  const index = "1234".indexOf(event.key);
  const pending = state.pendingKey;
  state.pendingKey = null;
  if (index >= 0 && pending === "e") beginEdit(index);
  else if (index >= 0 && pending) label(index, pending === "g");
  else if (index >= 0) choose(index);
  else if (["e", "g", "x"].includes(event.key) && state.isComplete) {
    state.pendingKey = event.key;
    const words = { e: "edit", g: "mark as good", x: "mark as bad" };
    showStatus(`Number of the answer to ${words[event.key]}?`);
  } else if (event.key === "t" && state.answers.length > 1) send({ kind: "tie" });
  else if (event.key === "b" && state.answers.length > 1) send({ kind: "both_bad" });
  else if (event.key === " ") skip();
  else if (event.key === "u") undo();
  else if (event.key === "n") startConversation();
  else if (event.key === "/") element("prompt").focus();
  else if (event.key === "Escape") stop();
  else return;
  event.preventDefault();
}

// ---- the beginning

async function reconnect() {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, RECONNECT_MS));
    try {
      state.server = await call("/api/state");
      showCounts(state.server.counts);
      showError("");
      showStatus("Connected again.");
      return;
    } catch (error) {
      if (!(error instanceof TypeError)) return showError(error.message);
    }
  }
}

async function waitForModel() {
  showStatus("Loading the model…");
  while (!state.server.is_ready) {
    await new Promise((resolve) => setTimeout(resolve, 300));
    state.server = await call("/api/state");
  }
  if (state.server.error) {
    showStatus("");
    showError(state.server.error.message);
    element("composer").querySelector("[type=submit]").disabled = true;
    return false;
  }
  showStatus("");
  return true;
}

async function begin() {
  state.server = await call("/api/state");
  const { model, adapter, output, labels_output: labelsOutput } = state.server;
  element("model").textContent = adapter ? `${model} with ${adapter}` : model;
  element("output").textContent = `Preferences: ${output}. Labels: ${labelsOutput}.`;
  element("num-answers").value = state.server.num_answers;
  element("temperature").value = state.server.temperature;
  element("max-tokens").value = state.server.max_tokens;
  element("compare-field").hidden = !adapter;
  showCounts(state.server.counts);
  element("composer").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  element("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Escape") element("prompt").blur();
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask(); }
  });
  element("tie").addEventListener("click", () => send({ kind: "tie" }));
  element("both-bad").addEventListener("click", () => send({ kind: "both_bad" }));
  element("skip").addEventListener("click", skip);
  element("stop").addEventListener("click", stop);
  element("undo").addEventListener("click", undo);
  element("new").addEventListener("click", startConversation);
  document.addEventListener("keydown", handleKey);
  element("prompt").focus();
  if (!(await waitForModel())) return;
  if (state.server.num_prompts) await askNextPrompt(state.server.next_prompt);
}

begin().catch((error) => showError(error.message));
