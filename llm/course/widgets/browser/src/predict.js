// A question, an input for its kind, and a Commit button. The truth may come at any time; it stays hidden until the reader
// has committed. Then one sentence compares the two, and the page counts how many guesses of this notebook were close.
import { keepKeys } from "./dom.js";

const STYLE = `
.llm-predict { border: 1px solid var(--jp-border-color1, #8888); border-radius: 4px; padding: 10px 14px; margin: 4px 0; max-width: 640px;
  color: var(--jp-content-font-color1, currentColor); font: 14px/1.5 var(--jp-content-font-family, system-ui, sans-serif); }
.llm-predict label { display: block; margin: 4px 0; }
.llm-predict b { font-weight: 600; }
.llm-predict input[type=range] { width: 340px; max-width: 60%; vertical-align: middle; margin-right: 12px; }
.llm-predict input[type=text] { width: 9em; text-align: right; }
.llm-predict input[type=text], .llm-predict button { font: inherit; color: inherit; padding: 2px 10px; border-radius: 3px;
  border: 1px solid var(--jp-border-color0, #8888); background: var(--jp-layout-color2, transparent); }
.llm-predict button { margin-top: 6px; cursor: pointer; }
.llm-predict button:disabled { opacity: 0.5; cursor: default; }
.llm-predict small { color: var(--jp-content-font-color2, currentColor); }
.llm-predict [role=status] small { margin-left: 10px; }
.llm-predict svg { display: block; width: 100%; height: auto; touch-action: none; user-select: none; }
.llm-predict :focus-visible { outline: 2px solid var(--jp-brand-color1, #1976d2); outline-offset: 2px; }
.llm-predict [role=status] { outline: none; margin-top: 6px; min-height: 1.5em; }`;

const digits = (value, most) => value.toLocaleString("en-US", { maximumSignificantDigits: most });
const show = (value) => digits(value, Math.abs(value) >= 1000 ? Math.max(4, Math.round(value).toString().length) : 4);
const unitIn = (label) => (label.match(/\(([^)]*)\)\s*$/) || ["", ""])[1];
const withUnit = (value, unit) => (unit ? `${show(value)} ${unit === "%" ? "percentage points" : unit}` : show(value));

/** What is said of a guess once both are known, and whether the guess counts as close. */
export function verdict(kind, spec, guess, truth) {
  if (kind === "choice") {
    const close = guess === truth;
    return { close, words: close ? `Right: ${truth}.` : `You said ${guess}; it is ${truth}.` };
  }
  if (kind === "curve") {
    const away = guess.reduce((sum, y, i) => sum + Math.abs(y - truth[i]), 0) / guess.length;
    const close = away <= spec.close, words = `our curve is ${withUnit(Number(away.toPrecision(2)), unitIn(spec.y_label))} from the measured one on average.`;
    return { close, words: (close ? "Close: y" : "Y") + words };
  }
  if (show(guess) === show(truth)) return { close: true, words: `You said ${show(guess)}; exactly right.` };
  const more = truth > guess ? "more" : "less", ratio = truth > guess ? truth / guess : guess / truth;
  const times = ratio < 1.5 ? `${digits(100 * Math.abs(truth / guess - 1), 2)} percent` : `${ratio < 10 ? digits(ratio, 2) : show(Math.round(ratio))} times`;
  const close = spec.log ? ratio <= spec.close : Math.abs(truth - guess) <= spec.close * (1 + 1e-9);
  const apart = spec.log ? times : withUnit(Number(Math.abs(truth - guess).toPrecision(3)), spec.unit);
  return { close, words: `You said ${show(guess)}; it is ${show(truth)}: ${close ? "close, " : ""}${apart} ${more}.` };
}

function add(name, parent, properties = {}, attributes = {}) {
  const node = name.startsWith("svg:") ? document.createElementNS("http://www.w3.org/2000/svg", name.slice(4)) : document.createElement(name);
  Object.assign(node, properties);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  parent.append(node);
  return node;
}

