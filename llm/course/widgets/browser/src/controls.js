// Native inputs: they bring their keys, their touch and their names for a screen reader along.
import { html } from "./dom.js";

// Each control has a node, a value, disabled, and onmove: what the instrument does when a hand has moved it.

/** A slider over a list of values, or over the whole numbers from `min` to `max`; `show` writes a value. */
export function slider({ label, values, min = 0, max, step = 1, value, show = String, wide = 180 }) {
  const places = values ?? Array.from({ length: Math.floor((max - min) / step) + 1 }, (_, i) => min + i * step);
  const input = html("input", { type: "range", min: 0, max: places.length - 1, step: 1, style: `width: ${wide}px` });
  const said = html("span", { class: "value", "aria-hidden": "true" }); // spoken as the slider's value text
  const node = html("label", {}, label, input, said);
  const control = {
    node,
    onmove() {},
    places,
    get value() { return places[Number(input.value)]; },
    set value(to) { // the nearest place
      input.value = places.reduce((best, place, i) => (Math.abs(place - to) < Math.abs(places[best] - to) ? i : best), 0);
      follow();
    },
    set disabled(is) { input.disabled = is; },
    /** Fewer places: those for which `fits` holds form one run, and the value stays inside it. */
    limit(fits) {
      const inside = places.flatMap((place, i) => (fits(place) ? [i] : []));
      [input.min, input.max] = [inside[0], inside.at(-1)];
      follow();
    },
  };
  function follow() {
    said.textContent = show(control.value);
    input.setAttribute("aria-valuetext", said.textContent);
  }
  input.setAttribute("aria-label", label);
  input.addEventListener("input", () => { follow(); control.onmove(); });
  control.value = value ?? places[0];
  return control;
}

/** One of several; options are texts, or [value, text] pairs. */
export function choice({ label, options, value }) {
  const pairs = options.map((option) => (Array.isArray(option) ? option : [option, option]));
  const input = html("select", { "aria-label": label }, ...pairs.map(([, text], i) => html("option", { value: i }, text)));
  const control = {
    node: html("label", {}, label, input),
    onmove() {},
    get value() { return pairs[input.selectedIndex][0]; },
    set value(to) { input.selectedIndex = pairs.findIndex(([is]) => is === to); },
    set disabled(is) { input.disabled = is; },
  };
  input.addEventListener("change", () => control.onmove());
  control.value = value ?? pairs[0][0];
  return control;
}

/** On or off. */
export function check({ label, value = false }) {
  const input = html("input", { type: "checkbox" });
  input.checked = value;
  const control = {
    node: html("label", {}, input, label),
    onmove() {},
    get value() { return input.checked; },
    set value(to) { input.checked = to; },
    set disabled(is) { input.disabled = is; },
  };
  input.addEventListener("change", () => control.onmove());
  return control;
}

/** A number in a field, kept between `min` and `max`; what is no number counts as the last one that was. */
export function number({ label, min, max, whole = false, value = min }) {
  const input = html("input", { type: "number", min, max, step: whole ? 1 : "any", "aria-label": label });
  let last = value;
  const control = {
    node: html("label", {}, label, input),
    onmove() {},
    get value() { return last; },
    set value(to) { input.value = last = to; },
    set disabled(is) { input.disabled = is; },
  };
  const read = () => {
    const typed = input.valueAsNumber;
    if (Number.isFinite(typed)) last = Math.max(min, Math.min(max, whole ? Math.round(typed) : typed));
  };
  input.addEventListener("input", () => { read(); control.onmove(); });
  input.addEventListener("change", () => { input.value = last; }); // what counts is what is seen
  control.value = value;
  return control;
}

/** A button; it has no value. */
export function button({ label, act }) {
  const node = html("button", { type: "button", onclick: act }, label);
  return { node, onmove() {}, value: null, set disabled(is) { node.disabled = is; } };
}

/** A line of text; its value is what stood in it when it was last left, or Enter pressed. */
export function text({ label, value = "", wide = 240 }) {
  const input = html("input", { type: "text", "aria-label": label, spellcheck: "false", style: `width: min(${wide}px, 75cqw)` });
  let kept;
  const control = {
    node: html("label", {}, label, input),
    onmove() {},
    get value() { return kept; },
    set value(to) { if (to !== kept) input.value = kept = to; },
    set disabled(is) { input.disabled = is; },
  };
  input.addEventListener("change", () => { kept = input.value; control.onmove(); });
  control.value = value;
  return control;
}
