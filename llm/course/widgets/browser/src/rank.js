// A matrix, its best rank-r factors and what they leave out.
import { button, choice, slider } from "./controls.js";
import { html, watch } from "./dom.js";
import { drawable, takenApart } from "./drawing.js";
import { explorer, unpacked } from "./explorer.js";
import { corner, largest, plus, product as multiplied } from "./matrix.js";
import { plot } from "./plot.js";
import { place, product } from "./product.js";
import { percent, saved } from "./words.js";

/**
 * matrices: { name, sizes, U, V }; U @ V is the matrix, a column of U and a row of V for each pattern that is not zero.
 * One of them is { name, pixels, block }: there a hand can draw.
 * close: the error for which the sentence names the rank.
 */
export function rank(el, { colors, matrices, close, r }) {
  const measured = ({ sizes, U, V }) => {
    const M = multiplied(U, V), rest = [0]; // the squares that are left out, from the smallest on
    for (const s of sizes.toReversed()) rest.unshift(rest[0] + s * s);
    const most = [Math.max(largest(U), largest(V)), largest(M)].map((v) => v || 1); // an empty drawing has none
    return { U, V, M, sizes, errors: rest.map((s) => Math.sqrt(s / (rest[0] || 1))), most };
  };
  const found = Object.fromEntries(matrices.map(({ name, pixels, block, sizes, U, V }) =>
    [name, measured(pixels ? takenApart(pixels, block) : { sizes, U: unpacked(U), V: unpacked(V) })]));
  const drawing = matrices.find(({ pixels }) => pixels), written = drawing.pixels.map((row) => [...row]), cell = html("div", { class: "cell", hidden: true });
  const { M: { rows, columns }, sizes: { length: full } } = Object.values(found)[0];
  const target = place({ rows, columns }), rest = place({ rows, columns });
  const both = product({ rows, columns, thickest: full, drag: (to) => made.move({ r: to }) });
  const bars = plot({
    label: "sizes of the patterns", height: 190, width: 760, right: 16,
    x: { label: "pattern, the largest first", domain: [0.3, full + 0.7], ticks: [1, 10, 20, 30, 40, 50, 60] },
    y: { label: "size", ticks: 3 },
    hover(x) {
      const i = Math.round(x), { sizes, errors } = found[controls.which.value];
      if (i < 1 || i > full) return null;
      return `pattern ${i}: size ${sizes[i - 1].toPrecision(3)}, ${i <= controls.r.value ? "kept" : "left out"}; error at r = ${i}: ${percent(errors[i])}`;
    },
  });
  const controls = {
    which: choice({ label: "matrix", options: Object.keys(found) }),
    r: slider({ label: "rank r", min: 1, max: full, value: r }),
    clear: button({ label: "Clear", act: () => drawn(drawing.pixels.map((row) => row.map(() => 0))) }),
    again: button({ label: "Restore", act: () => drawn(written) }),
  };
  target.node.append(cell);
  drawable({
    canvas: target.canvas, cell, pixels: drawing.pixels, on: () => controls.which.value === drawing.name,
    changed: redrawn,
  });
  function redrawn() {
    found[drawing.name] = measured(takenApart(drawing.pixels, drawing.block));
    made.refresh();
  }
  function drawn(pixels) {
    pixels.forEach((row, i) => row.forEach((ink, j) => { drawing.pixels[i][j] = ink; }));
    redrawn();
  }
  let unit = 1;
  const made = explorer(el, {
    name: "the best rank-r copy of a matrix", controls,
    views: [html("div", {}, target.node, rest.node), both.node, bars.node],
    update({ which, r }) {
      const { U, V, M, sizes, errors, most } = found[which], A = corner(U, rows, r), B = corner(V, r, columns), AB = multiplied(A, B);
      const draws = which === drawing.name, held = errors.findIndex((error) => error < 1e-6);
      controls.clear.disabled = controls.again.disabled = !draws;
      target.draw({ matrix: M, most: most[1], title: `the matrix, ${rows} × ${columns}${draws ? ": click or drag to draw" : ""}`, unit });
      Object.assign(target.canvas, { tabIndex: draws ? 0 : -1 }).style.cursor = draws ? "crosshair" : "";
      rest.draw({ matrix: plus(M, AB, -1), most: most[1], title: `the matrix − A B: error ${percent(errors[r])}`, unit });
      both.draw({ A, B, AB, most, unit, titles: [`A, ${rows} × ${r}`, `B, ${r} × ${columns}`, `A B, the best copy of rank ${r}`] });
      bars.draw({
        bars: sizes.map((size, i) => ({ x0: i + 0.6, x1: i + 1.4, y0: 0, y1: size, color: colors.lora, faint: i >= r })),
        rules: [{ x: r + 0.5, color: colors.lora }],
        dots: [{ x: r, y: sizes[r - 1], color: colors.lora, drag: (x) => made.move({ r: x }) }],
        y: { domain: [0, 1.08 * (sizes[0] || 1)] },
      });
      return `r = ${r}: ${saved(r * (rows + columns), rows * columns, "the matrix")}. Error ${percent(errors[r])}. `
        + (r > held ? `It has ${held || "no"} ${held === 1 ? "pattern" : "patterns"}: a higher rank adds nothing. ` : "")
        + `An error under ${100 * close}% takes r = ${errors.findIndex((error) => error < close)}.`;
    },
  });
  bars.watch(made.root);
  watch(made.root, (room) => {
    unit = room < 600 ? (room - 8) / (full + columns) : (room - 24) / (full + 2 * columns); // two columns where they fit
    made.refresh();
  });
}
