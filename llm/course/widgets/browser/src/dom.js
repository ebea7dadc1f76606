// Nodes in one line, and the style that all instruments share.
const SVG = "http://www.w3.org/2000/svg";

function made(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export const html = (tag, attributes = {}, ...children) => made(document.createElement(tag), attributes, children);
export const svg = (tag, attributes = {}, ...children) => made(document.createElementNS(SVG, tag), attributes, children);

// A text has the mark's color drawn towards the page's own ink, so that it can be read on light and on dark.
export const ink = (color) => `color-mix(in oklab, ${color} 70%, currentColor)`;

/** Keys pressed in `root` stay there: in a notebook "d d" would delete the cell, and the arrows would leave it. */
export const keepKeys = (root) => root.addEventListener("keydown", (event) => event.stopPropagation());

/** Call `fit(width)` now and whenever the width of `root` changes. */
export function watch(root, fit) {
  let wide = 0;
  new ResizeObserver(() => {
    const now = Math.floor(root.clientWidth);
    if (now > 0 && now !== wide) fit((wide = now));
  }).observe(root);
}

const STYLE = `
.llm-explorer { color: var(--jp-content-font-color1, inherit); font: 13px/1.4 var(--jp-ui-font-family, system-ui, sans-serif);
  max-width: 760px; margin: 4px 0; container-type: inline-size; }
.llm-explorer .controls { display: flex; flex-wrap: wrap; gap: 4px 20px; align-items: center; margin: 4px 0; }
.llm-explorer .controls label { display: inline-flex; gap: 6px; align-items: center; max-width: 100%; white-space: nowrap; }
.llm-explorer input[type=range] { width: 180px; min-width: 60px; accent-color: #0072b2; }
.llm-explorer .value { min-width: 4.5em; font-variant-numeric: tabular-nums; }
.llm-explorer select, .llm-explorer button, .llm-explorer input[type=number], .llm-explorer input[type=text] {
  font: inherit; color: inherit; background: var(--jp-layout-color1, Field); border: 1px solid color-mix(in oklab, currentColor 35%, transparent);
  border-radius: 3px; padding: 1px 6px; }
.llm-explorer option { color: FieldText; background: Field; }
.llm-explorer :focus-visible { outline: 2px solid #56b4e9; outline-offset: 1px; }
.llm-explorer .says { min-height: 2.8em; margin: 4px 0; font-variant-numeric: tabular-nums; }
@container (max-width: 460px) { .llm-explorer .says { min-height: 5.6em; } }
.llm-explorer .views { position: relative; display: flex; flex-wrap: wrap; gap: 12px; align-items: flex-start; }
.llm-explorer svg { display: block; overflow: visible; font: 12px var(--jp-ui-font-family, system-ui, sans-serif); touch-action: pan-y; }
.llm-explorer svg text { fill: currentColor; }
.llm-explorer svg .grid { stroke: currentColor; opacity: .14; }
.llm-explorer svg .handle { cursor: grab; touch-action: none; }
.llm-explorer svg .handle:active { cursor: grabbing; }
.llm-explorer figure { margin: 0; } .llm-explorer figcaption { font-size: 12px; }
.llm-explorer canvas { image-rendering: pixelated; display: block; border: 1px solid color-mix(in oklab, currentColor 25%, transparent); }
.llm-explorer .parts { position: relative; align-self: flex-end; }
.llm-explorer .parts figure { position: absolute; display: flex; flex-direction: column-reverse; align-items: flex-start; }
.llm-explorer .parts figcaption { margin-right: 9px; white-space: nowrap; }
.llm-explorer .signed { display: flex; gap: 10px; align-items: center; align-self: flex-end; font-size: 18px; }
.llm-explorer .cell { position: absolute; outline: 2px solid #e69f00; pointer-events: none; }
.llm-explorer .grip { position: absolute; width: 13px; height: 13px; margin: -7px; border-radius: 50%; background: #0072b2; cursor: grab; touch-action: none; }
.llm-explorer .tip { position: absolute; pointer-events: none; padding: 1px 6px; border-radius: 3px; font-size: 12px; white-space: nowrap;
  background: var(--jp-layout-color0, Canvas); border: 1px solid color-mix(in oklab, currentColor 35%, transparent); z-index: 1; }
`;

export function style(root) {
  root.prepend(html("style", {}, STYLE));
}
