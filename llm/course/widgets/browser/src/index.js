// One bundle for all instruments. `mount` brings those to life whose output is in the page and still asleep.
import { savings } from "./savings.js";

const INSTRUMENTS = { savings };

function mount() {
  for (const data of document.querySelectorAll("script.llm-data:not([data-alive])")) {
    data.dataset.alive = "yes";
    const { kind, ...given } = JSON.parse(data.textContent);
    INSTRUMENTS[kind](data.previousElementSibling, given);
  }
}

mount();
