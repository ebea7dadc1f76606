// Bytes on disk for n fine-tunes: a checkpoint each, or one base and an adapter each.
import { slider } from "./controls.js";
import { explorer } from "./explorer.js";
import { plot } from "./plot.js";

const MOST = 10_000;
const NUMBERS = [...new Set(Array.from({ length: 41 }, (_, i) => Math.round(10 ** (i / 10))))]; // ten for each power of ten
const whole = (value) => Math.round(value).toLocaleString("en-US");
const few = (value) => value.toLocaleString("en-US", { maximumSignificantDigits: 3 });

const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];
const size = (bytes) => {
  const by = Math.max(0, Math.floor(Math.log10(Number(bytes.toPrecision(3))) / 3));
  return `${few(bytes / 1000 ** by)} ${UNITS[by]}`;
};

export function footprint(el, { colors, model, adapter, n }) {
  const checkpoints = (k) => k * model, adapters = (k) => model + k * adapter;
  const low = 10 ** Math.floor(Math.log10(checkpoints(1))), high = 10 ** Math.ceil(Math.log10(Math.max(checkpoints(MOST), adapters(MOST))));
  const picture = plot({
    label: "room on disk over the number of fine-tunes kept", left: 74,
    x: { label: "fine-tunes kept", domain: [1, MOST], log: true, ticks: [1, 10, 100, 1000, MOST], format: whole },
    y: { label: "on disk", domain: [low, high], log: true, ticks: Array.from({ length: Math.round(Math.log10(high / low)) + 1 }, (_, i) => low * 10 ** i), format: size },
    hover: (at) => `${whole(at)}: ${size(checkpoints(Math.round(at)))} or ${size(adapters(Math.round(at)))}`,
  });
  const controls = { n: slider({ label: "fine-tunes kept", values: NUMBERS, value: n, show: whole, wide: 160 }) };
  const made = explorer(el, {
    name: "disk space of many fine-tunes", controls, views: [picture.node],
    update({ n }) {
      const drag = (at) => made.move({ n: at });
      const line = (of) => NUMBERS.map((k) => [k, of(k)]);
      picture.draw({
        lines: [
          { points: line(checkpoints), color: colors.full, label: "a checkpoint each" },
          { points: line(adapters), color: colors.lora, label: "base + adapters" },
        ],
        rules: [{ x: n, color: "currentColor" }],
        dots: [{ x: n, y: checkpoints(n), color: colors.full, drag }, { x: n, y: adapters(n), color: colors.lora, drag }],
      });
      const bases = (n * adapter) / model;
      return `${whole(n)} fine-tune${n === 1 ? "" : "s"}: ${size(checkpoints(n))} with a checkpoint each, ${size(adapters(n))} ` +
        `with one base and an adapter each. The adapters weigh ${few(bases)} times as much as the base.`;
    },
  });
  picture.watch(made.root);
}
