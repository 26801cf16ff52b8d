// What the collecting view knows, and the server's state.

import { call, ConnectionLost } from "./api.js";
import { element, showError, showStatus } from "./dom.js";

const RECONNECT_MS = 1000;
const LOADING_MS = 300;

export const session = {
  server: null, // the last answer of /api/state
  messages: [], // the turns before the answers, {role, content}
  promptIndex: null, // of the prompts' file; null for a prompt that was typed
  answers: [], // {text, html, finish_reason}
  marks: [], // of each answer that was marked: true for good, false for bad
  comparison: null, // id by which the server knows which answer is whose
  review: null, // the comparison on the screen where a file is reviewed: {shown, turns, answers}
  request: null, // AbortController of the answers that are being sampled
  isComplete: false, // all answers are there and can be judged
  isSaving: false, // a verdict, or its removal, is on its way
  verdicts: [], // for undo: {ids, messages, answers, marks, promptIndex, review}
};

let isReconnecting = false;

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const counted = (n, noun) => `${n} ${n === 1 ? noun : `${noun}s`}`;

export function showCounts(counts) {
  const parts = [counted(counts.preferences, "preference")];
  if (counts.ties) parts.push(counted(counts.ties, "tie"));
  if (counts.labels) parts.push(counted(counts.labels, "label"));
  const { tuned, base, tie } = session.server.wins;
  const compared = tuned + base + tie;
  if (compared) parts.push(`adapter preferred in ${Math.round(100 * (tuned + tie / 2) / compared)}% of ${counted(compared, "comparison")}`);
  element("counts").textContent = parts.join(", ");
}

export async function refresh() {
  session.server = await call("/api/state");
  const { model, adapter, counts } = session.server;
  if (model) element("model").textContent = adapter ? `${model} with ${adapter}` : model;
  element("compare-field").hidden = !adapter;
  if (!adapter) element("compare").checked = false;
  showCounts(counts);
}

// Says what went wrong; if the server is gone, tries until it is back.
export function showFailure(error, whenLost) {
  if (!(error instanceof ConnectionLost)) return showError(error.message);
  showError(`${error.message} ${whenLost}`);
  reconnect();
}

async function reconnect() {
  if (isReconnecting) return;
  isReconnecting = true;
  try {
    for (;;) {
      await pause(RECONNECT_MS);
      try {
        await refresh();
        showError("");
        showStatus("Connected again.");
        return;
      } catch (error) {
        if (!(error instanceof ConnectionLost)) return showError(error.message);
      }
    }
  } finally {
    isReconnecting = false;
  }
}

// Waits until the model is loaded; throws an Error if it can't be.
export async function waitForModel() {
  while (!session.server.is_ready) {
    showStatus(session.server.release_reason ? "The model is loaded again when training ends." : "Loading the model…");
    await pause(LOADING_MS);
    try {
      await refresh();
      showError("");
    } catch (error) {
      if (!(error instanceof ConnectionLost)) throw error;
      showError(error.message);
    }
  }
  if (!session.request) showStatus("");
  if (session.server.error) throw new Error(session.server.error.message);
}
