// What the visitor sees and moves. The model is in engine.js, the formula in gpt.js.
import { check, choice, heat, html, plot, slider, style } from "../instruments.js";
import { fromPeft, mixed, numbers, toPeft } from "./adapter.js";
import { Engine, STEPS } from "./engine.js";
import { cut, decompose } from "./spectrum.js";
import { LAYERS } from "./weights.js";
import { zip } from "./zip.js";

const $ = (id) => document.getElementById(id), COLORS = { lora: "#0072B2", norm: "#009E73", base: "#555555" };
const WHERE = { all: () => true, "attention only": (path) => path.includes(".attn."), "MLP only": (path) => path.includes(".mlp.") };
const BASE_BYTES = 7472628, MODEL = 13665280, LOOKS = [3, 6, 10, 20]; // LOOKS: the steps after which the adapter answers
let engine, mine = null, plays = null, stopped = false;

// 1. teach

const settings = {
  rank: choice({ label: "rank", options: [1, 2, 4, 8, 16].map((rank) => [rank, String(rank)]), value: 8 }),
  where: choice({ label: "layers", options: Object.keys(WHERE) }),
  control: check({ label: "train a control beside it" }),
};
const curve = plot({
  label: "loss on fresh records over the steps of training", height: 230, width: 800, right: 130,
  x: { label: "steps", domain: [0, STEPS], ticks: [0, 10, 20, 30, 40] },
  y: { label: "loss, nats per token", domain: [0.001, 10], log: true, ticks: [0.001, 0.01, 0.1, 1, 10] },
});

function drawCurve(seen) {
  const last = seen.at(-1)?.losses, narrow = $("losses").clientWidth < 500;
  const line = (name) => seen.filter(({ losses }) => losses[name] !== undefined).map(({ step, losses }) => [step, Math.max(0.001, losses[name])]);
  curve.draw({ lines: [
    { points: line("lora"), color: COLORS.lora, label: last && (last.norm !== undefined || !narrow) ? "your adapter" : "" },
    { points: line("norm"), color: COLORS.norm, label: line("norm").length ? "final norm only" : "" },
  ] });
}

const asked = () => $("sentence").value.trim().replace(/[“”„]/g, '"'); // a phone's keyboard curls its quotes

/** The record that a sentence of the task's form asks for; undefined for any other sentence. */
function wanted(sentence) {
  const found = ["to", "Send", "from"].map((word) => sentence.match(new RegExp(`\\b${word} "([^"]+)"`))?.[1]), day = sentence.match(/\bat (\d+)/)?.[1];
  if (day === undefined || found.includes(undefined)) return undefined;
  const [destination, item, origin] = found.map((word) => JSON.stringify(word));
  return `{"destination": ${destination}, "item": ${item}, "day": ${Number(day)}, "origin": ${origin}}`;
}

function show(id, answer, right) {
  $(id).textContent = answer;
  $(`${id}-is`).textContent = !answer || right === undefined ? "" : answer.trim() === right ? "✓ right" : "✗ wrong";
}

let questions = 0;
async function answers() {
  const sentence = asked(), right = wanted(sentence), now = ++questions;
  $("wanted").textContent = right ?? 'Only sentences like Send "book" from "Paris" to "home" at 7. belong to the task.';
  if (!sentence) return show("before", "Type a sentence first.");
  const plain = await engine.answer(sentence);
  if (now !== questions) return;
  show("before", plain, right);
  const answer = mine && (await engine.answer(sentence, { adapter: mine }));
  if (now !== questions) return;
  $("when").textContent = "with your adapter";
  show("after", answer ?? "not trained yet", answer ? right : undefined);
}

/** What the adapter answers in the middle of its training; returns the seconds that this took. */
async function look(step) {
  const began = performance.now(), sentence = asked();
  if (sentence) {
    show("after", await engine.answer(sentence, { adapter: engine.adapter }), wanted(sentence));
    $("when").textContent = `with your adapter, after step ${step}`;
  }
  return (performance.now() - began) / 1000;
}

function cost() {
  const rank = settings.rank.value, chosen = LAYERS.filter(([path]) => WHERE[settings.where.value](path));
  const n = chosen.reduce((sum, [, inputs, outputs]) => sum + rank * (inputs + outputs), 0);
  $("cost").textContent = `${n.toLocaleString("en-US")} new numbers train. All ${MODEL.toLocaleString("en-US")} of the model stay frozen.`;
}

