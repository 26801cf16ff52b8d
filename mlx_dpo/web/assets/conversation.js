// The conversation and the answers on the screen.

import { create, element, showHtml } from "./dom.js";
import { session } from "./session.js";

export function showConversation(html) {
  const texts = session.messages.map((message) => {
    const text = create("div", "text", message.content);
    text.dir = "auto";
    return text;
  });
  const items = session.messages.map((message, i) => {
    const item = create("li", message.role);
    item.append(create("h2", "", message.role), texts[i]);
    return item;
  });
  element("conversation").replaceChildren(...items);
  html?.forEach((turn, i) => showHtml(texts[i], turn));
}

function answerButton(label, key, action, index) {
  const node = create("button", action, label);
  node.type = "button";
  node.dataset.action = action;
  node.dataset.index = index;
  node.append(" ", create("kbd", "", key));
  return node;
}

function answerCard(i, count) {
  const card = create("article", "answer");
  card.setAttribute("aria-label", `Answer ${i + 1}`);
  const text = create("div", "text");
  text.dir = "auto";
  const actions = create("div", "buttons");
  const key = i + 1;
  if (count > 1) actions.append(answerButton("Better", `${key}`, "choose", i));
  actions.append(
    answerButton("Edit", `e ${key}`, "edit", i),
    answerButton("Good", `g ${key}`, "good", i),
    answerButton("Bad", `x ${key}`, "bad", i),
  );
  card.append(create("h2", "", `Answer ${key}`), text, create("p", "note"), actions);
  return card;
}

export function buildAnswers(count) {
  session.answers = Array.from({ length: count }, () => ({ text: "", html: "", finish_reason: null }));
  session.marks = [];
  element("announcements").replaceChildren();
  element("answers").replaceChildren(...session.answers.map((_, i) => answerCard(i, count)));
}

export const answerCardAt = (i) => element("answers").children[i];

export function showAnswer(i) {
  const card = answerCardAt(i);
  const answer = session.answers[i];
  showHtml(card.querySelector(".text"), answer.html);
  showNote(i);
}

// Answers are too quick to be read out as they grow: a screen reader gets each when it is finished.
export function announceAnswer(i) {
  element("announcements").append(create("p", "", `Answer ${i + 1}: ${answerCardAt(i).querySelector(".text").innerText}`));
}

export function showNote(i) {
  const notes = [];
  if (session.answers[i].finish_reason === "length") notes.push("Cut off at the longest answer.");
  if (session.answers[i].finish_reason && !session.answers[i].text) notes.push("The answer is empty.");
  if (session.marks[i] !== undefined) notes.push(session.marks[i] ? "Marked as good." : "Marked as bad.");
  answerCardAt(i).querySelector(".note").textContent = notes.join(" ");
}

// Why the answers can't be compared; empty if they can.
export function comparisonProblem() {
  const texts = session.answers.map((answer) => answer.text);
  if (texts.includes("")) return "An answer is empty: edit or mark another one, or skip them (space).";
  if (new Set(texts).size === 1) return "These answers are the same: edit or mark one, or skip them (space).";
  return "";
}

// What the person is to decide.
export function question() {
  return session.answers.length > 1 ? comparisonProblem() || "Which one is better?" : "Is it good?";
}

export function showActions() {
  const count = session.answers.length;
  for (const actions of element("answers").querySelectorAll(".buttons")) actions.hidden = !session.isComplete;
  element("verdict-bar").hidden = !(session.isComplete || session.request);
  element("tie").hidden = element("both-bad").hidden = count < 2 || !session.isComplete;
  element("skip").hidden = !session.isComplete;
  element("stop").hidden = !session.request;
}

// No answers on the screen; the prompt is next.
export function clearAnswers() {
  Object.assign(session, { answers: [], marks: [], comparison: null, isComplete: false });
  element("announcements").replaceChildren();
  element("answers").replaceChildren();
  showConversation();
  showActions();
}
