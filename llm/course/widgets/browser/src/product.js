// Matrices at one scale in places of their own, and A, B and A B laid out as one multiplies by hand.
import { html } from "./dom.js";
import { heat } from "./heat.js";

const LINE = 22, EDGE = 2; // pixels of a caption, and of a picture's border

const put = (node, to) => Object.assign(node.style, Object.fromEntries(Object.entries(to).map(([side, at]) => [side, `${at}px`])));

/** Room for a matrix of up to rows x columns: { node, canvas, draw({ matrix, most, title, unit }) }; unit: pixels an entry. */
export function place({ rows, columns, grip }) {
  const part = heat({ title: "" }), node = html("div", { class: "parts" }, part.node, grip);
  function draw({ matrix, most, title, unit }) {
    const width = matrix.columns * unit, height = matrix.rows * unit;
    part.draw(matrix, most, { title, width, height });
    put(node, { width: columns * unit + EDGE, height: rows * unit + EDGE + LINE });
    if (grip) put(grip, { left: width + EDGE, top: height + EDGE });
  }
  return { node, canvas: part.canvas, draw };
}

/**
 * Room for a product of up to rows x columns, with A of up to `thickest` columns at its left and B above it.
 *
 * drag(r): called with the rank to which a hand has pulled the edge of A or of B; a slider must do the same.
 * draw({ A, B, AB, most, titles, unit }): most: the values at full color, of the factors and of the product.
 */
export function product({ rows, columns, thickest, drag }) {
  let at = { unit: 1 };
  const parts = [heat({ title: "A" }), heat({ title: "B" }), heat({ title: "A B" })];
  const edges = [grip("the rank", (x) => drag((at.left - x) / at.unit)), grip("the rank", (_, y) => drag((at.top - y) / at.unit))];
  const node = html("div", { class: "parts" }, ...parts.map((part) => part.node), ...edges);

  function draw({ A, B, AB, most: [factors, whole], titles, unit }) {
    const left = Math.max(76, thickest * unit), top = thickest * unit + LINE; // the corner where A, B and A B meet
    const width = left + columns * unit + 2 * EDGE, height = top + rows * unit + LINE + EDGE;
    at = { unit, left, top };
    [A, B, AB].forEach((matrix, i) =>
      parts[i].draw(matrix, i < 2 ? factors : whole, { title: titles[i], width: matrix.columns * unit, height: matrix.rows * unit }));
    put(node, { width, height });
    put(parts[0].node, { right: width - left, top });
    put(parts[1].node, { left: left + EDGE, bottom: height - top + EDGE });
    put(parts[2].node, { left: left + EDGE, top });
    put(edges[0], { left: left - A.columns * unit, top: top + (A.rows * unit) / 2 });
    put(edges[1], { left: left + (B.columns * unit) / 2, top: top - B.rows * unit - EDGE });
  }
  parts[0].node.style.alignItems = "flex-end";
  parts[1].node.style.flexDirection = "column"; // B's caption stands above it
  return { node, draw };
}

/** A point that a hand can pull; move(x, y) gets the place in pixels, from the corner of what holds it. */
export function grip(title, move) {
  const node = html("div", { class: "grip", "data-dot": title, title: `drag ${title}`, "aria-hidden": "true" });
  node.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    node.setPointerCapture(event.pointerId);
  });
  node.addEventListener("pointermove", (event) => {
    if (!node.hasPointerCapture(event.pointerId)) return;
    const box = node.parentNode.getBoundingClientRect();
    move(event.clientX - box.left, event.clientY - box.top);
  });
  return node;
}
