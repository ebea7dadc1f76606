// What fine-tuning added to a matrix: singular values of which r are kept, and what that keeps and leaves of the matrix.
import { choice, slider } from "./controls.js";
import { explorer, unpacked } from "./explorer.js";
import { heat } from "./heat.js";
import { plot } from "./plot.js";
import { whole } from "./words.js";

const percent = (share) => (share > 0.995 && share < 1 ? `${(100 * share).toFixed(1)}%` : `${Math.round(100 * share)}%`);

export function delta(el, { colors, tasks, layers, most, r = 8 }) {
  const done = new Map(); // a layer is unpacked when it is looked at for the first time
  function looked(task, layer) {
    const key = `${task} ${layer}`, given = tasks[task][layer];
    if (!done.has(key)) {
      const s = [...unpacked(given.s).values], energy = [0]; // energy[r]: share of the squared entries that the r largest pieces hold
      for (const size of s) energy.push(energy.at(-1) + size * size);
      const all = energy.at(-1) || 1;
      const [update, u, v] = [given.update, given.u, given.v].map(unpacked);
      const spread = Math.sqrt(update.values.reduce((sum, x) => sum + x * x, 0) / update.values.length);
      done.set(key, { shape: given.shape, s, energy: energy.map((e) => e / all), update, u, v, full: 2.2 * spread || 1 });
    }
    return done.get(key);
  }

  let now; // what is shown: hover reads it
  const shown = (found) => Math.min(most, found.s.length);
  const index = { label: "index of the singular value", ticks: [1, 8, 16, 24, 32, 40, 48, 56, 64], format: String };
  const bars = plot({
    label: "singular values of the update, the largest first", width: 360, height: 220, left: 54, right: 12,
    x: index, y: { label: "singular value", ticks: 4 },
    hover: (x) => {
      const i = Math.round(x);
      return i >= 1 && i <= shown(now) ? `${i}: ${now.s[i - 1].toPrecision(3)}, ${percent(now.energy[i] - now.energy[i - 1])} of the energy` : null;
    },
  });
  const held = plot({
    label: "share of the energy that the first r pieces hold", width: 360, height: 220, left: 54, right: 12,
    x: { ...index, label: "rank r" }, y: { label: "energy held", domain: [0, 1], ticks: [0, 0.25, 0.5, 0.75, 1], format: percent },
    hover: (x) => {
      const i = Math.round(x);
      return i >= 0 && i <= shown(now) ? `rank ${i}: ${percent(now.energy[i])}` : null;
    },
  });
  const pictures = ["the update", "best part", "what is left"].map((title) => heat({ title }));

  const controls = {
    task: choice({ label: "task", options: Object.keys(tasks) }),
    layer: choice({ label: "layer", options: layers.map((name, i) => [i, name]) }),
    r: slider({ label: "rank r", min: 1, max: most, value: r }),
  };
  const made = explorer(el, {
    name: "the update of a layer, and its best part of rank r", controls,
    views: [bars.node, held.node, ...pictures.map((picture) => picture.node)],
    update({ task, layer, r: asked }) {
      now = looked(task, layer);
      const k = now.s.length, kept = Math.min(asked, k), end = shown(now), [m, n] = now.shape, x = { domain: [0, end + 1] };
      const drag = (at) => made.move({ r: Math.max(1, Math.min(end, Math.round(at))) });
      bars.draw({
        x, y: { domain: [0, 1.06 * now.s[0] || 1] },
        bars: now.s.slice(0, end).map((s, i) => ({ x0: i + 0.6, x1: i + 1.4, y0: 0, y1: s, color: i < kept ? colors.full : colors.control })),
        rules: [{ x: kept + 0.5, color: colors.full }],
        dots: [{ x: kept, y: now.s[kept - 1], color: colors.full, drag }],
      });
      const needs = now.energy.findIndex((share) => share >= 0.9);
      held.draw({
        x,
        lines: [{ points: now.energy.slice(0, end + 1).map((share, i) => [i, share]), color: colors.full }],
        rules: [{ y: 0.9 }],
        dots: [{ x: kept, y: now.energy[kept], color: colors.full, drag }],
      });
      draw(kept);
      if (!now.s[0]) return "This layer did not move.";
      const error = Math.sqrt(Math.max(0, 1 - now.energy[kept]));
      return `rank ${kept} of ${k}: ${percent(now.energy[kept])} of the update's energy in ${percent(kept / k)} of the directions, error ${percent(error)}`
        + ` of its length. 90% of the energy needs rank ${needs}. A and B of rank ${kept}: ${whole(kept * (m + n))} numbers for ${whole(m * n)}.`;
    },
  });

  function draw(r) {
    const { update, u, v, s, full } = now, { rows, columns } = update;
    const best = new Float32Array(rows * columns), left = new Float32Array(rows * columns);
    for (let i = 0; i < rows; i++)
      for (let j = 0; j < columns; j++) {
        let sum = 0;
        for (let k = 0; k < Math.min(r, u.columns); k++) sum += u.values[i * u.columns + k] * s[k] * v.values[k * columns + j];
        best[i * columns + j] = sum;
        left[i * columns + j] = update.values[i * columns + j] - sum;
      }
    const side = Math.floor(Math.min(200, (el.clientWidth - 30) / 3)), size = { width: side, height: (side * rows) / columns }; // three in a row
    pictures[0].draw(update, full, { ...size, title: `ΔW, first ${rows} x ${columns}` });
    pictures[1].draw({ rows, columns, values: best }, full, { ...size, title: `best rank-${r} part` });
    pictures[2].draw({ rows, columns, values: left }, full, { ...size, title: "what is left" });
  }
  for (const picture of [bars, held]) picture.watch(made.root);
  new ResizeObserver(made.refresh).observe(made.root);
}
