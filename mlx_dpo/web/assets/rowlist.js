// A list of very many rows: only those on the screen are in the page, and rows are loaded a slice at a time.

import { call } from "./api.js";
import { create } from "./dom.js";

const SLICE = 60; // rows in a request
const AROUND = 4; // rows above and below the screen that are in the page too
const AHEAD = 40; // rows above and below the screen that are loaded
const ROW_REM = 7.2; // height of a row
const ROLE_NAMES = { unlabelled: "answer" };
const KIND_NAMES = { preference: "preference", tie: "tie", label: "label", broken: "can't be used" };

const sliceOf = (index) => Math.floor(index / SLICE) * SLICE; // the number of the first row in its slice

export class RowList {
  // `list` scrolls `content`; onOpen is called with a row that was clicked or entered, onError with an Error.
  constructor(list, content, { onOpen, onError, onLoad }) {
    Object.assign(this, { list, content, onOpen, onError, onLoad });
    this.rowHeight = Math.round(ROW_REM * parseFloat(getComputedStyle(document.documentElement).fontSize));
    Object.assign(this, { query: "", version: 0, matching: 0, active: 0, slices: new Map(), loading: new Map() });
    list.addEventListener("scroll", () => this.render());
    list.addEventListener("keydown", (event) => this.handleKey(event));
    content.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (!option) return;
      this.moveTo(Number(option.dataset.index));
      this.open();
    });
    new ResizeObserver(() => this.render()).observe(list);
  }

  // Shows the rows that pass a filter (as in an address), from the first one on, or from where the list is.
  async load(query, { keepPlace = false } = {}) {
    const start = keepPlace ? this.sliceAt(this.list.scrollTop) : 0;
    const request = (this.request = call(this.address(query, start)));
    let answer;
    try {
      answer = await request;
    } catch (error) {
      if (request === this.request) this.onError(error);
      return;
    }
    if (request !== this.request) return; // another filter since
    this.query = query;
    this.slices = new Map([[start, answer.rows]]);
    this.loading = new Map();
    this.version = answer.version;
    this.matching = answer.matching;
    this.active = keepPlace ? Math.max(0, Math.min(this.active, this.matching - 1)) : 0;
    this.content.style.height = `${this.matching * this.rowHeight}px`;
    if (!keepPlace) this.list.scrollTop = 0;
    this.render();
    this.onLoad();
  }

  reload() { return this.load(this.query, { keepPlace: true }); }

  address(query, start) { return `/api/rows?start=${start}&count=${SLICE}&${query}`; }

  sliceAt(top) { return sliceOf(Math.floor(Math.max(0, top) / this.rowHeight)); }

  row(index) { return this.slices.get(sliceOf(index))?.[index % SLICE]; }

  get activeRow() { return this.row(this.active); }

  // Loads the slices of rows that aren't there, and returns whether there were any.
  loadMissing(indices) {
    const missing = indices.filter((index) => index >= 0 && index < this.matching && !this.row(index));
    for (const start of new Set(missing.map(sliceOf))) this.loadSlice(start);
    return missing.length > 0;
  }

  async loadSlice(start) {
    if (this.loading.has(start)) return;
    const { loading } = this;
    loading.set(start, true);
    try {
      const answer = await call(this.address(this.query, start));
      if (loading !== this.loading) return;
      if (answer.version !== this.version) { this.reload(); return; }
      this.slices.set(start, answer.rows);
      this.render();
    } catch (error) {
      if (loading === this.loading) this.onError(error);
    } finally {
      loading.delete(start);
    }
  }

  render() {
    const first = Math.max(0, Math.floor(this.list.scrollTop / this.rowHeight) - AROUND);
    const last = Math.min(this.matching, Math.ceil((this.list.scrollTop + this.list.clientHeight) / this.rowHeight) + AROUND);
    if (!this.loadMissing([first, last - 1])) this.loadMissing([first - AHEAD, last + AHEAD]);
    const options = [];
    for (let index = first; index < last; index += 1) {
      const row = this.row(index);
      if (row) options.push(this.option(row, index));
    }
    this.content.replaceChildren(...options);
    const hasActive = options.some((option) => option.id === `row-${this.active}`);
    if (hasActive) this.list.setAttribute("aria-activedescendant", `row-${this.active}`);
    else this.list.removeAttribute("aria-activedescendant");
  }

  option(row, index) {
    const option = create("div", `row ${row.kind}`);
    option.id = `row-${index}`;
    option.dataset.index = index;
    option.setAttribute("role", "option");
    option.setAttribute("aria-selected", String(index === this.active));
    option.setAttribute("aria-setsize", this.matching);
    option.setAttribute("aria-posinset", index + 1);
    option.style.top = `${index * this.rowHeight}px`;
    option.style.height = `${this.rowHeight}px`;
    option.append(rowNotes(row), line("prompt", row.prompt));
    for (const { role, text } of shownCompletions(row)) {
      const completion = line(`completion ${role}`, text);
      completion.prepend(create("span", "role", ROLE_NAMES[role] || role), " ");
      option.append(completion);
    }
    return option;
  }

  open() { if (this.activeRow) this.onOpen(this.activeRow); }

  moveTo(index) {
    this.active = Math.max(0, Math.min(index, this.matching - 1));
    const top = this.active * this.rowHeight;
    const { scrollTop, clientHeight } = this.list;
    if (top < scrollTop) this.list.scrollTop = top;
    else if (top + this.rowHeight > scrollTop + clientHeight) this.list.scrollTop = top + this.rowHeight - clientHeight;
    this.render();
  }

  handleKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(this.list.clientHeight / this.rowHeight) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -this.matching, End: this.matching };
    if (event.key in steps) this.moveTo(this.active + steps[event.key]);
    else if (event.key === "Enter" || event.key === " ") this.open();
    else return;
    event.preventDefault();
  }
}

function rowNotes(row) {
  const notes = create("p", "notes");
  const names = [`${row.file === "labels" ? "label" : "row"} ${row.line}`];
  if (row.kind !== "preference" && row.kind !== "label") names.push(KIND_NAMES[row.kind]);
  if (row.labeller) names.push(`by ${row.labeller}`);
  if (row.edited) names.push("edited");
  if (row.copies > 1) names.push(`${row.copies} copies`);
  for (const name of names) notes.append(create("span", "note", name), " ");
  if (row.warnings.length) notes.append(create("span", "warning", `⚠ ${row.warnings.join(" ")}`));
  return notes;
}

function shownCompletions(row) {
  const [first, second, ...others] = row.completions;
  if (!others.length) return row.completions;
  return [first, { role: second.role, text: `${second.text} (and ${others.length} more)` }];
}

function line(className, text) {
  const node = create("p", className, text.replace(/\s+/g, " "));
  node.dir = "auto";
  return node;
}
