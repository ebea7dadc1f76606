// d / (2r): how many times fewer numbers a square d x d matrix trains at rank r.
import { slider } from "./controls.js";
import { explorer } from "./explorer.js";
import { plot } from "./plot.js";
import { times, whole } from "./words.js";

const RANKS = [1, 2, 4, 8, 16, 32, 64, 128, 256], WIDTHS = [32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384];

export function savings(el, { colors, r, d }) {
  const picture = plot({
    label: "times fewer trained numbers over the width of a square matrix",
    x: { label: "width d of a square matrix", domain: [32, 16384], log: true, base: 2, ticks: [32, 128, 512, 2048, 8192], format: whole },
    y: { label: "times fewer trained numbers", domain: [1, 8192], log: true, base: 2, ticks: [1, 8, 64, 512, 4096], format: whole },
    hover: (at, saved) => `d = ${whole(at)}: ${times(saved)} times fewer`,
  });
  const controls = {
    r: slider({ label: "rank r", values: RANKS, value: r }),
    d: slider({ label: "width d", values: WIDTHS, value: d, show: whole }),
  };
  const made = explorer(el, {
    name: "savings of LoRA by rank and width", controls, views: [picture.node],
    update({ r, d }) {
      const from = Math.max(32, 2 * r); // below 2r nothing is saved
      const line = [from, 16384].map((at) => [at, at / (2 * r)]);
      const drag = (at, saved) => made.move(saved > 0 ? { d: Math.max(32, Math.min(16384, at)), r: Math.max(1, at / (2 * saved)) } : {});
      picture.draw({
        lines: [{ points: line, color: colors.lora, label: `r = ${r}` }],
        dots: [{ x: d, y: Math.max(1, d / (2 * r)), color: colors.lora, faint: d <= 2 * r, drag }],
      });
      const saved = d > 2 * r ? `${times(d / (2 * r))} times fewer` : d === 2 * r ? "as many" : `${times((2 * r) / d)} times more`;
      return `r = ${r}, d = ${whole(d)}: ${whole(2 * r * d)} numbers in A and B for ${whole(d * d)} in W, ${saved}`;
    },
  });
  picture.watch(made.root);
}
