// A matrix as a picture: one square for each entry, blue above zero, red below, clear at zero on any page.
import { html } from "./dom.js";
import { tip } from "./tip.js";

/** { node, canvas, draw({ rows, columns, values }, most) }; `most` is the value at full color. `size`: pixels of the longer side. */
export function heat({ title, size = 160 }) {
  const canvas = html("canvas", { role: "img", "aria-label": title });
  const caption = html("figcaption", {}, title);
  const node = html("figure", {}, caption, canvas);
  let shown = null, full = 1;
  tip(node, canvas, (x, y) => {
    const i = Math.floor(y * shown.rows), j = Math.floor(x * shown.columns);
    const value = shown.values[i * shown.columns + j]; // what is left of a rounding is zero
    return `row ${i + 1}, column ${j + 1}: ${Math.abs(value) < 1e-6 * full ? 0 : value.toPrecision(3)}`;
  });
  function draw(matrix, most, { title: now = title, height, width } = {}) {
    [shown, full] = [matrix, most];
    const { rows, columns, values } = matrix, across = size / Math.max(rows, columns);
    if (canvas.width !== columns || canvas.height !== rows) Object.assign(canvas, { width: columns, height: rows });
    canvas.style.width = `${Math.max(3, width ?? columns * across)}px`;
    canvas.style.height = `${Math.max(3, height ?? rows * across)}px`;
    const image = new ImageData(columns, rows);
    for (let i = 0; i < values.length; i++) {
      const v = Math.max(-1, Math.min(1, values[i] / most)), at = 4 * i;
      [image.data[at], image.data[at + 1], image.data[at + 2]] = v < 0 ? [213, 60, 40] : [20, 114, 200];
      image.data[at + 3] = 255 * Math.abs(v);
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
    caption.textContent = now;
    canvas.setAttribute("aria-label", `${now}, ${rows} x ${columns}`);
  }
  return { node, canvas, draw };
}
