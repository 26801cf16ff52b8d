// The charts of a run, drawn by the report's own scripts, which are loaded when they are needed first.

import { create, element } from "./dom.js";

const SCRIPTS = ["vendor/chart-4.6.1.umd.min.js", "charts.js"];

let loading = null;

function loadScript(name) {
  return new Promise((resolve, reject) => {
    const script = create("script", "");
    script.src = `/report-assets/${name}`;
    script.onload = resolve;
    script.onerror = () => reject(new Error("The charts can't be loaded."));
    document.head.append(script);
  });
}

async function loadScripts() {
  try {
    for (const name of SCRIPTS) await loadScript(name);
  } catch (error) {
    loading = null;
    throw error;
  }
}

function buildFigure(chart) {
  const figure = create("figure", "");
  figure.dataset.chart = chart.name;
  const plot = create("div", "plot");
  const canvas = create("canvas", "");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", chart.title);
  plot.append(canvas);
  figure.append(create("h3", "", chart.title), plot);
  if (chart.description) figure.append(create("figcaption", "", chart.description));
  return figure;
}

export async function showCharts(charts) {
  if (charts.length) await (loading ??= loadScripts());
  const box = element("train-charts");
  const names = charts.map((chart) => chart.name).join();
  if (names !== box.dataset.names) {
    box.dataset.names = names;
    box.replaceChildren(...charts.map(buildFigure));
  }
  if (charts.length) window.drawCharts(Object.fromEntries(charts.map((chart) => [chart.name, chart])));
}
