// Weights in four bits: the levels over the weights, and a scheme's bits and error among all the others.
import { check, choice, slider } from "./controls.js";
import { explorer } from "./explorer.js";
import { plot } from "./plot.js";

const percent = (value) => `${(100 * value).toFixed(1)}%`;
const RADIX = 4; // bits of a code: what is above them is the price of the scales
const BITS = [0.006, 5], SIZE = { height: 270, width: 364, left: 54 };

/** formats: name -> { title, color, levels }. schemes: layer, format, block, double, bits, error, and how many weights at each level. weights: a histogram of weight over absmax, -1 to 1, by layer, double, block. */
export function rounding(el, { formats, schemes, weights }) {
  const names = Object.keys(weights), blocks = [...new Set(schemes.map(({ block }) => block))];
  const title = ({ format, block, double }) => `${formats[format].title} in blocks of ${block.toLocaleString("en-US")}${double ? " with double quantization" : ""}`;
  for (const scheme of schemes) {
    const all = scheme.counts.reduce((a, b) => a + b);
    scheme.shares = scheme.counts.map((count) => count / all);
    scheme.entropy = -scheme.shares.filter((share) => share).reduce((sum, share) => sum + share * Math.log2(share), 0);
  }
  const tallest = 1.05 * Math.max(...schemes.flatMap(({ shares }) => shares)), errors = schemes.map(({ error }) => error);
  const range = [0.9 * Math.min(...errors), 1.05 * Math.max(...errors)];
  let now = null, others = []; // the scheme, and all of its layer

  const shape = plot({
    ...SIZE, label: "share of the weights at each level over the weights themselves",
    x: { label: "weight over its block's absmax", domain: [-1.04, 1.04], ticks: [-1, -0.5, 0, 0.5, 1] },
    y: { label: "share at a level", domain: [0, tallest], format: (v) => `${Math.round(100 * v)}%` },
    hover(at) {
      const { levels } = formats[now.format];
      const i = levels.reduce((best, level, j) => (Math.abs(level - at) < Math.abs(levels[best] - at) ? j : best), 0);
      return `level ${levels[i].toFixed(4)}: ${percent(now.shares[i])} of the weights`;
    },
  });
  const nearest = (bits, error) => {
    const far = (scheme) => Math.hypot(Math.log((scheme.bits - RADIX) / bits) / Math.log(BITS[1] / BITS[0]), (scheme.error - error) / (range[1] - range[0]));
    return others.reduce((best, scheme) => (far(scheme) < far(best) ? scheme : best));
  };
  const place = plot({
    ...SIZE, label: "error of every scheme over its bits per weight",
    x: { label: "bits per weight: 4 and what the scales add (log)", domain: BITS, log: true, ticks: [0.01, 0.1, 0.5, 2], format: (v) => String(RADIX + v) },
    y: { label: "error (dashed: double quantization)", domain: range, format: (v) => `${Math.round(100 * v)}%` },
    hover(above, error) {
      const scheme = nearest(Math.max(above, 1e-9), error);
      return `${formats[scheme.format].title}, ${scheme.block}${scheme.double ? ", double" : ""}: ${scheme.bits.toFixed(3)} bits, ${percent(scheme.error)}`;
    },
  });
  const controls = {
    layer: choice({ label: "layer", options: names }),
    format: choice({ label: "format", options: Object.entries(formats).map(([name, { title }]) => [name, title]) }),
    block: slider({ label: "block size", values: blocks, value: 64 }),
    double: check({ label: "double quantization" }),
  };
  const move = ({ format, block, double }) => made.move({ format, block, double });
  const made = explorer(el, {
    name: "weights in four bits", controls, views: [shape.node, place.node],
    update({ layer, format, block, double }) {
      others = schemes.filter((scheme) => scheme.layer === layer);
      now = others.find((scheme) => scheme.format === format && scheme.block === block && scheme.double === double);
      const { levels, color } = formats[format], bins = weights[layer][Number(double)][blocks.indexOf(block)];
      const most = Math.max(...bins), high = Math.max(...now.shares); // as high as the tallest level: shapes can be compared
      const edge = (i) => (2 * i) / bins.length - 1;
      shape.draw({
        lines: [
          { points: [[-1, 0], ...bins.flatMap((count, i) => [[edge(i), (count / most) * high], [edge(i + 1), (count / most) * high]]), [1, 0]], color: "currentColor", filled: true, faint: true },
          ...levels.map((level, i) => ({ points: [[level, 0], [level, now.shares[i]]], color })),
        ],
        dots: levels.map((level, i) => ({ x: level, y: now.shares[i], color, r: 3.5 })),
      });
      const points = (f, twice) => others.filter((scheme) => scheme.format === f && scheme.double === twice).map(({ bits, error }) => [bits - RADIX, error]).sort(([a], [b]) => a - b);
      place.draw({
        lines: Object.entries(formats).flatMap(([f, { title, color }]) => [false, true].map((twice) =>
          ({ points: points(f, twice), color, dashed: twice, thin: true, faint: f !== format || twice !== double, label: twice ? null : title }))),
        dots: [
          ...others.map((scheme) => ({ x: scheme.bits - RADIX, y: scheme.error, color: formats[scheme.format].color, r: 3, faint: scheme.format !== format || scheme.double !== double, click: () => move(scheme) })),
          { x: now.bits - RADIX, y: now.error, color, drag: (above, error) => move(nearest(Math.max(above, BITS[0]), error)) },
        ],
      });
      const better = others.filter(({ bits, error }) => bits <= now.bits && error < now.error).sort((a, b) => a.error - b.error)[0];
      return `${title(now)}: ${now.bits.toFixed(3)} bits per weight, error ${percent(now.error)}; entropy of the levels ${now.entropy.toFixed(2)} bits. ` +
        (better ? `Better: ${title(better)}, with ${better.bits.toFixed(3)} bits and ${percent(better.error)}.` : "No other scheme has a smaller error for as few bits.");
    },
  });
  for (const picture of [shape, place]) picture.watch(made.root);
}
