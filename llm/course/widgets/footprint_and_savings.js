// Closed-form curves drawn in the browser, so that they follow the hand. Each curve is a spec: its sliders (powers of
// `base`), its axes, the lines through them and the sentence about where the sliders stand.
const W = 640, H = 300, PAD = { left: 70, right: 24, top: 18, bottom: 46 };
const n = (value) => Math.round(value).toLocaleString("en-US");
const few = (value) => value.toLocaleString("en-US", { maximumSignificantDigits: 3 });

const CURVES = {
  savings: {
    sliders: [{ key: "r", label: "rank r", base: 2, from: 0, to: 8 }, { key: "d", label: "width d", base: 2, from: 5, to: 14 }],
    x: { base: 2, from: 5, to: 15, step: 2, label: "width d of a square matrix" },
    y: { base: 2, from: 0, to: 12, step: 2, label: "times fewer trained numbers" },
    lines: ({ r }) => [{ colour: "lora", of: (d) => d / (2 * r), from: 2 * r }], // below 2r nothing is saved
    dots: ({ r, d }) => [{ colour: "lora", x: d, y: Math.max(1, d / (2 * r)), faint: d < 2 * r }],
    say({ r, d }) {
      const saved = d >= 2 * r ? `${(d / (2 * r)).toLocaleString("en-US")} times fewer` : "more than the matrix has";
      return `r = ${r}, d = ${n(d)}: ${n(2 * r * d)} numbers in A and B for ${n(d * d)} in W, ${saved}`;
    },
  },
  footprint: {
    sliders: [{ key: "n", label: "fine-tunes kept", base: 10 ** 0.1, from: 0, to: 40 }],
    x: { base: 10, from: 0, to: 4, step: 1, label: "fine-tunes kept" },
    y: { base: 10, from: 1, to: 6, step: 1, label: "on disk, MB" },
    lines: ({ model, adapter }) => [
      { colour: "full", of: (k) => (k * model) / 1e6, label: "a checkpoint each", at: 1000, anchor: "end", dy: -10 },
      { colour: "lora", of: (k) => (model + k * adapter) / 1e6, label: "one base, an adapter each", at: 1.2, dy: 20 },
    ],
    dots: ({ model, adapter, n: k }) => [
      { colour: "full", x: k, y: (k * model) / 1e6 },
      { colour: "lora", x: k, y: (model + k * adapter) / 1e6 },
    ],
    say({ model, adapter, n: k }) {
      const whole = k * model, thin = model + k * adapter, as = few(thin / model);
      return `${n(k)} fine-tune${k === 1 ? "" : "s"}: a checkpoint each ${few(whole / 1e6)} MB, one base and an adapter each ` +
        `${few(thin / 1e6)} MB, as much as ${as} checkpoint${as === "1" ? "" : "s"}`;
    },
  },
};

function element(name, attributes, parent) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  parent.append(node);
  return node;
}

function text(words, at, parent, more = {}) {
  const node = element("text", { ...at, fill: "currentColor", "font-size": 12, ...more }, parent);
  node.textContent = words;
  return node;
}

function slider({ key, label, base, from, to }, model, row) {
  const box = document.createElement("label");
  const input = document.createElement("input");
  Object.assign(input, { type: "range", min: from, max: to, step: 1 });
  input.setAttribute("data-lm-suppress-shortcuts", "true"); // else JupyterLab swallows the arrow keys
  input.setAttribute("aria-label", label);
  input.addEventListener("input", () => {
    model.set(key, Math.round(base ** Number(input.value)));
    model.save_changes();
  });
  box.append(`${label} `, input);
  row.append(box);
  return () => { input.value = Math.round(Math.log(model.get(key)) / Math.log(base)); };
}

function render({ model, el }) {
  const curve = CURVES[model.get("curve")];
  const scale = (axis, low, high) => (value) =>
    low + ((Math.log(value) / Math.log(axis.base) - axis.from) / (axis.to - axis.from)) * (high - low);
  const x = scale(curve.x, PAD.left, W - PAD.right), y = scale(curve.y, H - PAD.bottom, PAD.top);
  el.classList.add(`llm-${model.get("curve")}`);
  const row = document.createElement("div"), status = document.createElement("div");
  row.style.cssText = "display: flex; gap: 2em; margin: 4px 0";
  status.setAttribute("role", "status");
  const svg = element("svg", { viewBox: `0 0 ${W} ${H}`, width: W, height: H, role: "img" }, el);
  svg.style.cssText = "max-width: 100%; height: auto; color: var(--jp-content-font-color1, currentColor)";
  svg.setAttribute("aria-label", `${curve.y.label} over ${curve.x.label}`);
  const follow = curve.sliders.map((spec) => slider(spec, model, row));
  el.prepend(row, status);

  const grid = { stroke: "currentColor", opacity: 0.12 };
  for (let e = curve.x.from; e <= curve.x.to; e += curve.x.step) {
    const at = x(curve.x.base ** e);
    element("line", { x1: at, x2: at, y1: PAD.top, y2: H - PAD.bottom, ...grid }, svg);
    text(n(curve.x.base ** e), { x: at, y: H - PAD.bottom + 18, "text-anchor": "middle" }, svg);
  }
  for (let e = curve.y.from; e <= curve.y.to; e += curve.y.step) {
    const at = y(curve.y.base ** e);
    element("line", { x1: PAD.left, x2: W - PAD.right, y1: at, y2: at, ...grid }, svg);
    text(n(curve.y.base ** e), { x: PAD.left - 8, y: at + 4, "text-anchor": "end" }, svg);
  }
  text(curve.x.label, { x: (W + PAD.left) / 2, y: H - 8, "text-anchor": "middle" }, svg);
  const up = { "text-anchor": "middle", transform: "rotate(-90)" };
  text(curve.y.label, { x: -(H - PAD.bottom + PAD.top) / 2, y: 14 }, svg, up);
  const drawing = element("g", {}, svg);

  function draw() {
    const palette = model.get("colours"); // the course's own, by method
    const at = Object.fromEntries(["r", "d", "n", "model", "adapter"].map((key) => [key, model.get(key)]));
    follow.forEach((set) => set());
    drawing.replaceChildren();
    const first = curve.x.base ** curve.x.from, last = curve.x.base ** curve.x.to;
    for (const { colour, of, from = first, label, at: beside, anchor = "start", dy } of curve.lines(at)) {
      const path = [];
      for (let i = 0; i <= 60; i++) {
        const where = Math.max(first, from) ** (1 - i / 60) * last ** (i / 60);
        path.push(`${x(where)},${y(of(where))}`);
      }
      element("polyline", { points: path.join(" "), fill: "none", stroke: palette[colour], "stroke-width": 2.5 }, drawing);
      if (label) text(label, { x: x(beside), y: y(of(beside)) + dy, "text-anchor": anchor }, drawing, { fill: palette[colour] });
    }
    for (const { colour, x: where, y: value, faint } of curve.dots(at)) {
      element("circle", { cx: x(where), cy: y(value), r: 6, fill: palette[colour], opacity: faint ? 0.25 : 1 }, drawing);
    }
    status.textContent = curve.say(at);
  }
  for (const { key } of curve.sliders) model.on(`change:${key}`, draw);
  draw();
}

export default { render };
