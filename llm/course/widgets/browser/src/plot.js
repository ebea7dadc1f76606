// Axes, lines and points in SVG, redrawn as a whole: a few hundred nodes take a millisecond or two.
import { scaleLinear, scaleLog } from "d3-scale";
import { ink, svg } from "./dom.js";
import { tip } from "./tip.js";

/**
 * A plot: { node, draw }.
 *
 * x, y: { label, domain: [low, high], log, ticks: values or how many, format, base }.
 * draw({ lines, dots, rules, bars, x, y }) shows
 *   lines: { points: [[x, y], ...], color, label, dashed, thin, faint, filled }  a label stands at the line's end, at its height
 *   dots:  { x, y, color, faint, label, hint, r, drag(x, y), click } drag is called with the place under the hand; give
 *                                                                it, and click, only where keys do the same
 *   rules: { x or y, label, color }                               a thin line across
 *   bars:  { x0, x1, y0, y1, color, label, hint, faint }
 * x and y given to draw take the place of the axes' settings. What leaves the frame is cut at it; a dot above it is an arrow at its border.
 * hover(x, y): what to say of a place; null for nothing.
 */
export function plot({ label, height = 280, width = 620, left = 62, right = 120, x, y, hover }) {
  const node = svg("svg", { role: "img", "aria-label": label }), clip = `llm-${Math.random().toString(36).slice(2)}`;
  const TOP = 14, BOTTOM = 44;
  let last = null, wide = width, end = right, scales = null;

  const scaled = (axis, range) => (axis.log ? scaleLog().base(axis.base ?? 10) : scaleLinear()).domain(axis.domain).range(range);
  const ticksOf = (axis, scale) => (Array.isArray(axis.ticks) ? axis.ticks : scale.ticks(axis.ticks ?? 5));
  if (hover)
    tip(node, node, (px, py) => {
      const at = [px * wide, py * height];
      if (!scales || at[0] < left || at[0] > wide - end || at[1] < TOP || at[1] > height - BOTTOM) return null;
      return hover(scales.x.invert(at[0]), scales.y.invert(at[1]));
    });

  function draw(what) {
    last = what;
    const ax = { ...x, ...what.x }, ay = { ...y, ...what.y };
    const narrow = wide < 460;
    end = narrow ? 24 : right; // labels go above their lines where the page is narrow
    const sx = scaled(ax, [left, wide - end]), sy = scaled(ay, [height - BOTTOM, TOP]);
    scales = { x: sx, y: sy };
    const inside = (v, [low, high]) => v >= Math.min(low, high) && v <= Math.max(low, high);
    const write = (text, at, more = {}) => svg("text", { ...at, ...more }, text);
    const axes = svg("g");
    for (const v of ticksOf(ax, sx).filter((v) => inside(v, ax.domain))) {
      axes.append(svg("line", { class: "grid", x1: sx(v), x2: sx(v), y1: TOP, y2: height - BOTTOM }));
      axes.append(write((ax.format ?? String)(v), { x: sx(v), y: height - BOTTOM + 17, "text-anchor": "middle" }));
    }
    for (const v of ticksOf(ay, sy).filter((v) => inside(v, ay.domain))) {
      axes.append(svg("line", { class: "grid", x1: left, x2: wide - end, y1: sy(v), y2: sy(v) }));
      axes.append(write((ay.format ?? String)(v), { x: left - 7, y: sy(v) + 4, "text-anchor": "end" }));
    }
    axes.append(write(ax.label, { x: (left + wide - end) / 2, y: height - 6, "text-anchor": "middle" }));
    axes.append(write(ay.label, { x: -(TOP + height - BOTTOM) / 2, y: 13, "text-anchor": "middle", transform: "rotate(-90)" }));

    const marks = svg("g", { "clip-path": `url(#${clip})` }), above = svg("g"), labels = [];
    for (const { x0, x1, y0, y1, color, hint, faint } of what.bars ?? []) {
      const [a, b, c, d] = [sx(x0), sx(x1), sy(y0), sy(y1)];
      marks.append(svg("rect", { x: Math.min(a, b), y: Math.min(c, d), width: Math.abs(a - b), height: Math.abs(c - d), fill: color, opacity: faint ? 0.4 : 1 },
        hint ? svg("title", {}, hint) : null));
    }
    for (const { x: rx, y: ry, label: words, color = "currentColor" } of what.rules ?? []) {
      const at = rx !== undefined ? { x1: sx(rx), x2: sx(rx), y1: TOP, y2: height - BOTTOM } : { x1: left, x2: wide - end, y1: sy(ry), y2: sy(ry) };
      marks.append(svg("line", { ...at, stroke: ink(color), "stroke-dasharray": "4 4" }));
      if (words && ry !== undefined) labels.push({ words, color, x: wide - end, y: sy(ry) });
      if (words && rx !== undefined) above.append(write(words, { x: sx(rx) + 4, y: TOP + 10 }, { style: `fill: ${ink(color)}` }));
    }
    for (const { points, color, label: words, dashed, thin, faint, filled } of what.lines ?? []) {
      const there = points.filter(([, v]) => Number.isFinite(v) && !(ay.log && v <= 0));
      if (!there.length) continue;
      const path = there.map(([a, b]) => `${sx(a).toFixed(1)},${sy(b).toFixed(1)}`).join(" ");
      marks.append(svg("polyline", { points: path, fill: filled ? color : "none", style: filled ? null : `stroke: ${ink(color)}`, "stroke-width": thin ? 1.2 : 2.5, "stroke-dasharray": dashed ? "6 4" : null, opacity: faint ? 0.35 : null }));
      const seen = there.filter(([a, b]) => inside(a, ax.domain) && inside(b, ay.domain)).at(-1) ?? there.at(-1);
      if (words) labels.push({ words, color, x: sx(seen[0]), y: Math.max(TOP, Math.min(height - BOTTOM, sy(seen[1]))) });
    }
    for (const [i, { x: dx, y: dy, color, faint, drag, click, label: words, hint, r = 5 }] of (what.dots ?? []).entries()) {
      const out = !drag && r > 0 && sy(dy) < TOP - 1, across = sx(dx), half = r + 1;
      const shape = out ? ["path", { class: "out", d: `M${across - half} ${TOP + 2 * half}h${2 * half}l${-half} ${-2 * half}z` }] : ["circle", { cx: across, cy: sy(dy), r: drag ? 7 : r }];
      const dot = svg(shape[0], { class: drag ? "handle" : null, ...shape[1], style: `fill: ${ink(color)}${click ? "; cursor: pointer" : ""}`, opacity: faint ? 0.3 : 1, "data-dot": drag ? i : null, onclick: click ?? null },
        hint ? svg("title", {}, hint) : null);
      (drag ? above : marks).append(dot);
      if (words) labels.push({ words, color, x: sx(dx), y: sy(dy) });
    }
    spread(labels, wide, end, narrow, TOP, height - BOTTOM).forEach((at) => above.append(at));
    node.setAttribute("width", wide);
    node.setAttribute("height", height);
    const cut = svg("rect", { x: left - 6, y: TOP - 6, width: wide - left - end + 12, height: height - TOP - BOTTOM + 12 });
    node.replaceChildren(svg("defs", {}, svg("clipPath", { id: clip }, cut)), axes, marks, above);
  }

  // The picture itself holds the pointer while a point is dragged, because each draw makes new points.
  let held = null;
  node.addEventListener("pointerdown", (event) => {
    held = event.target.dataset?.dot ?? null;
    if (held === null) return;
    event.preventDefault();
    node.setPointerCapture(event.pointerId);
  });
  node.addEventListener("pointermove", (event) => {
    if (held === null) return;
    const box = node.getBoundingClientRect();
    last.dots[held].drag(scales.x.invert(event.clientX - box.left), scales.y.invert(event.clientY - box.top));
  });
  for (const name of ["pointerup", "pointercancel"]) node.addEventListener(name, () => { held = null; });

  /** Follow the width of `root`, so that text keeps its size on a narrow page. */
  function watch(root) {
    new ResizeObserver(() => {
      const room = Math.min(width, Math.floor(root.clientWidth));
      if (room <= 0 || room === wide) return;
      wide = room;
      if (last) draw(last);
    }).observe(root);
  }
  return { node, draw, watch };
}

// Labels keep their distance: each at its line's height, moved as little as two lines of text need; a thin leader leads back.
function spread(labels, wide, end, narrow, top, bottom) {
  const GAP = 14, sorted = [...labels].sort((a, b) => a.y - b.y), ys = sorted.map(({ y }) => y);
  for (let i = 1; i < ys.length; i++) ys[i] = Math.max(ys[i], ys[i - 1] + GAP);
  for (let i = ys.length - 1; i >= 0; i--) ys[i] = Math.min(ys[i], i === ys.length - 1 ? bottom : ys[i + 1] - GAP);
  return sorted.flatMap(({ words, color, x, y }, i) => {
    const at = narrow ? wide - end : x + 10, moved = Math.abs(ys[i] - y) > 3;
    const text = svg("text", { x: at + (moved && !narrow ? 8 : 0), y: ys[i] + (narrow ? -5 : 4), "text-anchor": narrow ? "end" : "start", style: `fill: ${ink(color)}` }, words);
    return moved && !narrow ? [svg("line", { x1: x + 3, y1: y, x2: at + 6, y2: ys[i], style: `stroke: ${ink(color)}`, opacity: 0.6 }), text] : [text];
  });
}
