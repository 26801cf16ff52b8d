// The data view: all rows of both files, searched and filtered, changed, imported and exported.

import { call } from "./api.js";
import { element, isTextField, showError } from "./dom.js";
import { changeRow, openRow, startRowEditor } from "./roweditor.js";
import { openImport, startImport } from "./rowimport.js";
import { RowList } from "./rowlist.js";
import { refresh as refreshState, session } from "./session.js";
import { currentView, onShow } from "./views.js";

const WATCH_MS = 2000; // how often a change by another tab or program is looked for
const TEXTS = ["search", "kind", "labeller"];
const FLAGS = ["edited", "warned", "duplicate"];
const undoable = []; // ids of changes

let list;
let shownVersion = 0; // of the files whose counts are shown

const showDataStatus = (text) => { element("data-status").textContent = text; };
const number = (n) => n.toLocaleString("en");
const counted = (n, noun) => `${number(n)} ${n === 1 ? noun : `${noun}s`}`;
const percent = (share) => `${Math.round(100 * share)}%`;

function query() {
  const values = new URLSearchParams();
  for (const name of TEXTS) if (element(`data-${name}`).value) values.set(name, element(`data-${name}`).value);
  for (const name of FLAGS) if (element(`data-${name}`).checked) values.set(name, "1");
  return values.toString();
}

function filter() {
  for (const examples of ["pairs", "labels"]) {
    element(`export-${examples}`).href = `/api/rows/export/${examples}?${query()}`;
  }
  return list.load(query());
}

function showSummary(summary) {
  shownVersion = summary.version;
  const { kinds } = summary;
  const parts = [counted(kinds.preference, "preference"), counted(kinds.tie, "tie"), counted(kinds.label, "label")];
  if (kinds.broken) parts.push(`${counted(kinds.broken, "row")} that can't be used`);
  if (summary.warned) parts.push(`${number(summary.warned)} with warnings`);
  if (summary.duplicates) parts.push(`${counted(summary.duplicates, "duplicate")}`);
  element("data-counts").textContent = parts.join(", ");
  const { agreement } = summary;
  element("data-agreement").hidden = !agreement;
  if (agreement) {
    const [low, high] = agreement.interval;
    element("data-agreement").textContent = `Shown again to the same person: ${counted(agreement.compared, "time")}, `
      + `judged as before ${percent(agreement.share)} (95% interval ${percent(low)} to ${percent(high)}).`;
  }
  showLabellers(Object.keys(summary.labellers));
}

function showLabellers(names) {
  const select = element("data-labeller");
  const { value } = select;
  element("data-labeller-field").hidden = names.length === 0;
  select.replaceChildren(new Option("all", ""), ...names.map((name) => new Option(name, name)));
  select.value = names.includes(value) ? value : "";
}

async function update() {
  const summary = await call("/api/rows/summary");
  const isChanged = summary.version !== shownVersion;
  showSummary(summary);
  if (isChanged && session.server) await refreshState();
  if (summary.version !== list.version) await list.load(query(), { keepPlace: true });
}

// After a change: it can be undone, and the list shows what the files hold.
async function showChange(result, sentence) {
  undoable.push(result.undo);
  element("data-undo").disabled = false;
  showError("");
  await refresh(sentence);
}

async function refresh(sentence) {
  try {
    await update();
    showDataStatus(sentence);
  } catch (error) {
    showError(error.message);
  }
  if (!document.querySelector("dialog[open]")) element("data-list").focus();
}

async function undo() {
  const id = undoable.pop();
  if (!id) return;
  element("data-undo").disabled = undoable.length === 0;
  try {
    await call("/api/rows/undo", { id });
    showError("");
    await refresh("Undone.");
  } catch (error) {
    showError(error.message);
    await list.reload();
  }
}

function act(action) {
  const row = list.activeRow;
  if (row) changeRow(action, row).catch((error) => { showError(error.message); list.reload(); });
}

function handleKey(event) {
  if (currentView() !== "data" || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (isTextField(event.target)) {
    if (event.target.id === "data-search" && event.key === "ArrowDown") element("data-list").focus();
    return;
  }
  const keys = { "/": () => element("data-search").focus(), u: undo, i: openImport };
  const listKeys = { s: () => act("swap"), Delete: () => act("delete"), Backspace: () => act("delete") };
  const run = keys[event.key] || (event.target === element("data-list") ? listKeys[event.key] : null);
  if (!run) return;
  event.preventDefault();
  run();
}

async function watch() {
  if (currentView() !== "data" || document.hidden) return;
  try {
    await update();
  } catch (error) {
    showDataStatus(error.message);
  }
}

export function startData() {
  list = new RowList(element("data-list"), element("data-rows"), {
    onOpen: (row) => openRow(row).catch((error) => { showError(error.message); list.reload(); }),
    onError: (error) => showError(error.message),
    onLoad: () => {
      showDataStatus(`${counted(list.matching, "row")} listed.`);
      if (list.version !== shownVersion) watch();
    },
  });
  startRowEditor(showChange);
  startImport(showChange);
  element("data-filters").addEventListener("input", filter);
  element("data-filters").addEventListener("submit", (event) => event.preventDefault());
  element("data-undo").addEventListener("click", undo);
  element("data-import").addEventListener("click", openImport);
  document.addEventListener("keydown", handleKey);
  onShow("data", () => { showError(""); watch(); });
  setInterval(watch, WATCH_MS);
}
