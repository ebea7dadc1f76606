// Every method's loss over the learning rate, and the order of the methods at one rate for all or at each one's best.
import { check, choice, slider } from "./controls.js";
import { html, ink } from "./dom.js";
import { explorer } from "./explorer.js";
import { plot } from "./plot.js";

const ROW = 24;
const STYLE = `
.llm-explorer .order { flex: 1; min-width: 270px; max-width: 340px; font-variant-numeric: tabular-nums; }
.llm-explorer .order .head, .llm-explorer .order button { display: grid; width: 100%; grid-template-columns: 2.6em 1fr 4em 5.6em; gap: 0 6px; text-align: left; white-space: nowrap; }
.llm-explorer .order .head { font-size: 12px; padding: 0 4px; height: 20px; box-sizing: border-box; }
.llm-explorer .order .head :nth-child(n+3), .llm-explorer .order button :nth-child(n+3) { text-align: right; }
.llm-explorer .order .rows { position: relative; }
.llm-explorer .order button { position: absolute; top: 0; left: 0; height: ${ROW - 2}px; padding: 0 4px; border: 0; border-radius: 3px; background: none;
  align-items: center; cursor: pointer; transition: transform .25s; }
.llm-explorer .order button:hover, .llm-explorer .order button[aria-pressed=true] { background: color-mix(in oklab, currentColor 14%, transparent); }
@media (prefers-reduced-motion: reduce) { .llm-explorer .order button { transition: none; } }
`;

