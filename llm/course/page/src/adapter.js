// An adapter of the page: A and B by layer. Made, trained, cut, mixed, and written as PEFT's folder has it.
import { read, write } from "./safetensors.js";
import { LAYERS } from "./weights.js";

const CONFIG = "adapter_config.json", TENSORS = "adapter_model.safetensors";
const key = (path, part) => `base_model.model.${path}.lora_${part}.weight`;

/** A fresh adapter: A uniform within 1 / sqrt(r), as the chapter has it, B zero. Only on layers that `chosen` accepts. */
export function fresh(rank, scale, draw, chosen = () => true) {
  const layers = LAYERS.filter(([path]) => chosen(path)).map(([path, inputs, outputs]) => [
    path,
    { A: Float32Array.from({ length: inputs * rank }, () => (2 * draw() - 1) / Math.sqrt(rank)), B: new Float32Array(rank * outputs) },
  ]);
  return { rank, scale, layers: Object.fromEntries(layers) };
}

export const parts = ({ layers }) => Object.values(layers).flatMap(({ A, B }) => [A, B]);
export const numbers = (adapter) => parts(adapter).reduce((n, part) => n + part.length, 0);

/** Several adapters, each with its share, as one of the sum of their ranks: s1 A1 B1 + s2 A2 B2 = [A1 A2] [s1 B1; s2 B2]. */
export function mixed(weighted) {
  const rank = weighted.reduce((sum, [{ rank }]) => sum + rank, 0), layers = {};
  for (const [path, inputs, outputs] of LAYERS) {
    const A = new Float32Array(inputs * rank), B = new Float32Array(rank * outputs);
    let at = 0;
    for (const [{ rank: r, scale, layers: own }, share] of weighted) {
      if (own[path]) {
        for (let i = 0; i < inputs; i++) A.set(own[path].A.subarray(i * r, (i + 1) * r), i * rank + at);
        B.set(own[path].B.map((b) => share * scale * b), at * outputs);
      }
      at += r;
    }
    layers[path] = { A, B };
  }
  return { rank, scale: 1, layers };
}

/** PEFT's two files, by name: A [r, in] and B [out, r] are the transposes of ours. */
export function toPeft({ rank, scale, layers }, base) {
  const tensors = {}, turned = (M, rows, columns) => Float32Array.from({ length: M.length }, (_, i) => M[(i % rows) * columns + Math.floor(i / rows)]);
  for (const [path, inputs, outputs] of LAYERS) {
    if (!layers[path]) continue;
    tensors[key(path, "A")] = { shape: [rank, inputs], data: turned(layers[path].A, inputs, rank) };
    tensors[key(path, "B")] = { shape: [outputs, rank], data: turned(layers[path].B, rank, outputs) };
  }
  const config = { peft_type: "LORA", base_model_name_or_path: null, r: rank, lora_alpha: scale * rank, target_modules: Object.keys(layers), bias: "none", fan_in_fan_out: false, inference_mode: true, lora_dropout: 0, use_rslora: false, use_dora: false, task_type: "CAUSAL_LM" };
  return { [CONFIG]: new TextEncoder().encode(JSON.stringify(config, null, 2)), [TENSORS]: new Uint8Array(write(tensors, { format: "pt", base_fingerprint: base })) };
}

/**
 * The adapter in a folder's files, { name: ArrayBuffer }. Throws an Error with one sentence.
 * base: the fingerprint that it must name, if it names one.
 */
export function fromPeft(files, base) {
  const missing = [CONFIG, TENSORS].filter((name) => !files[name]);
  if (missing.length) throw new Error(`An adapter is two files, and ${missing.join(" and ")} is not among these.`);
  let config;
  try {
    config = JSON.parse(new TextDecoder().decode(files[CONFIG]));
  } catch {
    throw new Error(`${CONFIG} is no JSON.`);
  }
  if (config?.peft_type !== "LORA" || config.use_dora || config.modules_to_save?.length) throw new Error("This page reads plain LoRA adapters, and this one is something else.");
  const { r, lora_alpha: alpha } = config;
  if (!(Number.isInteger(r) && r >= 1 && r <= 64 && Number.isFinite(alpha))) throw new Error(`${CONFIG} needs a rank r from 1 to 64 and a number for lora_alpha.`);
  if (Object.keys(config.rank_pattern ?? {}).length || Object.keys(config.alpha_pattern ?? {}).length) throw new Error("This page needs one rank and one alpha for all layers, and this adapter has several.");
  const { tensors, metadata } = read(files[TENSORS]), layers = {}, left = new Set(Object.keys(tensors));
  if (base && metadata.base_fingerprint && metadata.base_fingerprint !== base) throw new Error("This adapter was trained on another base model, so it would change this one at random.");
  for (const [path, inputs, outputs] of LAYERS) {
    const [a, b] = ["A", "B"].map((part) => tensors[key(path, part)]);
    if (!a && !b) continue;
    const fits = (tensor, rows, columns) => tensor && tensor.data instanceof Float32Array && tensor.shape.join() === [rows, columns].join() && tensor.data.every(Number.isFinite);
    if (!fits(a, r, inputs) || !fits(b, outputs, r)) throw new Error(`The factors of ${path} are missing, have another shape than r = ${r} asks for, or are not finite numbers.`);
    const turned = (M, rows, columns) => Float32Array.from({ length: M.length }, (_, i) => M[(i % rows) * columns + Math.floor(i / rows)]);
    layers[path] = { A: turned(a.data, r, inputs), B: turned(b.data, outputs, r) };
    left.delete(key(path, "A"));
    left.delete(key(path, "B"));
  }
  if (!Object.keys(layers).length || left.size) throw new Error(`This adapter has ${left.size ? `${[...left][0].slice(0, 80)}, which is no layer of this model` : "no layers"}.`);
  return { rank: r, scale: alpha / (config.use_rslora ? Math.sqrt(r) : r), layers };
}
