// The training view: a run that is started, watched, stopped and resumed.

import { call, ConnectionLost } from "./api.js";
import { showComparison, startComparing } from "./comparing.js";
import { create, element } from "./dom.js";
import { refresh } from "./session.js";
import { showCharts } from "./traincharts.js";
import { forgetFolder, refreshForm, settings, showFieldError, startForm } from "./trainform.js";
import { currentView, onShow } from "./views.js";

const POLL_MS = 1000;
const COPIED_MS = 2000;

let state = null; // the last answer of /api/training
let report = null; // of the run
let reportVersion = "";
let pollText = ""; // of the error that the last poll has shown
let timer = 0;

const isRunning = () => state?.run?.state === "running";
const isShown = () => currentView() === "train";

export function showTrainError(text) {
  element("train-error").textContent = text || "";
  element("train-error").hidden = !text;
}

function describe({ name, state: runState }) {
  const steps = report?.steps ? ` ${report.step} of ${report.steps}` : "";
  if (runState === "running") return steps ? `${name}: training, step${steps}` : `${name}: training begins`;
  if (runState === "stopped") return `${name}: stopped${steps && ` after step${steps}`}; it can be resumed`;
  if (runState === "finished") return `${name}: finished`;
  return `${name}: failed, and nothing is saved`;
}

function showRun(run) {
  element("train-run").hidden = element("train-details").hidden = !run;
  element("train-form").hidden = isRunning();
  if (!run) return;
  element("train-title").textContent = describe(run);
  element("train-progress").hidden = !isRunning();
  if (report?.steps) Object.assign(element("train-progress"), { max: report.steps, value: report.step });
  else element("train-progress").removeAttribute("value");
  element("train-stop").hidden = !isRunning();
  element("train-stop").disabled = state.is_stopping;
  element("train-stop").textContent = state.is_stopping ? "Stopping after this step…" : "Stop and save";
  element("train-resume").hidden = run.state !== "stopped";
  element("train-command").textContent = run.command;
  element("train-last-line").textContent = isRunning() ? run.output.trimEnd().split("\n").at(-1) : "";
  const output = element("train-output");
  const isAtEnd = output.scrollTop + output.clientHeight >= output.scrollHeight - 4;
  output.textContent = run.output;
  if (isAtEnd) output.scrollTop = output.scrollHeight;
  if (run.state === "failed") element("train-output-details").open = true;
}

function buildSample({ prompt, before, after }) {
  const sample = create("div", "train-sample");
  sample.append(create("h3", "", prompt));
  for (const [name, text] of [["before", before], ["after", after]]) {
    if (text === null) continue;
    const column = create("div", "");
    column.append(create("p", "muted", name), create("p", "sample-text", text));
    sample.append(column);
  }
  return sample;
}

async function showReport(run) {
  if (run.version === reportVersion) return;
  report = await call("/api/training/report");
  element("train-verdict").textContent = report.verdict;
  element("train-warnings").replaceChildren(...report.warnings.map((text) => create("li", "", text)));
  element("train-samples").hidden = !report.samples.length;
  element("train-samples-list").replaceChildren(...report.samples.map(buildSample));
  await showCharts(report.charts);
  reportVersion = run.version;
}

function buildCommand(command, i) {
  const item = create("li", "command");
  const code = create("code", "", command);
  const copy = create("button", "", "Copy");
  copy.type = "button";
  code.id = `next-command-${i}`;
  copy.setAttribute("aria-describedby", code.id);
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(command);
      copy.textContent = "Copied";
      setTimeout(() => { copy.textContent = "Copy"; }, COPIED_MS);
    } catch {
      getSelection().selectAllChildren(code); // the browser doesn't allow it: ctrl-c does
    }
  });
  item.append(code, copy);
  return item;
}

function showNext(commands) {
  const list = element("next-commands");
  element("next").hidden = !commands.length;
  if (list.dataset.commands === commands.join("\n")) return;
  list.dataset.commands = commands.join("\n");
  list.replaceChildren(...commands.map(buildCommand));
}

async function show(next) {
  const wasRunning = isRunning();
  const wasReady = state?.is_ready;
  state = next;
  const { run } = state;
  element("train-status").textContent = isRunning() ? "The model that answers here is not in memory until training ends."
    : state.is_ready ? "" : "Loading the model…";
  if (run && isShown()) await showReport(run);
  showRun(run);
  showNext(run?.next_commands ?? []);
  if (wasRunning !== isRunning() || wasReady !== state.is_ready) await refresh(); // the model has changed
  if (wasRunning && !isRunning()) await refreshForm();
  showComparison(state);
}

async function poll() {
  clearTimeout(timer);
  let text;
  try {
    await show(await call("/api/training"));
    text = state.error ?? "";
  } catch (error) {
    const isLost = error instanceof ConnectionLost && isRunning();
    text = isLost ? `${error.message} The training goes on: start the server again to see it.` : error.message;
  }
  if (text !== pollText) showTrainError(text);
  pollText = text;
  clearTimeout(timer);
  const isWaiting = !state || isRunning() || !state.is_ready;
  if (isShown() || isWaiting) timer = setTimeout(poll, POLL_MS);
}

async function act(path, body) {
  try {
    await call(path, body);
    await poll();
    return true;
  } catch (error) {
    if (!showFieldError(error)) showTrainError(error.message);
    return false;
  }
}

async function start(event) {
  event.preventDefault();
  element("train-start").disabled = true;
  const isStarted = await act("/api/training/start", { settings: settings() });
  element("train-start").disabled = false;
  if (!isStarted) return;
  forgetFolder();
  element("train-stop").focus();
}

async function showView() {
  poll();
  try {
    await refreshForm();
  } catch (error) {
    showTrainError(error.message);
  }
}

export function startTraining() {
  startForm((error) => showTrainError(error.message));
  startComparing({ showError: showTrainError, onLoad: () => act("/api/training/adapter", {}) });
  element("train-form").addEventListener("submit", start);
  element("train-stop").addEventListener("click", () => act("/api/training/stop", {}));
  element("train-resume").addEventListener("click", () => act("/api/training/resume", {}));
  onShow("train", showView);
  if (isShown()) showView(); else poll();
}
