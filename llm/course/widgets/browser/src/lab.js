// The live lab: settings on the left; on the right the losses, the runs, and two voices. The kernel trains, answers and
// saves (widgets/lab.py); what is chosen, sorted and compared is the page's own affair.
import { choice, number, text } from "./controls.js";
import { html, keepKeys, style } from "./dom.js";
import { plot } from "./plot.js";

const STYLE = `
.llm-explorer.llm-lab { max-width: 1280px; }
.llm-lab .sides { display: grid; grid-template-columns: 270px minmax(0, 1fr); gap: 0 22px; align-items: start; }
.llm-lab .settings { display: grid; gap: 1px; }
.llm-lab .settings > label { display: grid; grid-template-columns: 72px 1fr; align-items: center; }
.llm-lab .settings :is(select, input) { width: 100%; box-sizing: border-box; height: 22px; }
.llm-lab .row { display: flex; gap: 6px; align-items: center; margin: 5px 0; min-width: 0; }
.llm-lab .row > label { flex: 1; display: flex; gap: 6px; align-items: center; min-width: 0; }
.llm-lab .row > label > input { flex: 1; min-width: 0; height: 23px; box-sizing: border-box; }
.llm-lab button { cursor: pointer; height: 25px; padding: 0 12px; } .llm-lab button:disabled { opacity: .45; cursor: default; }
.llm-lab button.first { background: #0072b2; border-color: #0072b2; color: #fff; }
.llm-lab button.link { border: 0; background: none; padding: 0; height: auto; color: color-mix(in oklab, #1a86d8 75%, currentColor); text-align: left; }
.llm-lab button.link[aria-pressed=true] { font-weight: 600; text-decoration: underline; }
.llm-lab progress { width: 100%; height: 8px; accent-color: #0072b2; display: block; }
.llm-lab .small { font-size: 12px; line-height: 1.35; } .llm-lab .faint { opacity: .8; }
.llm-lab [role=status], .llm-lab .fixed { overflow: auto; scrollbar-width: thin; font-variant-numeric: tabular-nums; }
.llm-lab .ready { display: flex; flex-wrap: wrap; gap: 1px 12px; margin: 6px 0 2px; }
.llm-lab .runs { overflow: auto; height: 105px; border: 1px solid color-mix(in oklab, currentColor 20%, transparent); margin: 4px 0; }
.llm-explorer.llm-lab table { border-collapse: collapse; width: 100%; font-size: 12px; margin: 0; color: inherit; font-variant-numeric: tabular-nums; table-layout: auto; }
.llm-explorer.llm-lab :is(th, td) { padding: 1px 3px; text-align: left; white-space: nowrap; border: 0; background: none; line-height: 18px; font-weight: normal; }
.llm-explorer.llm-lab thead th { position: sticky; top: 0; background: var(--jp-layout-color1, Canvas); border-bottom: 1px solid color-mix(in oklab, currentColor 30%, transparent); }
.llm-explorer.llm-lab tbody tr { cursor: pointer; background: none; }
.llm-explorer.llm-lab tbody tr.chosen { background: color-mix(in oklab, #0072b2 22%, transparent); }
.llm-lab th button, .llm-lab td button { border: 0; background: none; padding: 0; height: 18px; line-height: 18px; }
.llm-explorer.llm-lab tr > :last-child { position: sticky; right: 0; background: var(--jp-layout-color1, Canvas); }
.llm-lab td input { margin: 0 2px 0 0; vertical-align: -2px; }
.llm-lab .voices { display: grid; grid-template-columns: 1fr 1fr; gap: 12px; }
.llm-lab .voices pre { height: 72px; overflow: auto; margin: 2px 0 0; padding: 3px 6px; white-space: pre-wrap; overflow-wrap: break-word; font-size: 12px; line-height: 1.3; color: inherit;
  background: none; border: 1px solid color-mix(in oklab, currentColor 20%, transparent); border-radius: 3px; }
.llm-lab .voices pre.stale { opacity: .45; }
.llm-lab .line { user-select: all; height: 1.5em; margin-top: 4px; overflow: auto hidden; scrollbar-width: none; white-space: nowrap; font: 11px/1.5 var(--jp-code-font-family, monospace); }
.llm-lab .row > .heard { flex: 0 1 270px; max-height: 2.7em; }
.llm-lab .head { height: 25px; } .llm-lab .head, .llm-lab .head label { display: flex; align-items: center; gap: 6px; }
@container (max-width: 700px) {
  .llm-lab .sides, .llm-lab .voices { grid-template-columns: minmax(0, 1fr); } .llm-lab .settings { grid-template-columns: 1fr 1fr; gap: 1px 14px; }
  .llm-lab .row { flex-wrap: wrap; } .llm-lab .row > .heard { flex-basis: 100%; }
}
`;
const WORDS = { task: "task", method: "method", r: "rank r", alpha: "alpha", scaling: "scale", start: "A's start", targets: "targets", lr: "rate", steps: "steps" };
const whole = (value) => value.toLocaleString("en-US");
const megabytes = (bytes) => `${(bytes / 1e6).toLocaleString("en-US", { maximumSignificantDigits: 3 })} MB`;
const nats = (value) => (value === null || value === undefined ? "" : value.toFixed(Math.abs(value) < 0.1 ? 4 : 2));
const duration = (seconds) => (seconds < 90 ? `${Math.max(1, Math.round(seconds))} s` : `${Math.round(seconds / 60)} min`);
const status = (classes = "", lines = 1) => html("div", { role: "status", "aria-live": "polite", class: classes, style: `height: ${lines * 1.35}em; line-height: 1.35` });

