// Draws each <figure data-chart="NAME"> with Chart.js, from the JSON of a report's page or from what is given to
// `window.drawCharts`, and keeps the charts in `window.charts`.
"use strict";

const reportData = document.getElementById("charts");
let chartData = reportData ? JSON.parse(reportData.textContent) : {};
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const COLORS = {
  light: ["#2f6fed", "#d95f02", "#0b8f6a", "#8e44ad", "#c2185b", "#6d4c41", "#00838f", "#9e9d24"],
  dark: ["#6094ff", "#ff9642", "#4cc38a", "#c58af9", "#ff79a8", "#c8a28f", "#4dd0e1", "#dce775"],
};
window.charts = {};

function theme() {
  const colors = COLORS[dark.matches ? "dark" : "light"];
  return { colors, faint: dark.matches ? "#9aa1ab" : "#5c626b",
    line: dark.matches ? "#33373e" : "#e3e6ea" };
}

function short(value) {
  if (typeof value !== "number" || value === 0) return String(value);
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

function dataset(series, type, colors) {
  const color = colors[series.color % colors.length];
  return {
    label: series.label,
    data: series.points.map(([x, y, note]) => ({ x, y, note })),
    borderColor: color,
    backgroundColor: type === "bar" ? color + "99" : color + (series.faint ? "66" : ""),
    borderDash: series.dashed ? [6, 4] : [],
    borderWidth: type === "bar" ? 0 : 2,
    showLine: type !== "scatter",
    pointRadius: type === "scatter" ? 3 : (series.dashed || series.points.length < 2 || type === "path" ? 3 : 0),
    pointStyle: series.cross ? "crossRot" : "circle",
    pointHitRadius: 8,
    tension: 0,
    barPercentage: 1,
    categoryPercentage: 1,
    grouped: false,
  };
}

function axis(title, style, extra) {
  return {
    type: "linear",
    title: { display: Boolean(title), text: title, color: style.faint },
    ticks: { color: style.faint, maxTicksLimit: 6, maxRotation: 0, callback: short },
    grid: { color: style.line },
    ...extra,
  };
}

function config(chart, style) {
  const type = chart.type;
  const bar = type === "bar";
  return {
    type: bar ? "bar" : "scatter",
    data: { datasets: chart.series.map((series) => dataset(series, type, style.colors)) },
    options: {
      animation: false,
      responsive: true,
      maintainAspectRatio: false,
      interaction: { mode: "nearest", intersect: false },
      scales: {
        x: axis(chart.x, style, bar ? { offset: false } : {}),
        y: axis(chart.y, style, bar ? { beginAtZero: true } : {}),
      },
      plugins: {
        legend: { display: chart.series.length > 1, position: "bottom",
          labels: { color: style.faint, usePointStyle: type === "scatter", boxWidth: 18, boxHeight: 1 } },
        tooltip: { callbacks: { title: (items) => items.map((item) => item.raw.note ?? `${chart.x} ${short(item.raw.x)}`)[0],
          label: (item) => `${item.dataset.label}: ${short(item.raw.y)}` } },
      },
    },
  };
}

function draw() {
  const style = theme();
  for (const figure of document.querySelectorAll("figure[data-chart]")) {
    const name = figure.dataset.chart;
    window.charts[name]?.destroy();
    window.charts[name] = new Chart(figure.querySelector("canvas"), config(chartData[name], style));
  }
}

// Draws again, from an object of charts by name.
window.drawCharts = (charts) => { chartData = charts; draw(); };

draw();
dark.addEventListener("change", draw);
