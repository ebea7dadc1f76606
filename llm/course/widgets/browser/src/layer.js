// One layer that LoRA wraps: W, A, B, their product and the sum, all at one scale.
import { slider } from "./controls.js";
import { html, watch } from "./dom.js";
import { explorer, unpacked } from "./explorer.js";
import { corner, plus, product as multiplied, size } from "./matrix.js";
import { grip, place, product } from "./product.js";
import { percent, saved } from "./words.js";

/** W (widest, widest), A (widest, thickest), B (thickest, widest); most: the value at full color. */
export function layer(el, { W, A, B, most, d, r, alpha }) {
  const all = { W: unpacked(W), A: unpacked(A), B: unpacked(B) }, widest = all.W.rows, thickest = all.A.columns;
  let unit = 1;
  const width = grip("the width", (x, y) => made.move({ d: Math.max(x, y) / unit }));
  const frozen = place({ rows: widest, columns: widest, grip: width }), sum = place({ rows: widest, columns: widest });
  const update = product({ rows: widest, columns: widest, thickest, drag: (to) => made.move({ r: to }) });
  const controls = {
    d: slider({ label: "width d", min: 8, max: widest, step: 8, value: d }),
    r: slider({ label: "rank r", min: 1, max: thickest, value: r }),
    alpha: slider({ label: "alpha", min: 0, max: 16, value: alpha }),
  };
  const signs = ["+", "="].map((text) => html("span", { "aria-hidden": "true" }, text));
  signs[1].style.marginBottom = "22px"; // the caption's line, so that both stand at the middle of W and A B
  const signed = (sign, node) => html("div", { class: "signed" }, sign, node);
  const made = explorer(el, {
    name: "a layer with LoRA: W + alpha A B", controls,
    views: [frozen.node, signed(signs[0], update.node), signed(signs[1], sum.node)],
    update({ d }) {
      controls.r.limit((rank) => rank <= d); // no product of d columns has a higher rank
      const r = controls.r.value, alpha = controls.alpha.value;
      const W = corner(all.W, d, d), A = corner(all.A, d, r), B = corner(all.B, r, d), AB = multiplied(A, B, alpha);
      frozen.draw({ matrix: W, most, title: `W, frozen: ${d} × ${d}`, unit });
      update.draw({ A, B, AB, most: [most, most], unit, titles: [`A, ${d} × ${r}`, `B, ${r} × ${d}`, `${alpha} · A B, the update`] });
      sum.draw({ matrix: plus(W, AB), most, title: `W + ${alpha} · A B`, unit });
      signs[0].style.marginTop = `${thickest * unit}px`;
      const moved = alpha ? `${percent(size(AB) / size(W))} as long as W` : "zero";
      return `r = ${r}, d = ${d}: ${saved(2 * d * r, d * d, "W")}. At alpha = ${alpha} the update is ${moved}.`;
    },
  });
  watch(made.root, (room) => {
    unit = room < 500 ? 1.25 : 1.5;
    made.refresh();
  });
}
