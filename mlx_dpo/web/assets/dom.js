// Elements of the page. Texts are inserted as text; HTML only where it comes from the server's Markdown renderer.

export const element = (id) => document.getElementById(id);

export function create(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

export function button(label, key, className, onClick) {
  const node = create("button", className, label);
  node.type = "button";
  if (key) node.append(" ", create("kbd", "", key));
  node.addEventListener("click", onClick);
  return node;
}

// Inserts HTML of the server's Markdown renderer, which escapes what is in a text. What scrolls is reached by the keyboard.
export function showHtml(node, html) {
  node.innerHTML = html;
  for (const block of node.querySelectorAll("pre, table")) if (block.scrollWidth > block.clientWidth) block.tabIndex = 0;
}

// What doesn't change is not set again, so that a screen reader says it once.
export function showStatus(text) { if (element("status").textContent !== text) element("status").textContent = text; }

export function showError(text) {
  element("error").textContent = text || "";
  element("error").hidden = !text;
}

export const isTextField = (node) => node.matches("textarea, select, input:not([type=checkbox])");