// Each input: moved(guess) on every change, null where there is no guess; it returns show(guess, truth, committed).
const INPUTS = {
  number({ low, high, log, unit, whole, close }, question, parent, moved) {
    const step = Math.max(whole ? 1 : 0, 10 ** Math.floor(Math.log10((high - low) / 100)));
    const tidy = (p) => {
      const value = log ? Number((low * (high / low) ** p).toPrecision(2)) : low + step * Math.round(((high - low) * p) / step);
      return whole ? Math.round(value) : Number(value.toPrecision(12));
    };
    const many = log ? 200 : Math.round((high - low) / step);
    const places = [...new Set([low, ...Array.from({ length: many - 1 }, (_, i) => tidy((i + 1) / many)), high])];
    const nearest = (value) => places.reduce((best, place, i) => (Math.abs(place - value) < Math.abs(places[best] - value) ? i : best), 0);
    const row = add("div", parent);
    const slider = add("input", row, { type: "range", min: 0, max: places.length - 1, step: 1 }, { "aria-label": question });
    slider.value = places.length >> 1;
    const box = add("input", row, { type: "text", inputMode: "decimal", autocomplete: "off" }, { "aria-label": `${question} (as a number)` });
    if (unit) row.append(` ${unit}`);
    add("small", add("div", row), { textContent: `${show(low)} to ${show(high)}; ${log ? `a factor of ${show(close)}` : withUnit(close, unit)} away still counts as close.` });
    slider.addEventListener("input", () => {
      box.value = show(places[slider.value]);
      slider.setAttribute("aria-valuetext", `${box.value} ${unit}`);
      moved(places[slider.value]);
    });
    box.addEventListener("input", () => {
      const words = box.value.replace(/[\s,_]/g, ""), value = Number(words), fits = words !== "" && Number.isFinite(value) && !(log && value <= 0);
      if (fits) slider.value = nearest(value);
      moved(fits ? value : null);
    });
    return (guess, _truth, committed) => {
      if (guess !== null) [slider.value, box.value] = [nearest(guess), show(guess)];
      slider.disabled = box.disabled = committed;
    };
  },

  choice({ options }, question, parent, moved) {
    const group = add("div", parent, {}, { role: "radiogroup", "aria-label": question }), name = `llm-${Math.random()}`;
    const inputs = options.map((option) => {
      const label = add("label", group), input = add("input", label, { type: "radio", name, value: option });
      label.append(` ${option}`);
      input.addEventListener("change", () => moved(option));
      return input;
    });
    return (guess, _truth, committed) => inputs.forEach((input) => Object.assign(input, { checked: input.value === guess, disabled: committed }));
  },

  curve({ x, low, high, x_label, y_label, log_x, close }, question, parent, moved) {
    const W = 600, H = 300, LEFT = 70, RIGHT = 90, TOP = 16, BOTTOM = 46, along = log_x ? Math.log : Number;
    const px = (value) => LEFT + ((along(value) - along(x[0])) / (along(x.at(-1)) - along(x[0]))) * (W - LEFT - RIGHT);
    let from = low, to = high, heights = x.map(() => (low + high) / 2), last = null, locked = false;
    const py = (y) => H - BOTTOM - ((y - from) / (to - from)) * (H - TOP - BOTTOM);
    const svg = add("svg:svg", parent, {}, { viewBox: `0 0 ${W} ${H}`, role: "group", "aria-label": `${question} ${y_label} over ${x_label}` });
    const text = (words, at, where = svg) => { add("svg:text", where, {}, { fill: "currentColor", "font-size": 12, ...at }).textContent = words; };
    const scale = add("svg:g", svg), lines = add("svg:g", svg);
    x.forEach((value) => text(show(value), { x: px(value), y: H - BOTTOM + 18, "text-anchor": "middle" }));
    text(x_label, { x: (LEFT + W - RIGHT) / 2, y: H - 8, "text-anchor": "middle" });
    text(y_label, { x: -(TOP + H - BOTTOM) / 2, y: 14, "text-anchor": "middle", transform: "rotate(-90)" });
    const points = x.map((value, i) => {
      const point = add("svg:circle", svg, {}, { cx: px(value), r: 7, tabindex: 0, role: "slider", fill: "var(--jp-brand-color1, #1976d2)" });
      for (const [key, of] of [["aria-label", `${y_label} at ${x_label} ${show(value)}`], ["aria-valuemin", low], ["aria-valuemax", high]]) point.setAttribute(key, of);
      point.addEventListener("keydown", (event) => {
        const up = { ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10 }[event.key], beside = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (up && !locked) set(i, heights[i] + (up * (high - low)) / 50);
        if (beside) points[i + beside]?.focus();
        if (up || beside) event.preventDefault();
      });
      return point;
    });
    add("small", add("div", parent), { textContent: `Draw with the mouse, or focus a point and use the arrow keys. A mean distance of ${withUnit(close, unitIn(y_label))} still counts as close.` });

    function set(i, y) {
      heights[i] = Number(Math.min(high, Math.max(low, y)).toPrecision(4));
      moved([...heights]);
    }
    function stroke(event) { // every x that the pen has passed since its last place, and the nearest one
      const box = svg.getBoundingClientRect(), at = [((event.clientX - box.left) / box.width) * W, ((event.clientY - box.top) / box.height) * H];
      const y = (height) => from + ((H - BOTTOM - height) / (H - TOP - BOTTOM)) * (to - from), before = last || at, wide = at[0] - before[0];
      x.forEach((value, i) => {
        const t = (px(value) - before[0]) / wide;
        if (wide && t >= 0 && t <= 1) set(i, y(before[1] + t * (at[1] - before[1])));
      });
      const near = x.reduce((best, value, i) => (Math.abs(px(value) - at[0]) < Math.abs(px(x[best]) - at[0]) ? i : best), 0);
      if (Math.abs(px(x[near]) - at[0]) < 12) set(near, y(at[1]));
      last = at;
    }
    svg.addEventListener("pointerdown", (event) => { if (!locked) { svg.setPointerCapture(event.pointerId); last = null; stroke(event); } });
    svg.addEventListener("pointermove", (event) => { if (!locked && svg.hasPointerCapture(event.pointerId)) stroke(event); });

    function line(name, ys, colour, dash, dy) {
      add("svg:polyline", lines, {}, { points: ys.map((y, i) => `${px(x[i])},${py(y)}`).join(" "), fill: "none", stroke: colour, "stroke-width": 2.5, "stroke-dasharray": dash });
      if (name) text(name, { x: W - RIGHT + 12, y: py(ys.at(-1)) + 4 + dy, fill: colour }, lines);
    }
    return (guess, truth, committed) => {
      [heights, locked] = [guess ? [...guess] : heights, committed];
      [from, to] = [Math.min(low, ...(truth || [])), Math.max(high, ...(truth || []))];
      scale.replaceChildren();
      lines.replaceChildren();
      const ten = 10 ** Math.floor(Math.log10((to - from) / 4)), step = ten * [1, 2, 5, 10].find((of) => of * ten * 6 >= to - from);
      for (let y = Math.ceil(from / step - 1e-9) * step; y <= to + step * 1e-9; y += step) {
        add("svg:line", scale, {}, { x1: LEFT, x2: W - RIGHT, y1: py(y), y2: py(y), stroke: "currentColor", opacity: 0.15 });
        text(show(Number(y.toPrecision(6))), { x: LEFT - 8, y: py(y) + 4, "text-anchor": "end" }, scale);
      }
      const [mine, real] = truth ? [py(heights.at(-1)), py(truth.at(-1))] : [0, 99], shift = Math.max(0, (14 - Math.abs(mine - real)) / 2) * (mine < real ? -1 : 1);
      line(truth ? "your guess" : "", heights, "var(--jp-brand-color1, #1976d2)", "6 4", truth ? shift : 0);
      if (truth) line("measured", truth, "currentColor", "none", -shift);
      points.forEach((point, i) => {
        point.setAttribute("cy", py(heights[i]));
        point.setAttribute("aria-valuenow", heights[i]);
        point.setAttribute("aria-valuetext", withUnit(heights[i], unitIn(y_label)));
        point.setAttribute("aria-disabled", committed);
        point.style.cursor = committed ? "default" : "ns-resize";
      });
    };
  },
};

