// A prompt that was typed, or the next one of the file, and the answers as they come.

import { call, ConnectionLost, readEvents } from "./api.js";
import {
  announceAnswer, buildAnswers, clearAnswers, question, showActions, showAnswer, showConversation,
} from "./conversation.js";
import { button, element, isTextField, showError, showStatus } from "./dom.js";
import { session, showFailure } from "./session.js";

export async function ask() {
  const text = element("prompt").value.trim();
  if (!text || session.request || session.isSaving) return;
  if (session.isComplete) return showError("Judge these answers first, or skip them (space).");
  const system = element("system").value.trim();
  if (!session.messages.length && system) session.messages = [{ role: "system", content: system }];
  session.messages = [...session.messages, { role: "user", content: text }];
  session.promptIndex = null;
  element("prompt").value = "";
  await sample();
}

// Removes the prompt that has no answer, and returns it.
export function takeBackPrompt() {
  const text = session.messages.at(-1)?.content ?? "";
  session.messages = session.messages.slice(0, -1);
  if (session.messages.every((message) => message.role === "system")) session.messages = [];
  return text;
}

// The first prompt of the file from a number on that has no verdict.
export async function askNextPrompt(index) {
  session.promptIndex = index;
  session.messages = [];
  clearAnswers();
  showStatus("");
  let prompt;
  try {
    prompt = await call(`/api/prompts/${index}`);
  } catch (error) {
    offerRetry(() => askNextPrompt(index));
    return showFailure(error, "Try again once it is back.");
  }
  if (prompt.index === null) {
    startConversation();
    return showStatus("All prompts of the file have verdicts.");
  }
  session.promptIndex = prompt.index;
  session.messages = prompt.messages;
  await sample();
}

async function sample() {
  showError("");
  buildAnswers(Number(element("num-answers").value));
  showConversation();
  const request = new AbortController();
  Object.assign(session, { request, comparison: null, isComplete: false });
  showActions();
  showStatus("Waiting for the model…");
  element("answers").focus({ preventScroll: true });
  element("status").scrollIntoView({ block: "nearest" });
  try {
    await readAnswers(request);
  } catch (error) {
    if (error.name === "AbortError") return; // `stop` has put everything back
    giveUp();
    showStatus("");
    showFailure(error, "The prompt is kept.");
  }
}

async function readAnswers(request) {
  const number = (id) => element(id).valueAsNumber;
  const body = {
    messages: session.messages, num_answers: session.answers.length, temperature: number("temperature"),
    max_tokens: number("max-tokens"), compare: element("compare").checked,
  };
  let isEnded = false;
  await readEvents("/api/answers", body, request.signal, (name, data) => {
    if (request.signal.aborted) return;
    if (name === "begin") showConversation(data.html);
    if (name === "failed") throw new Error(data.message);
    if (name === "answers") showAnswers(data.answers);
    if (name === "end") { isEnded = true; complete(data.comparison); }
  });
  if (!isEnded && !request.signal.aborted) throw new ConnectionLost();
}

function showAnswers(answers) {
  showStatus("Answering…");
  for (const answer of answers) {
    session.answers[answer.index] = answer;
    showAnswer(answer.index);
    if (answer.finish_reason) announceAnswer(answer.index);
  }
}

function complete(comparison) {
  Object.assign(session, { request: null, comparison, isComplete: true });
  showActions();
  showStatus(question());
  if (isTextField(document.activeElement)) return; // the next prompt is being typed
  element("answers").focus({ preventScroll: true });
  element("verdict-bar").scrollIntoView({ block: "nearest" });
  element("status").scrollIntoView({ block: "nearest" });
}

// Back to before the answers: a typed prompt to its field, one of the file to be asked again or skipped.
function giveUp() {
  session.request = null;
  if (session.promptIndex === null) {
    const typed = element("prompt").value;
    element("prompt").value = typed ? `${takeBackPrompt()}\n${typed}` : takeBackPrompt();
    clearAnswers();
    element("prompt").focus();
  } else {
    clearAnswers();
    offerRetry(() => sample());
  }
}

function offerRetry(again) {
  const index = session.promptIndex;
  const retry = button("Try again", "", "retry", again);
  element("answers").replaceChildren(retry, button("Next prompt", "", "next", () => askNextPrompt(index + 1)));
  retry.focus();
}

export function stop() {
  if (!session.request) return;
  session.request.abort();
  giveUp();
  showStatus("Stopped.");
}

export function startConversation() {
  if (session.request || session.isSaving) return;
  Object.assign(session, { messages: [], promptIndex: null });
  clearAnswers();
  showError("");
  showStatus("");
  element("prompt").focus();
}