async function train() {
  const rank = settings.rank.value, control = settings.control.value, seen = [];
  let looked = 0;
  busy(true);
  stopped = false;
  $("score").textContent = "";
  try {
    for await (const step of engine.train({ rank, chosen: WHERE[settings.where.value], control, seed: Math.floor(Math.random() * 2 ** 31) })) {
      seen.push(step);
      drawCurve(seen);
      step.seconds -= looked;
      const left = (step.seconds / step.step) * (STEPS - step.step);
      $("progress").textContent = `step ${step.step} of ${STEPS}, loss ${step.losses.lora.toFixed(3)}, ${left >= 0.5 ? `about ${left.toFixed(0)} s left` : "done"}`;
      if (LOOKS.includes(step.step)) looked += await look(step.step);
      if (stopped) break;
    }
    mine = engine.adapter;
    $("progress").textContent = `${seen.length} steps in ${seen.at(-1).seconds.toFixed(1)} s; ${numbers(mine).toLocaleString("en-US")} numbers trained, ${(MODEL / numbers(mine)).toFixed(1)} times fewer than the model has`;
    await answers();
    $("score").textContent = "scoring a hundred unseen records";
    const right = await engine.score({ adapter: mine }), without = await engine.score();
    let words = `${right} of 100 unseen records right with your adapter, ${without} without it`;
    if (control) words += `, ${await engine.score({ norm: engine.norm })} with the final norm alone`;
    $("score").textContent = `${words}.`;
    $("next").hidden = false;
    await takeApart(right);
    mix();
  } catch (error) {
    $("score").textContent = error.message;
  }
  busy(false);
}

function busy(is) {
  for (const id of ["train", "ask", "shuffle"]) $(id).disabled = is;
  $("stop").disabled = !is;
  $("save").disabled = is || !mine;
}

// 2. take apart

async function takeApart(whole) {
  const paths = LAYERS.map(([path]) => path).filter((path) => mine.layers[path]), { rank, scale } = mine;
  const layer = choice({ label: "layer", options: paths.map((path) => [path, path.replace("transformer.", "")]), value: paths[Math.min(8, paths.length - 1)] });
  const keep = slider({ label: "keep rank", min: 0, max: rank, value: rank });
  const on = check({ label: "adapter on", value: true });
  const picture = heat({ title: "the update", size: Math.min(380, $("take").clientWidth - 4) });
  const bars = plot({ label: "singular values of the update", width: 360, height: 210, right: 20, left: 56,
    x: { label: "direction", domain: [0.4, rank + 0.6], ticks: Array.from({ length: rank }, (_, i) => i + 1) },
    y: { label: "singular value", domain: [0, 1], ticks: 4 } });
  const said = html("p", { class: "says", role: "status", "aria-live": "polite" }), row = html("div", { class: "row" }, layer.node, keep.node, on.node);
  const root = html("div", { class: "llm-explorer" }, row, said, html("div", { class: "views" }, picture.node, bars.node));
  style(root);
  $("take").replaceChildren(root);
  bars.watch(root);
  const known = new Map([[rank, whole]]);
  let asked = 0;

  function draw() {
    const { s, left, right } = decompose(mine.layers[layer.value], rank, scale), rows = left.length / rank, columns = right.length / rank, k = on.value ? keep.value : 0;
    const values = new Float32Array(rows * columns);
    let all = 0;
    for (const v of s) all += v * v;
    for (let d = 0; d < k; d++)
      for (let i = 0; i < rows; i++) {
        const a = left[i * rank + d] * s[d];
        for (let j = 0; j < columns; j++) values[i * columns + j] += a * right[d * columns + j];
      }
    picture.draw({ rows, columns, values }, 2.5 * Math.sqrt(all / values.length), { title: k ? `A·B of this layer, its best rank-${k} part` : "no update" });
    bars.draw({ y: { domain: [0, 1.1 * s[0]] }, bars: s.map((v, i) => ({ x0: i + 0.6, x1: i + 1.4, y0: 0, y1: v, color: COLORS.lora, faint: i >= k, hint: v.toFixed(3) })) });
  }
  async function score() {
    const k = on.value ? keep.value : 0, now = ++asked;
    const words = (right) => (k === rank ? `The whole update, rank ${rank}: ${right} of 100 right.` : `${k ? `Cut to rank ${k}` : "Without the update"}: ${right} of 100 right.`);
    if (!known.has(k)) {
      said.textContent = k ? `Cut to rank ${k}: scoring again.` : "Without the update: scoring again.";
      const right = await engine.score({ adapter: cut(mine, k) });
      known.set(k, right);
    }
    if (now === asked) said.textContent = words(known.get(k));
  }
  const both = () => { draw(); score(); };
  layer.onmove = draw;
  keep.onmove = on.onmove = both;
  both();
}

