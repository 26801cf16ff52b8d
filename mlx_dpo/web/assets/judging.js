// Verdicts on the answers: they are shown as saved once the server says that they are on the disk.

import { call } from "./api.js";
import { askNextPrompt, stop, takeBackPrompt } from "./asking.js";
import {
  answerCardAt, buildAnswers, clearAnswers, comparisonProblem, question, showActions, showAnswer, showConversation,
  showNote,
} from "./conversation.js";
import { button, create, element, showError, showStatus } from "./dom.js";
import { refreshProgress, showComparison, showNextComparison, skipComparison } from "./review.js";
import { session, showCounts, showFailure } from "./session.js";

// Saves a verdict, and returns the server's answer, or null if it isn't saved.
async function save(verdict) {
  if (!session.isComplete || session.isSaving) return null;
  session.isSaving = true;
  const { messages, answers, marks, promptIndex, review } = session;
  const sent = { messages, answers: answers.map((answer) => answer.text), ...verdict };
  try {
    const result = review
      ? await call("/api/review/verdicts", { shown: review.shown, ...verdict })
      : await call("/api/verdicts", { verdict: sent, comparison: session.comparison });
    session.verdicts.push({ ids: result.ids, messages, answers, marks: [...marks], promptIndex, review });
    if (result.wins) session.server.wins = result.wins;
    showCounts(result.counts);
    showError("");
    element("undo").disabled = false;
    return result;
  } catch (error) {
    showFailure(error, "This verdict is not saved: give it again once it is back.");
    return null;
  } finally {
    session.isSaving = false;
  }
}

async function judge(verdict, kept) {
  const result = await save(verdict);
  if (result) await advance(kept, result.policies);
}

// A verdict that compares all answers.
function compare(verdict, kept) {
  const problem = session.isComplete && !session.review && comparisonProblem();
  if (problem) showError(problem); else judge(verdict, kept);
}

// To the next prompt; `kept` is the answer that the conversation continues with, or null.
async function advance(kept, policies) {
  if (session.review) return showNextComparison();
  const revealed = policies ? ` ${policies.map((policy, i) => `Answer ${i + 1}: ${policy}.`).join(" ")}` : "";
  if (session.promptIndex !== null) return askNextPrompt(session.promptIndex + 1);
  if (kept === null) takeBackPrompt();
  else session.messages = [...session.messages, { role: "assistant", content: kept }];
  clearAnswers();
  element("prompt").focus();
  showStatus(`Saved.${revealed}`);
}

export function choose(index) {
  if (session.answers.length < 2 || index >= session.answers.length) return;
  compare({ kind: "choice", index }, session.answers[index].text);
}

export function tie() { if (session.answers.length > 1) compare({ kind: "tie" }, null); }

export function allBad() {
  if (session.answers.length < 2) return;
  if (session.marks.length) return showError("Some of these answers are marked already: mark the others, or undo (u).");
  compare({ kind: "both_bad" }, null);
}

function isEmpty(index) {
  const answer = session.answers[index];
  const isUnusable = Boolean(answer.finish_reason) && !answer.text;
  if (isUnusable) showError(`Answer ${index + 1} is empty: edit or mark another one, or skip them (space).`);
  return isUnusable;
}

// Marks an answer as good or bad. The others can still be judged, until each has a mark.
export async function mark(index, isGood) {
  if (index >= session.answers.length || isEmpty(index)) return;
  if (session.marks[index] !== undefined) return showError(`Answer ${index + 1} is marked already: undo (u) that first.`);
  const result = await save({ kind: "thumbs", answers: [session.answers[index].text], index: 0, is_good: isGood });
  if (!result) return;
  session.marks[index] = isGood;
  showNote(index);
  if (session.answers.some((_, i) => session.marks[i] === undefined)) return showStatus("Saved.");
  const good = session.answers.filter((_, i) => session.marks[i]);
  await advance(good.length === 1 ? good[0].text : null, null);
}

export function beginEdit(index) {
  if (!session.isComplete || index >= session.answers.length || isEmpty(index)) return;
  const card = answerCardAt(index);
  if (card.querySelector(".editor")) return card.querySelector(".editor").focus();
  const editor = create("textarea", "editor");
  const original = session.answers[index].text;
  editor.value = original;
  editor.rows = Math.min(20, editor.value.split("\n").length + 4);
  editor.dir = "auto";
  editor.setAttribute("aria-label", `Answer ${index + 1} as it should be`);
  const cancel = () => {
    showAnswer(index);
    card.querySelector(".save").remove();
    showError("");
    showStatus(question());
    element("answers").focus();
  };
  const finish = () => {
    const edited = editor.value;
    if (!edited.trim() || edited === original) return showError("Change the text first, or leave it as it was (esc).");
    judge({ kind: "edit", answers: [original], index: 0, edited }, edited);
  };
  editor.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Escape") cancel();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) finish();
  });
  card.querySelector(".text").replaceChildren(editor);
  card.querySelector(".buttons").prepend(button("Save the edit", "ctrl+enter", "save", finish));
  showError("");
  showStatus("Write what the answer should be.");
  editor.focus();
}

export async function undo() {
  const last = session.verdicts.at(-1);
  if (!last || session.isSaving) return;
  if (session.request) stop();
  session.isSaving = true;
  let result;
  try {
    result = await call("/api/verdicts/remove", { ids: last.ids });
  } catch (error) {
    return showFailure(error, "Nothing was undone.");
  } finally {
    session.isSaving = false;
  }
  session.verdicts.pop();
  element("undo").disabled = session.verdicts.length === 0;
  session.server.wins = result.wins;
  showCounts(result.counts);
  showAgain(last);
}

function showAgain({ messages, answers, marks, promptIndex, review }) {
  if (review) {
    showComparison(review);
    showStatus("Undone: judge these answers again.");
    return refreshProgress();
  }
  const isOther = session.messages !== messages;
  if (isOther && session.isComplete && session.promptIndex === null && !element("prompt").value) {
    element("prompt").value = takeBackPrompt(); // it was asked and not judged yet
  }
  Object.assign(session, { messages, promptIndex, comparison: null });
  buildAnswers(answers.length);
  Object.assign(session, { answers, marks, isComplete: true });
  answers.forEach((_, i) => showAnswer(i));
  showConversation();
  showActions();
  showError("");
  showStatus("Undone: judge these answers again.");
  element("answers").focus();
}

export async function skip() {
  if (!session.isComplete || session.isSaving) return;
  if (session.review) return skipComparison();
  if (session.promptIndex !== null) return askNextPrompt(session.promptIndex + 1);
  takeBackPrompt();
  clearAnswers();
  element("prompt").focus();
  showError("");
  showStatus("Skipped.");
}

const ACTIONS = { choose, edit: beginEdit, good: (i) => mark(i, true), bad: (i) => mark(i, false) };

export function startJudging() {
  element("answers").addEventListener("click", (event) => {
    const { action, index } = event.target.closest("button[data-action]")?.dataset ?? {};
    if (action) ACTIONS[action](Number(index));
  });
  element("tie").addEventListener("click", tie);
  element("both-bad").addEventListener("click", allBad);
  element("skip").addEventListener("click", skip);
  element("undo").addEventListener("click", undo);
}
