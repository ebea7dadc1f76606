// What the tests ask of the page's engine: `node engine.mjs FOLDER` answers FOLDER/job.json into FOLDER/answer.json.
import { readFileSync, writeFileSync } from "node:fs";
import { fresh, fromPeft, mixed, numbers, parts, toPeft } from "../../llm/course/page/src/adapter.js";
import { GPT } from "../../llm/course/page/src/gpt.js";
import { answerIds, asRows, commonWords, makeRecord, random, TOKENS } from "../../llm/course/page/src/records.js";
import { read, write } from "../../llm/course/page/src/safetensors.js";
import { cut, decompose } from "../../llm/course/page/src/spectrum.js";
import { Tokenizer } from "../../llm/course/page/src/tokenizer.js";
import { Adam, schedule } from "../../llm/course/page/src/training.js";
import { Weights } from "../../llm/course/page/src/weights.js";

const folder = process.argv[2], page = new URL("../../llm/course/page/", import.meta.url);
const bytes = (name) => { const file = readFileSync(`${folder}/${name}`); return file.buffer.slice(file.byteOffset, file.byteOffset + file.byteLength); };
const job = JSON.parse(readFileSync(`${folder}/job.json`)), weights = job.weights && new Weights(bytes(job.weights));
const wasm = new WebAssembly.Module(readFileSync(new URL("kernels.wasm", page)));
const tokenizer = () => new Tokenizer(readFileSync(new URL("../../../data/tokenizer/" + job.merges, page), "utf8"));

const JOBS = {
  /** Loss and gradients of a batch, from tensors ids and targets. */
  step() {
    const { ids, targets } = read(bytes("batch.safetensors")).tensors, [rows, tokens] = ids.shape;
    const adapter = fromPeft({ "adapter_config.json": bytes("adapter_config.json"), "adapter_model.safetensors": bytes("adapter_model.safetensors") });
    const model = new GPT(wasm, weights, { rank: adapter.rank, rows, tokens, words: job.words });
    model.set(adapter);
    const { loss, count, gain, bias } = model.step(Int32Array.from(ids.data), Int32Array.from(targets.data), rows, tokens, { learn: job.learn ?? "adapter" });
    const out = {};
    if (gain) Object.assign(out, { gain: { shape: [128], data: gain }, bias: { shape: [128], data: bias } });
    else for (const [path, { A, B }] of Object.entries(model.gradients())) Object.assign(out, { [`${path}.A`]: { shape: [A.length], data: A }, [`${path}.B`]: { shape: [B.length], data: B } });
    writeFileSync(`${folder}/gradients.safetensors`, new Uint8Array(write(out)));
    return { loss: loss / count };
  },
  tokens: () => job.texts.map((text) => { const ids = tokenizer().encode(text); return [ids, tokenizer().decode(ids)]; }),
  words: () => { const t = tokenizer(), words = commonWords(t); return { words, ids: answerIds(t, words), records: Array.from({ length: 50 }, (_, i) => makeRecord(random(i), words)), tokens: TOKENS }; },
  logits() {
    const model = new GPT(wasm, weights, { words: [0] });
    return job.prompts.map((ids) => [...model.logits(ids)]);
  },
  /** Forty steps as the page does them; the share of unseen records that come out right, at each rank it is cut to. */
  train() {
    const { rank, steps, seed, rows } = job, t = tokenizer(), words = commonWords(t), ids = answerIds(t, words);
    const model = new GPT(wasm, weights, { rank, rows, tokens: TOKENS, words: ids }), draw = random(seed);
    const adapter = fresh(rank, 8 / rank, draw), adam = new Adam(parts(adapter)), losses = [], began = performance.now();
    for (let i = 0; i < steps; i++) {
      const batch = asRows(t, Array.from({ length: rows }, () => makeRecord(draw, words)));
      model.set(adapter);
      const { loss, count } = model.step(batch.ids, batch.targets, rows, TOKENS), gradients = model.gradients();
      losses.push(loss / count);
      adam.update(Object.values(gradients).flatMap(({ A, B }) => [A, B]), 0.01 * Math.sqrt(rank / 8) * schedule(i, steps));
    }
    const seconds = (performance.now() - began) / 1000, unseen = random(2000003);
    const held = Array.from({ length: 100 }, () => makeRecord(unseen, words)), { ids: x, targets: y } = asRows(t, held);
    const right = (now) => { model.set(now); return model.right(x, y, held.length, TOKENS).filter(Boolean).length; };
    const cuts = (job.cuts ?? []).map((k) => right(cut(adapter, k)));
    for (const [name, file] of Object.entries(toPeft(adapter, weights.metadata.base_fingerprint))) writeFileSync(`${folder}/${name}`, file);
    return { losses, seconds, right: right(adapter), base: right(null), cuts, numbers: numbers(adapter), held };
  },
  /** Steps of Adam on given gradients. */
  adam() {
    const { start, gradients } = read(bytes("steps.safetensors")).tensors, [steps, n] = gradients.shape, part = start.data, adam = new Adam([part]);
    for (let i = 0; i < steps; i++) adam.update([gradients.data.subarray(i * n, (i + 1) * n)], 0.01 * schedule(i, steps));
    return [...part];
  },
  spectrum() {
    const { A, B } = read(bytes("factors.safetensors")).tensors, { s, left, right } = decompose({ A: A.data, B: B.data }, A.shape[1], job.scale);
    return { s, left: [...left], right: [...right] };
  },
  mixed() {
    const draw = random(3), one = fresh(2, 0.5, draw), two = fresh(3, 2, draw);
    for (const part of [...parts(one), ...parts(two)]) part.forEach((_, i) => { part[i] = draw() - 0.5; });
    const both = mixed([[one, 0.3], [two, -1]]), path = "transformer.h.1.mlp.c_fc";
    return [one, two, both].map(({ rank, scale, layers }) => ({ rank, scale, A: [...layers[path].A], B: [...layers[path].B] }));
  },
  open: () => { try { fromPeft(Object.fromEntries(job.files.map((name) => [name, bytes(name)])), job.base); return ""; } catch (error) { return error.message; } },
};

writeFileSync(`${folder}/answer.json`, JSON.stringify(JOBS[job.kind]()));
