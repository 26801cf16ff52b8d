// The views of the page: one section at a time, named by the address's hash (#collect, #data, #train).
// A view is `<section data-view="NAME">` and a link to #NAME in the nav.

const FIRST = "collect";
const whenShown = new Map();

// onShow is called each time that the view is shown.
export function onShow(name, callback) { whenShown.set(name, callback); }

export function currentView() {
  const name = location.hash.slice(1);
  return document.querySelector(`section[data-view="${CSS.escape(name)}"]`) ? name : FIRST;
}

function show() {
  const name = currentView();
  for (const section of document.querySelectorAll("section[data-view]")) section.hidden = section.dataset.view !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  whenShown.get(name)?.();
}

export function startViews() {
  window.addEventListener("hashchange", show);
  show();
}