export function rates(el, { colors, rates: shared, tasks, methods }) {
  for (const task of Object.values(tasks))
    task.best = Object.fromEntries(Object.entries(task.curves).map(([name, curve]) => [name, curve.reduce((a, b) => (b[1] < a[1] ? b : a))]));
  const names = Object.keys(methods);
  let chosen = null, pointed = null; // a method by a click, and by the pointer or the focus
  let frame = null; // what the picture shows: { curves, x, y }

  const picture = plot({
    label: "loss of every method over the learning rate", width: 470, height: 330, right: 42,
    x: { label: "learning rate", log: true, format: (v) => String(Number(v.toPrecision(3))) }, y: { label: "held-out loss, nats per token", ticks: 6 },
    hover: (x, y) => nearest(x, y),
  });
  const rows = Object.fromEntries(names.map((name) => {
    const cells = [0, 1, 2, 3].map(() => html("span"));
    const point = (to) => () => { pointed = to; made.refresh(); };
    const node = html("button", { type: "button", style: `color: ${ink(methods[name].color)}`, onclick: () => choose(name),
      onpointerenter: point(name), onpointerleave: point(null), onfocus: point(name), onblur: point(null) }, ...cells);
    cells[1].textContent = methods[name].name;
    return [name, { node, cells }];
  }));
  function choose(name) {
    chosen = chosen === name ? null : name;
    made.refresh();
  }
  const head = html("div", { class: "head" }, ...["place", "method", "loss", "own place"].map((text) => html("span", {}, text)));
  const order = html("div", { class: "order", role: "group", "aria-label": "order of the methods" }, html("style", {}, STYLE), head,
    html("div", { class: "rows", style: `height: ${ROW * names.length}px` }, ...names.map((name) => rows[name].node)));

  const controls = {
    task: choice({ label: "task", options: Object.keys(tasks) }),
    rate: slider({ label: "one rate", values: shared, value: 0.01 }),
    own: check({ label: "each at its own best" }),
  };
  const made = explorer(el, {
    name: "methods at one learning rate, or each at its own", controls, views: [picture.node, order],
    update({ task, rate, own }) {
      controls.rate.disabled = own;
      const { base, curves, best } = tasks[task], at = {};
      for (const name of names) {
        const there = own ? best[name] : curves[name].find(([lr]) => lr === rate);
        if (there) at[name] = there;
      }
      const sorted = (from) => Object.keys(from).sort((a, b) => from[a][1] - from[b][1]);
      const now = sorted(at), ours = sorted(best), seen = pointed ?? chosen;
      draw(base, curves, at, own ? null : rate, seen, best, ours);
      list([...now, ...ours.filter((name) => !at[name])], at, ours);
      return says(base, at, now, ours, own ? null : rate, seen, best, names.length);
    },
  });

  function draw(base, curves, at, rate, seen, best, ours) {
    const every = Object.values(curves).flat(), lrs = every.map(([lr]) => lr), low = best[ours[0]][1], high = base + 0.6 * (base - low);
    const drag = (to) => made.move({ rate: shared.reduce((a, b) => (Math.abs(Math.log(b / to)) < Math.abs(Math.log(a / to)) ? b : a)) });
    const by = seen ? [...names.filter((name) => name !== seen), seen] : names; // what is looked at lies on top
    frame = { curves, x: [Math.min(...lrs) / 1.5, Math.max(...lrs) * 1.5], y: [low - 0.06 * (high - low), high] };
    picture.draw({
      x: { domain: frame.x, ticks: shared.filter((lr) => Math.abs(Math.log10(lr) % 1) < 1e-9) },
      y: { domain: frame.y },
      lines: by.map((name) => ({ points: curves[name], color: methods[name].color, thin: name !== seen, faint: seen !== null && name !== seen })),
      rules: [{ y: base, color: colors.base, label: "base" }, ...(rate ? [{ x: rate }] : [])],
      dots: [
        ...by.flatMap((name) => curves[name].map((there) => ({
          x: there[0], y: there[1], color: methods[name].color, r: there === at[name] ? 5 : 2, faint: seen !== null && name !== seen,
          click: () => choose(name),
        }))),
        ...(rate ? [{ x: rate, y: frame.y[0], color: "currentColor", drag }] : []),
      ],
    });
  }

  // The recorded point under the pointer: the nearest, if it is near.
  function nearest(x, y) {
    const far = ([lr, loss]) => Math.hypot(Math.log(lr / x) / Math.log(frame.x[1] / frame.x[0]), (Math.min(loss, frame.y[1]) - y) / (frame.y[1] - frame.y[0]));
    const every = Object.entries(frame.curves).flatMap(([name, curve]) => curve.map((there) => ({ name, there, far: far(there) })));
    const { name, there, far: away } = every.reduce((a, b) => (b.far < a.far ? b : a));
    return away < 0.03 ? `${methods[name].name} at ${there[0]}: ${there[1].toFixed(3)}` : null;
  }

  function list(now, at, ours) {
    for (const [i, name] of now.entries()) {
      const { node, cells } = rows[name], own = ours.indexOf(name) + 1;
      node.style.transform = `translateY(${i * ROW}px)`;
      node.setAttribute("aria-pressed", chosen === name);
      cells[0].textContent = at[name] ? i + 1 : "-";
      cells[2].textContent = at[name] ? at[name][1].toFixed(2) : "not tried";
      cells[3].textContent = `${own}${!at[name] || own === i + 1 ? "" : own < i + 1 ? ", better" : ", worse"}`;
    }
  }

  function says(base, at, now, ours, rate, seen, best, count) {
    const name = (of) => methods[of].name, loss = (of) => at[of][1].toFixed(2), last = now.at(-1);
    const worse = now.filter((of) => at[of][1] > base).length, moved = now.filter((of, i) => ours.indexOf(of) !== i).length;
    const where = rate === null ? "Each at its own rate" : `Rate ${rate} for all`;
    if (seen) {
      const there = at[seen] ? `${now.indexOf(seen) + 1} of ${now.length} with ${loss(seen)}` : "not tried";
      return `${where}: ${name(seen)} is ${there}. At its own best rate, ${best[seen][0]}, it is ${ours.indexOf(seen) + 1} of ${count} with ${best[seen][1].toFixed(2)}.`;
    }
    return `${where}, ${now.length} of ${count} tried: lowest ${name(now[0])} with ${loss(now[0])}, highest ${name(last)} with ${loss(last)}; ${worse} worse than no training. `
      + (rate === null ? "This order compares the methods." : `${moved} of ${now.length} places differ from the order at each one's best rate.`);
  }
  picture.watch(made.root);
}