// 3. two adapters

const share = (label, value) => slider({ label, values: Array.from({ length: 16 }, (_, i) => i / 10), value, show: (v) => v.toFixed(1) });
const shares = { plays: share("the plays", 1), mine: share("yours", 0) };

function mix() {
  shares.mine.disabled = !mine;
  const [a, b] = [shares.plays.value, mine ? shares.mine.value : 0];
  $("whose").textContent = `with the plays at ${a}${b ? ` and yours at ${b}` : ""}`;
  return mixed([[plays, a], ...(mine && b ? [[mine, b]] : [])]);
}

async function write() {
  const opening = $("opening").value.trim();
  if (!opening) return void ($("plain").textContent = "Type an opening first.");
  $("write").disabled = true;
  const given = { temperature: 0.8, seed: Math.floor(Math.random() * 2 ** 31) }, adapter = mix();
  const into = (id) => (text) => { $(id).textContent = opening + text; };
  for (const id of ["plain", "voiced"]) into(id)("");
  await Promise.all([
    engine.write(opening, { ...given, said: into("plain"), worker: 0 }),
    engine.write(opening, { ...given, adapter, said: into("voiced"), worker: 1 }),
  ]);
  $("write").disabled = false;
}

// 4. take away

function save() {
  const link = html("a", { href: URL.createObjectURL(new Blob([zip("lora-from-a-tab", toPeft(mine, engine.base))], { type: "application/zip" })), download: "lora-from-a-tab.zip" });
  link.click();
  $("kept").textContent = "Unpack the file, and its folder is an adapter: in a notebook, load_adapter(model, \"lora-from-a-tab\").";
}

async function open(files) {
  try {
    const named = await Promise.all([...files].map(async (file) => [file.name, await file.arrayBuffer()]));
    mine = fromPeft(Object.fromEntries(named), engine.base);
    if (mine.rank > 16) throw new Error(`This adapter has rank ${mine.rank}, and this page goes up to 16.`);
    const right = await engine.score({ adapter: mine });
    $("kept").textContent = `Opened: rank ${mine.rank}, ${numbers(mine).toLocaleString("en-US")} numbers, ${right} of 100 unseen records right.`;
    await answers();
    await takeApart(right);
    mix();
    busy(false);
  } catch (error) {
    $("kept").textContent = error.message;
  }
}

// begin

$("settings").append(...Object.values(settings).map(({ node }) => node));
settings.rank.onmove = settings.where.onmove = cost;
cost();
$("shares").append(...Object.values(shares).map(({ node }) => node));
style($("losses"));
$("losses").append(curve.node);
curve.watch($("losses"));
drawCurve([]);

const base = new URL("../", import.meta.url);
try {
  engine = await Engine.start(base, (bytes) => { $("ready").textContent = `The model is on its way: ${Math.min(100, Math.round((100 * bytes) / BASE_BYTES))}%.`; });
  const file = async (name) => (await fetch(new URL(`plays/${name}`, base))).arrayBuffer(), names = ["adapter_config.json", "adapter_model.safetensors"];
  plays = fromPeft(Object.fromEntries(await Promise.all(names.map(async (name) => [name, await file(name)]))), engine.base);
  $("ready").textContent = "The model is here.";
  $("sentence").value = engine.unseen[0].sentence;
  busy(false);
  $("write").disabled = false;
  mix();
  await answers();
} catch (error) {
  $("ready").textContent = error.message;
}
$("train").addEventListener("click", train);
$("stop").addEventListener("click", () => { stopped = true; });
$("ask").addEventListener("click", answers);
$("sentence").addEventListener("keydown", ({ key }) => { if (key === "Enter" && !$("ask").disabled) answers(); });
$("shuffle").addEventListener("click", () => { $("sentence").value = engine.record().sentence; answers(); });
$("write").addEventListener("click", write);
$("opening").addEventListener("keydown", ({ key }) => { if (key === "Enter" && !$("write").disabled) write(); });
for (const control of Object.values(shares)) control.onmove = mix;
$("save").addEventListener("click", save);
$("open").addEventListener("change", ({ target }) => {
  const files = [...target.files];
  target.value = ""; // so that the same files, changed meanwhile, can be chosen again
  open(files);
});
for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]])
  $("drop").addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", over);
    if (name === "drop") open(event.dataTransfer.files);
  });
