// The page of `mlx-dpo collect`: starts its views.

import { ask, askNextPrompt, startConversation, stop } from "./asking.js";
import { startData } from "./data.js";
import { element, showError } from "./dom.js";
import { startJudging } from "./judging.js";
import { startKeys } from "./keys.js";
import { startReview } from "./review.js";
import { refresh, session, waitForModel } from "./session.js";
import { startTraining } from "./train.js";
import { startViews } from "./views.js";

async function startCollecting() {
  await refresh();
  const { output, labels_output: labelsOutput, max_tokens_limit: limit } = session.server;
  element("output").textContent = `Preferences: ${output}. Labels: ${labelsOutput}.`;
  element("num-answers").value = session.server.num_answers;
  element("temperature").value = session.server.temperature;
  element("max-tokens").value = session.server.max_tokens;
  element("max-tokens").max = limit;
  element("composer").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  element("stop").addEventListener("click", stop);
  element("new").addEventListener("click", startConversation);
  startJudging();
  startKeys();
  if (session.server.review) return startReview();
  startTraining();
  element("prompt").focus();
  try {
    await waitForModel();
  } catch (error) {
    element("ask").disabled = true;
    throw error;
  }
  if (session.server.num_prompts) await askNextPrompt(0);
}

startData();
startViews();
startCollecting().catch((error) => showError(error.message));
