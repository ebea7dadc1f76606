// The frame of every instrument: controls, a sentence that follows them, pictures below. Nothing here needs a kernel.
import { html, keepKeys, style } from "./dom.js";

/**
 * Put an instrument into `el`.
 *
 * controls: by name, as in controls.js; one that stands in a view already stays there. views: nodes in the order in
 * which they stand. update(values): draws, and returns the sentence that says where the controls stand; it is a live
 * region, so a screen reader speaks it.
 * Returns { root, move }: move({ name: value }) is what a dragged point calls.
 */
export function explorer(el, { name, controls, views, update }) {
  const says = html("div", { class: "says", role: "status", "aria-live": "polite" });
  const root = html("div", { class: "llm-explorer", role: "group", "aria-label": name },
    html("div", { class: "controls" }, ...Object.values(controls).map(({ node }) => node).filter((node) => !node.parentNode)),
    says,
    html("div", { class: "views" }, ...views));
  keepKeys(root);
  style(root);
  el.replaceChildren(root);

  const values = () => Object.fromEntries(Object.entries(controls).map(([key, control]) => [key, control.value]));
  function refresh() {
    const words = update(values());
    if (says.textContent !== words) says.textContent = words;
  }
  function move(to) {
    for (const [key, value] of Object.entries(to)) controls[key].value = value;
    refresh();
  }
  for (const control of Object.values(controls)) control.onmove = refresh;
  refresh();
  return { root, move, refresh };
}

/** What `packed()` made in Python: a matrix as { rows, columns, values }. */
export function unpacked({ shape: [rows, columns = 1], scale, int8, int16 }) {
  const bytes = Uint8Array.from(atob(int16 ?? int8), (c) => c.charCodeAt(0));
  const levels = int16 ? new Int16Array(bytes.buffer) : new Int8Array(bytes.buffer);
  return { rows, columns, values: Float32Array.from(levels, (v) => v * scale) };
}
