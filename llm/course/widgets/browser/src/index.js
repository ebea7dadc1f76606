// One bundle for all that the notebooks show in the page: instruments, which need no kernel, and views of a widget
// (anywidget), which ask one. `mount` brings those instruments to life whose output is in the page and still asleep.
import { delta } from "./delta.js";
import { footprint } from "./footprint.js";
import { lab } from "./lab.js";
import { layer } from "./layer.js";
import { predict } from "./predict.js";
import { prefer } from "./prefer.js";
import { rank } from "./rank.js";
import { rates } from "./rates.js";
import { rounding } from "./rounding.js";
import { savings } from "./savings.js";
import { settings } from "./settings.js";
import { targets } from "./targets.js";
import { voices } from "./voices.js";

const INSTRUMENTS = { delta, footprint, layer, prefer, rank, rates, rounding, savings, settings, targets }, VIEWS = { lab, predict, voices };

function mount() {
  for (const data of document.querySelectorAll("script.llm-data:not([data-alive])")) {
    data.dataset.alive = "yes";
    const { kind, ...given } = JSON.parse(data.textContent);
    INSTRUMENTS[kind](data.previousElementSibling, given);
  }
}

mount();

export { verdict } from "./predict.js";
export { wilson } from "./prefer.js";
export default { render: (given) => VIEWS[given.model.get("view")](given) };
// the page that trains (llm/course/page) is made of the same parts
export { check, choice, slider } from "./controls.js";
export { html, style } from "./dom.js";
export { heat } from "./heat.js";
export { plot } from "./plot.js";
