// The savings of one d x d matrix at rank r, drawn in the browser so that the curve follows the hand.
const W = 640, H = 300, PAD = { left: 62, right: 24, top: 18, bottom: 46 };
const DS = [5, 15], TIMES = [0, 12]; // both axes are powers of two

const x = (d) => PAD.left + ((Math.log2(d) - DS[0]) / (DS[1] - DS[0])) * (W - PAD.left - PAD.right);
const y = (times) => H - PAD.bottom - ((Math.log2(times) - TIMES[0]) / (TIMES[1] - TIMES[0])) * (H - PAD.top - PAD.bottom);
const n = (value) => Math.round(value).toLocaleString("en-US");

function element(name, attributes, parent) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  parent.append(node);
  return node;
}

function label(text, at, parent, more = {}) {
  const node = element("text", { ...at, fill: "currentColor", "font-size": 12, ...more }, parent);
  node.textContent = text;
  return node;
}

function slider(name, from, to, exponent, row, moved) {
  const box = document.createElement("label");
  const input = document.createElement("input");
  Object.assign(input, { type: "range", min: from, max: to, step: 1, value: exponent });
  input.setAttribute("data-lm-suppress-shortcuts", "true"); // else JupyterLab swallows the arrow keys
  input.setAttribute("aria-label", name);
  input.addEventListener("input", () => moved(2 ** Number(input.value)));
  box.append(`${name} `, input);
  row.append(box);
  return input;
}

function render({ model, el }) {
  el.classList.add("llm-savings");
  const row = document.createElement("div");
  row.style.cssText = "display: flex; gap: 2em; margin: 4px 0";
  const status = document.createElement("div");
  status.setAttribute("role", "status");
  const svg = element("svg", { viewBox: `0 0 ${W} ${H}`, width: W, height: H, role: "img" }, el);
  svg.style.cssText = "max-width: 100%; height: auto; color: var(--jp-content-font-color1, currentColor)";
  svg.setAttribute("aria-label", "times fewer trained numbers over the width d of a square matrix");
  const change = (key, value) => { model.set(key, value); model.save_changes(); };
  const rank = slider("rank r", 0, 8, Math.log2(model.get("r")), row, (value) => change("r", value));
  const width = slider("width d", DS[0], DS[1] - 1, Math.log2(model.get("d")), row, (value) => change("d", value));
  el.prepend(row, status);

  for (let e = DS[0]; e <= DS[1]; e += 2) {
    element("line", { x1: x(2 ** e), x2: x(2 ** e), y1: PAD.top, y2: H - PAD.bottom, stroke: "currentColor", opacity: 0.12 }, svg);
    label(n(2 ** e), { x: x(2 ** e), y: H - PAD.bottom + 18, "text-anchor": "middle" }, svg);
  }
  for (let e = TIMES[0]; e <= TIMES[1]; e += 2) {
    element("line", { x1: PAD.left, x2: W - PAD.right, y1: y(2 ** e), y2: y(2 ** e), stroke: "currentColor", opacity: 0.12 }, svg);
    label(n(2 ** e), { x: PAD.left - 8, y: y(2 ** e) + 4, "text-anchor": "end" }, svg);
  }
  label("width d of a square matrix", { x: (W + PAD.left) / 2, y: H - 8, "text-anchor": "middle" }, svg);
  label("times fewer trained numbers", { x: -(H - PAD.bottom + PAD.top) / 2, y: 14, "text-anchor": "middle", transform: "rotate(-90)" }, svg);
  const line = element("line", { stroke: "#0072B2", "stroke-width": 2.5 }, svg);
  const dot = element("circle", { r: 6, fill: "#0072B2" }, svg);

  function draw() {
    const r = model.get("r"), d = model.get("d"), times = (at) => at / (2 * r);
    rank.value = Math.log2(r), width.value = Math.log2(d);
    const from = Math.max(2 ** DS[0], 2 * r); // below that nothing is saved
    const ends = { x1: x(from), y1: y(times(from)), x2: x(2 ** DS[1]), y2: y(times(2 ** DS[1])) };
    for (const [key, value] of Object.entries(ends)) line.setAttribute(key, value);
    dot.setAttribute("cx", x(d)), dot.setAttribute("cy", y(Math.max(1, times(d))));
    dot.setAttribute("opacity", times(d) >= 1 ? 1 : 0.25);
    const saved = times(d) >= 1 ? `${times(d).toLocaleString("en-US")} times fewer` : "more than the matrix has";
    status.textContent = `r = ${r}, d = ${n(d)}: ${n(2 * r * d)} numbers in A and B for ${n(d * d)} in W, ${saved}`;
  }
  model.on("change:r", draw);
  model.on("change:d", draw);
  draw();
}

export default { render };
