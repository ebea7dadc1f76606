// Recorded runs: alpha's convention, the start of A, rank and rate. What one of them does, another can undo.
import { choice, slider } from "./controls.js";
import { explorer } from "./explorer.js";
import { plot } from "./plot.js";

const SIGN = { "alpha": "alpha", "alpha/r": "alpha/r", "alpha/sqrt(r)": "alpha/√r" };
const LABEL = { rate: "learning rate", product: "scale × learning rate", step: "first step: scale · r · spread of A · rate" };
const figures = (value) => String(Number(value.toPrecision(2)));
const nats = (value) => value.toFixed(2);

/** curves: start, scaling, r, scale, spread of A, and points [rate, median loss, lowest seed, highest seed]. */
export function settings(el, { colors, curves, base, full }) {
  const every = curves.flatMap(({ points }) => points), low = Math.min(...every.map(([, , least]) => least));
  const rates = [...new Set(every.map(([rate]) => rate))].sort((a, b) => a - b);
  const room = [low - 0.1 * (base - low), base + 0.4 * (base - low)]; // of worse runs it is enough that they are worse
  const ranks = [...new Set(curves.map(({ r }) => r))], most = Math.max(...ranks);
  const least = ({ points }) => points.reduce((best, point) => (point[1] < best[1] ? point : best));
  const best = curves.map(least);
  const at = { rate: () => 1, product: ({ scale }) => scale, step: ({ scale, r, spread }) => scale * r * spread }; // of a rate of 1
  const apart = (along) => { // how far the best points lie from each other
    const places = curves.map((curve, i) => best[i][0] * at[along](curve));
    return Math.max(...places) / Math.min(...places);
  };
  const axis = (along) => {
    const places = curves.flatMap((curve) => curve.points.map(([rate]) => rate * at[along](curve)));
    const ends = [Math.floor(Math.log10(Math.min(...places))), Math.ceil(Math.log10(Math.max(...places)))];
    return {
      label: LABEL[along], domain: [Math.min(...places) / 1.5, Math.max(...places) * 1.5],
      ticks: Array.from({ length: ends[1] - ends[0] + 1 }, (_, i) => 10 ** (ends[0] + i)),
    };
  };
  const axes = Object.fromEntries(Object.keys(at).map((along) => [along, axis(along)]));
  const name = ({ r, start, scaling }) => `r = ${r}, ${start}'s A, ${SIGN[scaling]}`;
  let along = "rate";
  const picture = plot({
    label: "held-out loss over the learning rate", height: 320, right: 92,
    x: { log: true, format: figures, ...axes.rate },
    y: { label: `held-out loss, nats (dashed: r = ${Math.min(...ranks)})`, domain: room, format: (v) => v.toFixed(1) },
    hover(x, y) {
      const [wide, high] = [Math.log(axes[along].domain[1] / axes[along].domain[0]), room[1] - room[0]];
      const near = curves.flatMap((curve) => curve.points.map((point) =>
        ({ curve, point, far: Math.hypot(Math.log((point[0] * at[along](curve)) / x) / wide, (Math.min(point[1], room[1]) - y) / high) })));
      const { curve, point: [rate, loss], far } = near.reduce((a, b) => (b.far < a.far ? b : a));
      return far < 0.06 ? `${name(curve)}, rate ${rate}: ${nats(loss)}` : null;
    },
  });
  const controls = {
    scaling: choice({ label: "scale", options: [...new Set(curves.map(({ scaling }) => scaling))].map((is) => [is, SIGN[is]]) }),
    start: choice({ label: "start of A", options: [...new Set(curves.map(({ start }) => start))] }),
    r: choice({ label: "rank r", options: ranks.map((r) => [r, String(r)]), value: most }),
    rate: slider({ label: "learning rate", values: rates, value: 1e-3 }),
    along: choice({ label: "horizontal axis", options: [["rate", "rate"], ["product", "scale × rate"], ["step", "first step"]] }),
  };
  const made = explorer(el, {
    name: "alpha, rate, rank and start of A", controls, views: [picture.node],
    update(values) {
      ({ along } = values);
      const { scaling, start, r } = values, chosen = curves.find((c) => c.scaling === scaling && c.start === start && c.r === r);
      controls.rate.limit((rate) => chosen.points.some(([is]) => is === rate)); // each start was tried at its own rates
      const rate = controls.rate.value, [, loss, lowest, highest] = chosen.points.find(([is]) => is === rate);
      const x = (curve, of) => of * at[along](curve), top = Math.min(loss, room[1]);
      const drag = (to) => made.move({ rate: chosen.points.map(([is]) => is).reduce((a, b) => // the nearest one, by ratio
        (Math.abs(Math.log(x(chosen, b) / to)) < Math.abs(Math.log(x(chosen, a) / to)) ? b : a)) });
      const line = (curve) => ({ points: curve.points.map(([rate, loss]) => [x(curve, rate), loss]), color: colors.lora, dashed: curve.r < most });
      picture.draw({
        x: axes[along],
        rules: [{ y: base, label: `base ${nats(base)}`, color: colors.base }, ...(full ? [{ y: full, label: `full ${nats(full)}`, color: colors.full }] : [])],
        lines: [
          ...curves.filter((curve) => curve !== chosen).map((curve) => ({ ...line(curve), thin: true, faint: true })),
          { ...line(chosen), label: `r = ${r}` },
        ],
        dots: [
          ...curves.map((curve, i) => ({ x: x(curve, best[i][0]), y: best[i][1], color: colors.lora, r: 4, faint: curve !== chosen,
            click: () => made.move({ scaling: curve.scaling, start: curve.start, r: curve.r, rate: best[i][0] }) })),
          { x: x(chosen, rate), y: top, color: colors.lora, drag },
        ],
      });
      const found = least(chosen);
      const verdict = rate === found[0] ? "the best rate of this curve" : loss > base ? `above the base; best rate ${found[0]}` : `best rate ${found[0]}`;
      const rank = (r) => curves.flatMap((curve, i) => (curve.r === r ? [best[i][1]] : []));
      const left = ranks.map((r, i) => `r = ${r} ${i ? "at" : "ends at"} ${nats(Math.min(...rank(r)))} to ${nats(Math.max(...rank(r)))}`).join(", ");
      return `Scale ${figures(chosen.scale)}, rate ${rate}: loss ${nats(loss)} (seeds ${nats(lowest)} to ${nats(highest)}), ${verdict}. ` +
        (along === "step" ? `The best points lie within a factor of ${figures(apart(along))}. Only the rank still tells: ${left}.`
          : `The best points of the ${curves.length} curves lie a factor of ${figures(apart(along))} apart.`);
    },
  });
  picture.watch(made.root);
}
