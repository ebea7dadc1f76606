// One base, several adapters: the kernel swaps them and answers, and what was heard of a prompt stands side by side.
import { choice, text } from "./controls.js";
import { html } from "./dom.js";
import { explorer } from "./explorer.js";

const STYLE = `
.llm-explorer .voices { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 8px; width: 100%; }
.llm-explorer .voices figure { border: 1px solid color-mix(in oklab, currentColor 25%, transparent); border-radius: 4px; padding: 4px 8px; cursor: pointer; }
.llm-explorer .voices .chosen { border-color: #0072b2; box-shadow: 0 0 0 1px #0072b2; }
.llm-explorer .voices figcaption { font-weight: 600; }
.llm-explorer .voices pre { height: 12em; margin: 0; overflow: auto; white-space: pre-wrap; color: inherit; background: none;
  font: 12px/1.4 var(--jp-code-font-family, monospace); }
.llm-explorer .voices .unheard pre { opacity: .7; font-style: italic; }
`;

export function voices({ model, el }) {
  const names = model.get("names"), asked = ["adapter", "prompt"];
  const controls = {
    adapter: choice({ label: "adapter", options: names, value: model.get("adapter") }),
    prompt: text({ label: "prompt", value: model.get("prompt"), wide: 360 }),
  };
  const cards = new Map(names.map((name) => {
    const said = html("pre"), node = html("figure", { onclick: () => made.move({ adapter: name }) }, html("figcaption", {}, name), said);
    return [name, { node, said }];
  }));
  const made = explorer(el, {
    name: "adapters swapped on one base", controls,
    views: [html("div", { class: "voices" }, html("style", {}, STYLE), ...[...cards.values()].map(({ node }) => node))],
    update(values) {
      if (asked.some((name) => values[name] !== model.get(name))) {
        for (const name of asked) model.set(name, values[name]);
        model.save_changes();
      }
      const { says, heard, ...of } = model.get("answer"), waits = asked.some((name) => values[name] !== of[name]);
      for (const [name, { node, said }] of cards) {
        const words = values.prompt === of.prompt ? heard[name] : undefined;
        node.className = `${name === values.adapter ? "chosen" : ""} ${words === undefined ? "unheard" : ""}`;
        said.textContent = words ?? (waits && name === values.adapter ? "answering" : "choose it to hear it");
      }
      return waits ? `${values.adapter}: answering` : says;
    },
  });

  const follow = () => made.move(Object.fromEntries(asked.map((name) => [name, model.get(name)])));
  const heard = ["answer", ...asked].map((name) => `change:${name}`);
  for (const name of heard) model.on(name, follow);
  return () => heard.forEach((name) => model.off(name, follow));
}
