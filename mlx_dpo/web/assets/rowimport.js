// The dialog that appends the rows of a file or of a pasted text.

import { upload } from "./api.js";
import { create, element } from "./dom.js";

const counted = (n, noun) => `${n.toLocaleString("en")} ${n === 1 ? noun : `${noun}s`}`;

function showImportError(text) {
  element("import-error").textContent = text;
  element("import-error").hidden = !text;
}

function showResult(result) {
  const { added, num_bad: numBad, problems } = result;
  const parts = [counted(added.preferences, "row")];
  if (added.labels) parts.push(counted(added.labels, "label"));
  const bad = numBad ? ` ${counted(numBad, "row")} can't be used:` : "";
  element("import-result").textContent = `Added ${parts.join(" and ")}.${bad}`;
  const items = problems.map(({ line, message }) => create("li", "", line ? `Line ${line}: ${message}` : message));
  if (numBad > problems.length) items.push(create("li", "", `And ${counted(numBad - problems.length, "row")} more.`));
  element("import-problems").replaceChildren(...items);
  element("import-problems").hidden = !items.length;
  return `Imported ${parts.join(" and ")}.`;
}

async function add(onChanged) {
  const [file] = element("import-file").files;
  const text = element("import-text").value;
  if (!file && !text.trim()) return showImportError("Choose a file, or paste rows.");
  element("import-add").disabled = true;
  showImportError("");
  try {
    const result = await upload(`/api/rows/import?name=${encodeURIComponent(file ? file.name : "")}`, file || text);
    const done = showResult(result);
    element("import-file").value = element("import-text").value = "";
    if (result.added.preferences + result.added.labels) onChanged(result, done);
  } catch (error) {
    showImportError(error.message);
  } finally {
    element("import-add").disabled = false;
  }
}

export function openImport() {
  showImportError("");
  element("import-result").textContent = "";
  element("import-problems").hidden = true;
  element("row-import").showModal();
}

// onChanged is called with the server's answer and a sentence after rows were added.
export function startImport(onChanged) {
  element("row-import").querySelector("form").addEventListener("submit", (event) => { event.preventDefault(); add(onChanged); });
  element("import-close").addEventListener("click", () => element("row-import").close());
}
