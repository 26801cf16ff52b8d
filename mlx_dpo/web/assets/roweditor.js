// The dialog in which a row is read in full, edited, swapped and deleted.

import { call } from "./api.js";
import { create, element } from "./dom.js";

const MAX_LINES = 18;
const editor = { row: null, isDirty: false, isWarned: false, act: null };

const placeOf = ({ file, line, digest }) => ({ file, line, digest });

function showRowError(text) {
  element("row-error").textContent = text;
  element("row-error").hidden = !text;
}

function fieldNode(field, index) {
  const node = create("div", "row-field");
  node.dataset.name = field.name;
  const label = create("label", "", field.name);
  label.htmlFor = `row-field-${index}`;
  node.append(label);
  let input;
  if (field.name === "label" && ["true", "false"].includes(field.text)) {
    input = create("select");
    input.append(new Option("good", "true"), new Option("bad", "false"));
  } else {
    input = create("textarea");
    input.rows = Math.min(MAX_LINES, field.text.split("\n").length + Math.floor(field.text.length / 120) + 1);
    input.dir = "auto";
    if (field.name !== "row") node.append(jsonBox(field));
  }
  input.id = label.htmlFor;
  input.className = "value";
  input.value = field.text;
  node.append(input);
  return node;
}

function jsonBox(field) {
  const label = create("label", "as-json");
  const box = create("input");
  box.type = "checkbox";
  box.checked = field.is_json;
  label.append(box, " JSON");
  return label;
}

function readFields() {
  const fields = {};
  for (const node of element("row-fields").children) {
    const shown = editor.row.fields.find((field) => field.name === node.dataset.name);
    const box = node.querySelector("[type=checkbox]");
    const value = { text: node.querySelector(".value").value, is_json: box ? box.checked : shown.is_json };
    if (value.text !== shown.text || value.is_json !== shown.is_json) fields[shown.name] = value;
  }
  return fields;
}

// Shows a row of the list.
export async function openRow(row) {
  const query = new URLSearchParams(placeOf(row));
  editor.row = await call(`/api/rows/row?${query}`);
  editor.isDirty = editor.isWarned = false;
  const file = editor.row.file === "labels" ? "labels" : "preferences";
  element("row-title").textContent = `Line ${editor.row.line} of the ${file}`;
  element("row-warnings").replaceChildren(...editor.row.warnings.map((text) => create("li", "", text)));
  element("row-fields").replaceChildren(...editor.row.fields.map(fieldNode));
  element("row-swap").hidden = !editor.row.can_swap;
  element("row-swap").textContent = editor.row.kind === "label" ? "Other label" : "Swap chosen and rejected";
  showRowError("");
  element("row-editor").showModal();
  element("row-fields").querySelector(".value")?.focus();
}

// Does something to the row in the dialog, and closes it; what goes wrong is shown in it.
async function finish(path, body, done) {
  try {
    const result = await call(`/api/rows/${path}`, { row: placeOf(editor.row), ...body });
    element("row-editor").close();
    editor.act(result, `${done} line ${editor.row.line}.`);
  } catch (error) {
    showRowError(error.message);
  }
}

function save() {
  const fields = readFields();
  if (Object.keys(fields).length) finish("edit", { fields }, "Saved");
  else element("row-editor").close();
}

function warnBeforeLoss(event) {
  if (!editor.isDirty || editor.isWarned) return;
  event.preventDefault();
  editor.isWarned = true;
  showRowError("Not saved: save, or close once more to leave the row as it was.");
}

// onChanged is called with the server's answer and a sentence after each change.
export function startRowEditor(onChanged) {
  const dialog = element("row-editor");
  editor.act = onChanged;
  dialog.querySelector("form").addEventListener("submit", (event) => { event.preventDefault(); save(); });
  dialog.addEventListener("input", () => { editor.isDirty = true; });
  dialog.addEventListener("cancel", warnBeforeLoss);
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); save(); }
  });
  element("row-swap").addEventListener("click", () => finish("swap", {}, "Swapped"));
  element("row-delete").addEventListener("click", () => finish("delete", {}, "Deleted"));
  element("row-close").addEventListener("click", (event) => {
    warnBeforeLoss(event);
    if (!event.defaultPrevented) dialog.close();
  });
}

// Swaps or deletes a row of the list without opening it. Throws an Error with the server's sentence.
export async function changeRow(action, row) {
  const result = await call(`/api/rows/${action}`, { row: placeOf(row) });
  editor.act(result, `${action === "swap" ? "Swapped" : "Deleted"} line ${row.line}.`);
}
