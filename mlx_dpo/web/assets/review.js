// Reviewing a file: its comparisons one after the other, and at the end what the verdicts amount to.

import { call } from "./api.js";
import { buildAnswers, clearAnswers, showActions, showAnswer, showConversation } from "./conversation.js";
import { button, create, element, showError, showStatus } from "./dom.js";
import { session, showFailure } from "./session.js";

const KEYS = "Keys: 1 to 4 choose the better answer, e none is better (tie), b all are bad, space skip, u undo.";

export async function startReview() {
  const { file, labeller } = session.server.review;
  document.body.classList.add("review");
  element("model").textContent = `Review of ${file}`;
  element("output").textContent = `Verdicts: ${session.server.output}`;
  element("review").hidden = false;
  element("collect-hint").textContent = KEYS;
  element("tie").querySelector("kbd").textContent = "e";
  showLeftOut(session.server.review);
  const buttons = create("div", "buttons");
  buttons.append(element("undo"));
  element("verdict-bar").after(buttons);
  if (labeller) return showNextComparison();
  element("labeller-form").hidden = false;
  element("labeller-form").addEventListener("submit", setLabeller);
  element("labeller").focus();
}

async function setLabeller(event) {
  event.preventDefault();
  try {
    await call("/api/review/labeller", { name: element("labeller").value });
  } catch (error) {
    return showFailure(error, "The name is not saved.");
  }
  element("labeller-form").hidden = true;
  showError("");
  await showNextComparison();
}

export async function showNextComparison() {
  session.messages = [];
  element("review-result").replaceChildren();
  clearAnswers();
  let next;
  session.isSaving = true; // no key is a verdict on what isn't shown yet
  try {
    next = await call("/api/review/next");
  } catch (error) {
    const again = () => { showError(""); showNextComparison(); };
    element("answers").replaceChildren(button("Try again", "", "retry", again));
    return showFailure(error, "Try again once it is back.");
  } finally {
    session.isSaving = false;
  }
  showProgress(next.summary);
  if (!next.comparison) return showResult(next.summary, next.result);
  showComparison(next.comparison);
  showStatus("Which one is better?");
}

export function showComparison(shown) {
  element("review-result").replaceChildren();
  buildAnswers(shown.answers.length);
  Object.assign(session, {
    review: shown, isComplete: true,
    messages: shown.turns.map(({ role }) => ({ role, content: "" })),
    answers: shown.answers.map(({ html }) => ({ text: html, html, finish_reason: "stop" })),
  });
  shown.answers.forEach((_, i) => showAnswer(i));
  showConversation(shown.turns.map(({ html }) => html));
  showActions();
  element("answers").focus({ preventScroll: true });
  element("review").scrollIntoView(); // a new comparison is read from its prompt on
}

export async function skipComparison() {
  session.isSaving = true;
  try {
    await call("/api/review/skipped", { shown: session.review.shown });
  } catch (error) {
    return showFailure(error, "Nothing was skipped.");
  } finally {
    session.isSaving = false;
  }
  showError("");
  await showNextComparison();
}

export async function refreshProgress() {
  try {
    showProgress(await call("/api/review"));
  } catch (error) {
    showFailure(error, "");
  }
}

// Rows of the file that have nothing to judge.
function showLeftOut({ bad, single, problem }) {
  const texts = [];
  if (bad) texts.push(`Rows that can't be read: ${bad}, the first ${problem}.`);
  if (single) texts.push(`Rows without two different completions: ${single}.`);
  element("review-left-out").textContent = texts.join(" ");
}

function showProgress({ judged, comparisons, labeller, skipped }) {
  const also = skipped ? `, ${skipped} skipped` : "";
  element("review-progress").textContent = `${judged} of ${comparisons} judged by ${labeller}${also}`;
  Object.assign(element("review-meter"), { max: comparisons, value: judged, hidden: false });
}

const percent = (share) => `${Math.round(100 * share)}%`;

function describe(agreement, share) {
  const [low, high] = agreement.interval;
  return `${percent(share)} of ${agreement.compared}, 95% interval ${percent(low)} to ${percent(high)}`;
}

function showResult({ comparisons, skipped }, { agreement, repeated, command }) {
  const lines = [create("h2", "", skipped ? "Only skipped comparisons are left." : `All ${comparisons} comparisons are judged.`)];
  if (agreement) {
    const kappa = agreement.kappa === null ? "" : `; Cohen's kappa ${agreement.kappa.toFixed(2)}`;
    lines.push(create("p", "", `Agreement with the file's own preferences: ${describe(agreement, agreement.agreement)}${kappa}.`));
  } else lines.push(create("p", "", "The file has no preferences of its own to compare with."));
  if (repeated) lines.push(create("p", "", `Same verdict when shown again: ${describe(repeated, repeated.share)}.`));
  if (skipped) lines.push(button(`Show the ${skipped} skipped`, "", "skipped", showSkipped));
  lines.push(create("p", "", "Next, with the files of the other labellers after --merge:"), create("pre", "command", command));
  lines.at(-1).tabIndex = 0;
  element("review-result").replaceChildren(...lines);
  showStatus("");
  element("review-result").focus();
}

async function showSkipped() {
  try {
    await call("/api/review/skipped", {});
  } catch (error) {
    return showFailure(error, "Try again once it is back.");
  }
  await showNextComparison();
}
