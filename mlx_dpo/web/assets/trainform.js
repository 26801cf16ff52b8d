// The settings of a run: fields with the defaults and help texts of the command, and what the run would do.

import { call } from "./api.js";
import { create, element } from "./dom.js";

const CHECK_MS = 300;

const edited = new Set(); // names of the settings that the person has changed
let losses = [];
let lastCheck = 0;

function words(name) {
  const text = name.replaceAll("_", " ");
  return text[0].toUpperCase() + text.slice(1);
}

function buildInput({ name, type, default: value }) {
  const input = create(name === "loss" ? "select" : "input", "");
  input.id = `train-${name}`;
  input.name = name;
  input.dataset.type = type;
  input.setAttribute("aria-describedby", `${input.id}-error ${input.id}-help`);
  if (name === "loss") input.append(...losses.map((loss) => new Option(loss.name, loss.name)));
  else Object.assign(input, { type: "text", autocomplete: "off", spellcheck: false });
  if (type !== "str") input.inputMode = "decimal";
  if (value !== null) input.value = type === "float" && value < 1e-3 ? value.toExponential() : value;
  return input;
}

function buildField(setting) {
  const input = buildInput(setting);
  const label = create("label", "", words(setting.name));
  label.htmlFor = input.id;
  const error = create("p", "field-error");
  error.id = `${input.id}-error`;
  const help = create("p", "muted", setting.help);
  help.id = `${input.id}-help`;
  const field = create("div", "train-field");
  field.append(label, input, error, help);
  return field;
}

const inputs = () => [...element("train-fields").querySelectorAll("input, select")];

function showLoss() {
  const loss = losses.find(({ name }) => name === element("train-loss").value);
  if (!loss) return;
  element("train-loss-help").textContent = `${loss.summary} When to use it: ${loss.when}.`.replaceAll("`", "");
  element("train-beta").placeholder = loss.beta;
}

// What was filled in. A text that is no number is sent as it is: the server says what is wrong with it.
export function settings() {
  const values = {};
  for (const input of inputs()) {
    const text = input.value.trim();
    if (text) values[input.name] = input.dataset.type === "str" || Number.isNaN(Number(text)) ? text : Number(text);
  }
  return values;
}

// Builds the fields again, for the rows and folders as they are now; what was changed stays.
export async function refreshForm() {
  const form = await call("/api/training/form");
  const kept = inputs().filter((input) => edited.has(input.name)).map((input) => [input.name, input.value]);
  losses = form.losses;
  element("train-fields").replaceChildren(...form.settings.map(buildField));
  for (const [name, value] of kept) {
    const input = element(`train-${name}`);
    if (name !== "loss" || losses.some((loss) => loss.name === value)) input.value = value;
  }
  showLoss();
  await showOutline();
}

// The next run needs another folder.
export function forgetFolder() { edited.delete("adapter_path"); }

// Shows an error at its field; false if it is of none.
export function showFieldError(error) {
  for (const input of inputs()) {
    const isWrong = Boolean(error) && input.name === error.field;
    const text = isWrong ? error.message.replace(/^.*?`\w+`: /s, "") : "";
    element(`${input.id}-error`).textContent = text;
    if (isWrong) input.setAttribute("aria-invalid", "true"); else input.removeAttribute("aria-invalid");
  }
  return inputs().some((input) => input.hasAttribute("aria-invalid"));
}

const counted = (n, noun) => `${n} ${n === 1 ? noun.slice(0, -1) : noun}`;

async function showOutline() {
  const check = ++lastCheck;
  const run = await call("/api/training/outline", { settings: settings() });
  if (check !== lastCheck) return;
  const { problem } = run;
  const isAtField = showFieldError(problem);
  const outline = problem ? problem.message : `${counted(run.num_training, run.kind)} to train on, ${run.num_held_out} held out; `
    + `${counted(run.steps, "steps")}. Rows: ${run.source}`;
  element("train-outline").textContent = isAtField ? "" : outline;
  element("train-start").disabled = Boolean(problem);
}

// `onError` receives what went wrong when the settings could not be checked.
export function startForm(onError) {
  let timer = 0;
  element("train-fields").addEventListener("input", (event) => {
    edited.add(event.target.name);
    showLoss();
    clearTimeout(timer);
    timer = setTimeout(() => showOutline().catch(onError), CHECK_MS);
  });
}
