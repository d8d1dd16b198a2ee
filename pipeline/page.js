"use strict";
const root = document.documentElement;
const specs = JSON.parse(document.getElementById("specs").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");

// The page's own colors, so that a chart is readable in both schemes.
function theme() {
  const color = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const ink = color("--ink"), muted = color("--muted"), line = color("--line");
  return {
    background: "transparent",
    font: "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
    view: { stroke: line },
    axis: { labelColor: muted, titleColor: ink, titleFontWeight: 500, gridColor: line, domainColor: line,
      tickColor: line, labelFontSize: 11, titleFontSize: 12,
      labelLimit: root.clientWidth < 600 ? 120 : 190 },
    legend: { labelColor: muted, titleColor: ink, titleFontWeight: 500, orient: "top", labelLimit: 260,
      labelFontSize: 11, symbolStrokeWidth: 2 },
    range: { category: ["#3b82c4", "#e07b39", "#3a9d6e", "#b85c9e", "#a08a2c", "#7a6fd0", "#c4505a", "#4aa3a8"] },
    style: { reference: { stroke: muted, color: muted, strokeDash: [4, 4], strokeWidth: 1 }, cell: { stroke: line } },
    text: { color: ink },
    arc: {}, line: { strokeWidth: 2 }, bar: { color: "#3b82c4" }, point: { filled: true, size: 45 },
  };
}

async function drawOne(id, spec) {
  const place = document.getElementById(id);
  try {
    // The interpreter instead of generated code: the page forbids eval.
    await vegaEmbed(place, spec, { mode: "vega-lite", renderer: "svg", actions: false, ast: true, config: theme() });
    return true;
  } catch (error) {
    console.error(`chart ${id}: ${error}`);
    place.classList.add("failed");
    place.textContent = `this chart could not be drawn: ${error}`;
    return false;
  }
}

async function draw() {
  const drawn = await Promise.all(Object.entries(specs).map(([id, spec]) => drawOne(id, spec)));
  root.dataset.drawn = String(drawn.filter(Boolean).length);
}

dark.addEventListener("change", draw);
draw();
