// Which kinds of linear layers get A and B, at which rank, and how many numbers train then: a row for each kind of module.
import { check, choice, slider } from "./controls.js";
import { html, ink } from "./dom.js";
import { explorer } from "./explorer.js";
import { tip } from "./tip.js";
import { whole } from "./words.js";

const OURS = "apply_lora, with these targets", LEAST = 100, DECADES = 5; // bars from 100 to 10,000,000, logarithmic
const PART_OF = {
  "attn.c_attn": "query, key, and value", "attn.c_proj": "attention output", "mlp.c_fc": "MLP in", "mlp.c_proj": "MLP out",
  lm_head: "output head", wte: "token embedding", wpe: "position embedding",
};
const times = (value) => value.toLocaleString("en-US", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const along = (count) => `${Math.max(0, Math.min(1, Math.log10(count / LEAST) / DECADES)) * 100}%`;

const STYLE = `
.llm-explorer .modules { display: grid; grid-template-columns: max-content minmax(90px, 1fr) max-content; gap: 2px 10px; width: 100%; align-items: center; }
.llm-explorer .modules label { display: flex; gap: 6px; min-height: 22px; align-items: center; }
.llm-explorer .modules input { margin: 0; }
.llm-explorer .modules .plain { padding-left: 19px; }
.llm-explorer .modules .bar { position: relative; height: 20px; background: repeating-linear-gradient(90deg,
  color-mix(in oklab, currentColor 18%, transparent) 0 1px, transparent 1px ${100 / DECADES}%); }
.llm-explorer .modules .bar i { position: absolute; left: 0; top: 2px; height: 16px; background: color-mix(in oklab, currentColor 22%, transparent); }
.llm-explorer .modules .bar b { position: absolute; left: 0; top: 5px; height: 10px; }
.llm-explorer .modules .count { text-align: right; font-variant-numeric: tabular-nums; min-width: 12.5em; }
.llm-explorer .modules .axis { position: relative; height: 18px; font-size: 12px; }
.llm-explorer .modules .axis span { position: absolute; transform: translateX(-50%); white-space: nowrap; }
.llm-explorer .modules .key { grid-column: 1 / -1; font-size: 12px; }
.llm-explorer .modules .key span { display: inline-block; width: 10px; height: 10px; margin: 0 5px 0 14px; }
@container (max-width: 560px) { .llm-explorer .modules { gap: 2px 6px; } .llm-explorer .modules .count { min-width: 0; font-size: 12px; }
  .llm-explorer .modules .count .of, .llm-explorer .modules .axis span:nth-child(even) { display: none; } }
`;

export function targets(el, { colors, kinds, linears, chosen, ways, r = 8 }) {
  const controls = {
    way: choice({ label: "way", options: [OURS, ...Object.keys(ways)] }),
    r: slider({ label: "rank r", min: 1, max: 64, value: r }),
  };
  const rows = new Map(kinds.map(({ kind, parameters }) => {
    if (linears[kind]) controls[kind] = check({ label: kind, value: chosen.includes(kind) });
    const name = controls[kind]?.node ?? html("label", { class: "plain" }, kind);
    const all = html("i"), trained = html("b"), bar = html("div", { class: "bar", onclick: () => name.querySelector("input")?.click() }, all, trained), count = html("div", { class: "count" });
    return [kind, { name, bar, all, trained, count, parameters, said: "" }];
  }));
  const decades = ["100", "1,000", "10,000", "100,000", "1 million", "10 million"];
  const key = [["color-mix(in oklab, currentColor 22%, transparent)", "all"], [colors.lora, "trained, in A and B"], [colors.full, "trained, of the base"]];
  const table = html("div", { class: "modules" }, html("style", {}, STYLE),
    ...[...rows.values()].flatMap(({ name, bar, count }) => [name, bar, count]),
    html("span"), html("div", { class: "axis" }, ...decades.map((text, i) => html("span", { style: `left: ${(100 * i) / DECADES}%` }, text))), html("span"),
    html("div", { class: "key" }, "numbers:", ...key.flatMap(([color, text]) => [html("span", { style: `background: ${color}` }), text])));
  for (const row of rows.values()) tip(table, row.bar, () => row.said);

  explorer(el, {
    name: "what trains in the model, by its targets", controls, views: [table],
    update({ way, r, ...on }) {
      const ours = way === OURS;
      for (const [name, control] of Object.entries(controls)) control.disabled = name !== "way" && !ours;
      const found = ours
        ? kinds.map(({ kind, parameters }) => {
          const { in: m, out: n, layers } = linears[kind] ?? {}, more = on[kind] ? layers * r * (m + n) : 0;
          return { kind, parameters: parameters + more, trained: more, of_base: 0 };
        })
        : ways[way];
      for (const { kind, parameters, trained, of_base } of found) draw(kind, rows.get(kind), parameters, trained, of_base, ours && r);
      return says(found);
    },
  });

  function draw(kind, row, parameters, trained, of_base, r) {
    row.all.style.width = along(parameters);
    row.trained.style.width = trained ? along(trained) : 0;
    row.trained.style.background = of_base ? colors.full : colors.lora;
    row.count.style.color = trained ? ink(of_base ? colors.full : colors.lora) : "inherit";
    row.count.replaceChildren(...(trained ? [whole(trained), html("span", { class: "of" }, ` of ${whole(parameters)} train`)] : [`${whole(parameters)} frozen`]));
    const { in: m, out: n, layers } = linears[kind] ?? {};
    row.said = `${PART_OF[kind] ?? "norm"}: ${m ? `${layers > 1 ? `${layers} times ` : ""}${whole(m)} to ${whole(n)}` : whole(row.parameters)}`;
    if (r && trained) row.said += `, A ${whole(m)} x ${r}, B ${r} x ${whole(n)}`;
  }

  function says(found) {
    const sum = (name) => found.reduce((all, row) => all + row[name], 0);
    const trained = sum("trained"), base = kinds.reduce((all, row) => all + row.parameters, 0);
    if (!trained) return "nothing trains: choose a target";
    const most = found.reduce((a, b) => (b.trained > a.trained ? b : a));
    const kept = sum("of_base") ? "trained tensors" : "adapter";
    return `${whole(trained)} parameters train, ${trained === base ? "all that the base has" : `${times(base / trained)} times fewer than the base has`}. `
      + `${most.kind} has ${Math.round((100 * most.trained) / trained)}% of them. The ${kept}: ${whole(4 * trained)} bytes in float32.`;
  }
}