export function lab({ model, el }) {
  const { colors, tasks, prompts, controls: given, begin, ready, heeds, costs, whole: all, full, every, folder } = model.get("setup");
  const written = (key, value) => (key === "task" ? tasks[value] : value === "lm_head" ? "head" : String(value));
  const asked = new Set();
  const told = new Map(); // what was last said of each run
  let chosen = null, order = ["number", 1], shownOf = null, latest = null;

  // the settings, in the order in which they stand
  const pick = (key, values) => choice({ label: WORDS[key], options: values.map((value) => [value, written(key, value)]) });
  const controls = {
    task: pick("task", Object.keys(tasks)), method: pick("method", given.method), r: pick("r", given.r),
    alpha: number({ label: WORDS.alpha, min: 0, max: 256 }), scaling: pick("scaling", given.scaling), start: pick("start", given.start),
    targets: pick("targets", given.targets), lr: pick("lr", given.lr), steps: number({ label: WORDS.steps, min: 1, max: 2000, whole: true }),
  };
  const settings = () => Object.fromEntries(Object.entries(controls).map(([key, control]) => [key, control.value]));
  const send = (what, more = {}) => model.send({ do: what, ...more });
  const button = (words, act, more = {}) => html("button", { type: "button", onclick: act, ...more }, words);

  const train = button("Train", () => send("train", { ...settings(), prompt: typed.value }), { class: "first", title: "train a fresh adapter with these settings" });
  const stop = button("Stop", () => send("stop"), { title: "stop after the step that is running" });
  const reset = button("Reset", () => send("remove"), { title: "forget all runs" });
  const bar = html("progress", { value: 0, max: 1, "aria-label": "steps done" });
  const price = html("div", { class: "small fixed cost", style: "height: 5.4em" });
  const looks = html("div", { class: "small faint fixed look", style: "height: 2.7em" });
  const links = ready.map(({ name, change, look }) => button(name, () => {
    for (const [key, value] of Object.entries({ ...begin, ...change })) controls[key].value = value;
    looks.textContent = look;
    moved();
  }, { class: "link small", title: look, "aria-pressed": "false" }));
  const place = text({ label: "folder", value: folder });
  const save = button("Save", () => send("save", { run: chosen, folder: place.value }), { title: "write the chosen run's best step to the folder" });
  const saved = status("small", 4), line = html("div", { class: "line", title: "typed where the course lies, this line uses the saved adapter" });

  // the losses
  const view = choice({ label: "loss", options: ["held-out", "training"] });
  const picture = plot({
    label: "loss over training steps", width: 980, height: 208, left: 58, right: 96,
    x: { label: "training steps", domain: [0, 40] }, y: { label: "held-out loss, nats per token", domain: [4, 6] },
    hover: nearest,
  });
  const legend = html("span", { class: "small faint", style: "overflow: hidden; white-space: nowrap; text-overflow: ellipsis" });
  const frame = html("div", { class: "views" }, picture.node);
  const says = status("small said", 3);

  // the runs
  const COLUMNS = [["number", "run"], ["kept", "held-out"], ["best", "at step"], ["end", "end"], 
    ...["lr", "r", ...Object.keys(WORDS).filter((key) => key !== "lr" && key !== "r")].map((key) => [key, WORDS[key]]), ["seconds", "s/step"]]; // what one changes most comes first
  const heads = COLUMNS.map(([key, words]) => html("th", { scope: "col" }, button(words, () => {
    order = [key, order[0] === key ? -order[1] : 1];
    table();
  }, { title: `sort by ${words}` })));
  const body = html("tbody"), rows = new Map(), group = `llm-${Math.random().toString(36).slice(2)}`;
  const list = html("div", { class: "runs", tabindex: 0, role: "region", "aria-label": "runs" }, html("table", {}, html("thead", {}, html("tr", {}, ...heads, html("th", {}))), body));

  // the voices
  const prompt = text({ label: "prompt", value: model.get("voices").prompt });
  const typed = prompt.node.querySelector("input"); // what stands in it, also before it is left
  let awaited = null; // the prompt of which an answer has been asked for
  const ask = (run = chosen, task = controls.task.value) => {
    awaited = typed.value.trim();
    send("ask", { run, prompt: typed.value, task });
    speak();
  };
  const askButton = button("Ask", () => ask(), { title: "let both go on from the prompt" });
  typed.addEventListener("keydown", (event) => { if (event.key === "Enter") ask(); });
  typed.addEventListener("input", () => speak());
  const heard = status("small heard", 2), beside = html("select", { "aria-label": "compare with" }, html("option", { value: "base" }, "the base"));
  const names = { right: html("b", {}, "no run yet") }, answers = [html("pre", { tabindex: 0, "aria-label": "first voice" }), html("pre", { tabindex: 0, "aria-label": "second voice" })];

  const root = html("div", { class: "llm-explorer llm-lab", role: "group", "aria-label": "the live lab" },
    html("div", { class: "sides" },
      html("div", {},
        html("div", { class: "settings" }, ...Object.values(controls).map((control) => control.node)),
        html("div", { class: "row" }, train, stop, reset), bar, price,
        html("div", { class: "ready" }, ...links), looks,
        html("div", { class: "row" }, place.node, save), saved),
      html("div", { style: "min-width: 0" },
        html("div", { class: "head" }, view.node, legend), frame, says, list,
        html("div", { class: "row" }, prompt.node, askButton, heard),
        html("div", { class: "voices" },
          html("div", {}, html("div", { class: "head" }, html("label", {}, beside)), answers[0]),
          html("div", {}, html("div", { class: "head" }, names.right), answers[1])), line)));
  keepKeys(root);
  style(root);
  root.prepend(html("style", {}, STYLE));
  el.replaceChildren(root);
  picture.watch(frame);

  const runs = () => model.get("runs") ?? [];
  const of = (number) => runs().find((run) => run.number === number);
  const here = () => runs().filter((run) => run.task === controls.task.value);
  const running = () => runs().find((run) => run.ended === "training");
  const ended = (run) => (run.ended === "training" ? "training" : run.meant && run.ended === "done" ? run.meant : run.ended);
  const steps = (run) => (run.done < run.steps ? `${run.done} of ${run.steps}` : String(run.steps));

  function choose(number) {
    chosen = number;
    const run = of(number);
    if (run && run.task !== controls.task.value) {
      controls.task.value = run.task;
      moved();
    }
    listen(run);
    retell();
    draw();
  }
  /** The sentence goes with the run that is shown. */
  function retell() {
    if (running() || !runs().length) return;
    says.textContent = of(chosen) ? told.get(chosen) ?? "" : "no run of this task yet: press Train";
  }
  function listen(run) { // a run that is chosen answers, unless it has
    const { of: spoken, prompt: to, task } = model.get("voices"), has = task === run?.task && to === typed.value.trim() && spoken[run.number];
    if (run && run.best !== null && !running() && !has) ask(run.number, run.task);
  }

  // what the settings cost, before anything trains
  function moved() {
    const now = settings(), [fixed, each] = costs[now.method][now.targets], trained = fixed + each * now.r;
    for (const [key, control] of Object.entries(controls)) control.disabled = !["task", "method", "lr", "steps", ...heeds[now.method]].includes(key);
    const pace = model.get("pace")[now.task];
    const about = pace ? `About ${duration(now.steps * pace.step + (Math.ceil(now.steps / every) + Math.min(2, now.steps - 1)) * pace.measure)} for ${now.steps} steps here.` : "A step is being timed.";
    price.replaceChildren(`${whole(trained)} numbers train, ${times(all / trained)} times fewer than all: ${megabytes(4 * trained)}, and ` +
      `${megabytes(12 * trained)} for gradients and Adam (full: ${megabytes(16 * all)} in all).`, html("br"), html("b", {}, about));
    links.forEach((link, i) => link.setAttribute("aria-pressed", String(Object.entries({ ...begin, ...ready[i].change }).every(([key, value]) => now[key] === value))));
    if (!pace && visible && !asked.has(now.task)) {
      asked.add(now.task);
      send("estimate", now);
    }
    if (shownOf !== now.task) {
      const own = Object.values(prompts).includes(typed.value.trim()) || !typed.value.trim();
      if (shownOf !== null && own) typed.value = prompts[now.task];
      shownOf = now.task;
      if (of(chosen)?.task !== now.task) {
        chosen = here().at(-1)?.number ?? null;
        retell();
      }
    }
    draw();
  }
  const times = (value) => value.toLocaleString("en-US", { maximumSignificantDigits: value < 10 ? 2 : 3 });

  const points = (run) => (view.value === "training" ? run.training : run.heldout);
  function nearest(x, y) {
    let best = null;
    for (const run of here()) for (const [at, loss] of points(run)) {
      const away = Math.hypot((at - x) / limits.x, (loss - y) / limits.y);
      if (loss !== null && away < 0.05 && (!best || away < best[0])) best = [away, `run ${run.number}, step ${at}: ${nats(loss)}`];
    }
    return best && best[1];
  }

  const limits = { x: 40, y: 1 };
  function draw() {
    const task = controls.task.value, shown = here(), training = view.value === "training", base = model.get("pace")[task]?.base ?? shown[0]?.heldout[0]?.[1] ?? null;
    const target = full[task], all = shown.flatMap((run) => points(run).map(([, loss]) => loss)).filter((loss) => loss !== null);
    const first = training ? all[0] ?? base : base; // the axis stays near what training begins at
    const bottom = Math.min(...all, ...(training || !target ? [] : [target.loss]), first ?? 5), span = Math.max((first ?? 5) - bottom, 0.1);
    const domain = first === null ? [0, 1] : [Math.max(0, bottom - 0.1 * span) - 0.02 * span, first + 0.3 * span], far = Math.max(10, controls.steps.value, ...shown.map((run) => run.steps));
    [limits.x, limits.y] = [far, domain[1] - domain[0]];
    const other = Number(beside.value), few = shown.length <= 7;
    const color = (run) => (run.number === other ? colors.other : colors.lora), main = (run) => run.number === chosen || run.number === other;
    const lines = [], dots = [];
    for (const run of [...shown.filter((run) => !main(run)), ...shown.filter(main)]) {
      const there = points(run).filter(([, loss]) => loss !== null), out = there.find(([, loss]) => loss > domain[1]);
      const label = there.length > 1 && (few || main(run)) ? `run ${run.number}` : null, top = Math.max(...there.map(([, loss]) => loss));
      if (!there.length) continue;
      lines.push({ points: there, color: color(run), thin: !main(run), faint: !main(run), dashed: training, label: out && there.at(-1)[1] > domain[1] ? null : label });
      if (out) dots.push({ x: out[0], y: domain[1], r: 0, color: color(run), label: `↑ run ${run.number} to ${nats(top)}` });
      if (!training) for (const [at, loss] of there) dots.push({ x: at, y: loss, r: at === run.best ? 5 : 3, color: color(run), faint: !main(run) });
    }
    const rules = training || base === null ? [] : [{ y: base, label: `base ${nats(base)}`, color: colors.base }];
    if (!training && target && base !== null) rules.push({ y: target.loss, label: `full ${nats(target.loss)}`, color: colors.full });
    legend.textContent = training ? "means of neighboring steps, on what is trained on: another scale" : `the larger dot is kept${target && base !== null ? `; full: a full fine-tune after ${target.steps} steps` : ""}`;
    picture.draw({ lines, dots, rules, x: { domain: [0, far] }, y: { domain, format: (v) => (first === null ? "" : v.toFixed(2)), label: `${view.value} loss, nats per token` } });
    table();
    speak();
  }

  // rows stay the same nodes while they train, so that the focus stays
  function table() {
    const value = (run, key) => (key === "end" ? ended(run) : key === "steps" ? run.done : run[key]);
    const [key, way] = order, now = runs();
    const sorted = [...now].sort((a, b) => {
      const [x, y] = [value(a, key), value(b, key)];
      return x === null ? 1 : y === null ? -1 : way * (typeof x === "string" ? x.localeCompare(y) : x - y) || a.number - b.number;
    });
    COLUMNS.forEach(([name], i) => heads[i].setAttribute("aria-sort", name === key ? (way > 0 ? "ascending" : "descending") : "none"));
    for (const [id, row] of rows) if (!of(id)) { row.node.remove(); rows.delete(id); }
    for (const run of sorted) {
      const id = run.number, texts = COLUMNS.slice(1).map(([name]) => (name === "end" ? ended(run) : name === "steps" ? steps(run) : name === "kept" ? nats(run.kept)
        : name in WORDS ? (heeds[run.method].includes(name) || ["task", "method", "lr"].includes(name) ? written(name, run[name]) : "–") : run[name] === null ? "" : String(run[name])));
      if (!rows.has(id)) {
        const radio = html("input", { type: "radio", name: group, "aria-label": `run ${id}`, onchange: () => choose(id) }), cells = texts.map(() => html("td"));
        const remove = button("×", (event) => { event.stopPropagation(); send("remove", { run: id }); }, { title: `remove run ${id}`, "aria-label": `remove run ${id}` });
        rows.set(id, { radio, cells, node: html("tr", { onclick: () => choose(id) }, html("td", {}, html("label", { onclick: (event) => event.stopPropagation() }, radio, String(id))), ...cells, html("td", {}, remove)) });
      }
      const { radio, cells, node } = rows.get(id);
      cells.forEach((cell, i) => { if (cell.textContent !== texts[i]) cell.textContent = texts[i]; });
      radio.checked = id === chosen;
      node.classList.toggle("chosen", id === chosen);
    }
    const nodes = sorted.map((run) => rows.get(run.number).node);
    if (nodes.some((node, i) => body.children[i] !== node)) body.replaceChildren(...nodes);
  }

  function speak() {
    const { of: spoken, task, prompt: to } = model.get("voices"), same = task === controls.task.value, run = of(chosen), left = beside.value;
    const others = ["base", ...here().filter(({ best, number }) => best !== null && number !== chosen).map(({ number }) => String(number))];
    if (others.join() !== [...beside.options].map((option) => option.value).join()) {
      beside.replaceChildren(...others.map((id) => html("option", { value: id }, id === "base" ? "the base" : `run ${id}`)));
      beside.value = others.includes(left) ? left : "base";
    }
    const said = (id) => (same && spoken[id] ? spoken[id].text.trim() || "(it ends at once)" : of(Number(id))?.best === null ? "" : awaited === to ? "answering" : "(press Ask to hear it)");
    const stale = (id) => Boolean(same && spoken[id]) && (typed.value.trim() !== to.trim() || spoken[id].step < of(Number(id))?.best);
    answers[0].textContent = said(beside.value);
    answers[1].textContent = run ? said(run.number) : "";
    [beside.value, run?.number].forEach((id, i) => answers[i].classList.toggle("stale", stale(id)));
    names.right.textContent = run ? `run ${run.number}${run.best ? `, step ${run.best} (kept, loss ${nats(run.kept)})` : ""}` : "no run yet";
    save.disabled = !run || run.best === null;
    save.textContent = run ? `Save run ${run.number}` : "Save";
  }
  beside.addEventListener("change", () => { listen(of(Number(beside.value))); draw(); });

  let newest = Math.max(0, ...runs().map((run) => run.number));
  function update() {
    const last = Math.max(0, ...runs().map((run) => run.number)), now = running();
    if (last > newest) chosen = last; // a run that begins is the one that is shown
    newest = last;
    if (!of(chosen)) {
      chosen = here().at(-1)?.number ?? null;
      retell();
    }
    [stop.disabled, reset.disabled] = [!now, !runs().length];
    [bar.max, bar.value] = now ? [now.steps, now.done] : [1, runs().length && of(last)?.ended === "done" ? 1 : 0];
    draw();
  }
  function tell() {
    const { train: words = "", ask: about = "", save: kept = "", line: command = "" } = model.get("says");
    if (words !== latest) [latest, says.textContent] = [words, words];
    if (/^(done|stopped|interrupted)/.test(words)) told.set(newest, words);
    for (const [node, now] of [[heard, about], [saved, kept], [line, command]]) if (node.textContent !== now) node.textContent = now;
  }

  for (const control of Object.values(controls)) control.onmove = () => { looks.textContent = ""; moved(); };
  view.onmove = draw;
  for (const [key, value] of Object.entries(model.get("settings"))) controls[key].value = value;
  const heeded = { runs: update, voices: speak, says: tell, pace: moved };
  for (const [name, act] of Object.entries(heeded)) model.on(`change:${name}`, act);
  let visible = false; // a lab that nobody looks at measures nothing
  const sight = new IntersectionObserver(([{ isIntersecting }]) => {
    if (!isIntersecting) return;
    sight.disconnect();
    visible = true;
    moved();
  });
  sight.observe(root);
  chosen = runs().at(-1)?.number ?? null;
  update();
  tell();
  moved();
  return () => {
    sight.disconnect();
    for (const [name, act] of Object.entries(heeded)) model.off(`change:${name}`, act);
  };
}