export function predict({ model, el }) {
  const [kind, spec, question] = ["kind", "spec", "question"].map((name) => model.get(name));
  let pending = null; // the guess as it stands, before the reader commits
  add("style", el, { textContent: STYLE });
  const root = add("div", el, { className: "llm-predict" }, { role: "group", "aria-label": "Prediction" });
  add("b", add("div", root), { textContent: question });
  const follow = INPUTS[kind](spec, question, root, (guess) => {
    pending = guess;
    button.disabled = guess === null;
    if (kind === "curve") follow(guess, null, false);
  });
  const button = add("button", root, { type: "button", textContent: "Commit", disabled: true });
  const status = add("div", root, { tabIndex: -1 }, { role: "status", "aria-live": "polite" });

  function commit() {
    model.set("guess", pending);
    try { model.save_changes(); } catch { /* the kernel is gone: the page knows the guess */ }
    status.focus({ preventScroll: true }); // the button that had the focus goes
  }
  button.addEventListener("click", commit);
  keepKeys(root);
  root.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target !== button && !button.disabled && !button.hidden) commit();
  });

  function update() {
    const guess = model.get("guess") ?? null, truth = guess === null ? null : (model.get("truth") ?? null);
    button.hidden = guess !== null;
    if (guess !== null || kind === "curve") follow(guess, truth, guess !== null);
    if (guess === null) return;
    if (truth === null) {
      status.textContent = `You ${kind === "curve" ? "drew a curve" : `said ${kind === "number" ? show(guess) : guess}`}. Run the next cell.`;
      return;
    }
    const { close, words } = verdict(kind, spec, guess, truth);
    const all = (globalThis.llmPredictions ??= {}), score = (all[model.get("notebook")] ??= new Map());
    if (!score.has(question)) score.set(question, close); // the first answer counts
    status.textContent = words;
    const right = [...score.values()].filter(Boolean).length, many = score.size;
    add("small", status, { textContent: `${right} of ${many} prediction${many === 1 ? "" : "s"} close so far` });
  }
  for (const name of ["guess", "truth"]) model.on(`change:${name}`, update);
  update();
  return () => ["guess", "truth"].forEach((name) => model.off(`change:${name}`, update));
}
