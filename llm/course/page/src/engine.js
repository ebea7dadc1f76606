// The page's model: several workers that each hold the base, and what one can ask of them.
import { fresh, parts } from "./adapter.js";
import { answerIds, asRows, commonWords, makeRecord, random, TOKENS } from "./records.js";
import { Tokenizer } from "./tokenizer.js";
import { Adam, schedule } from "./training.js";

export const ROWS = 16, STEPS = 40, RATE = 0.01, ALPHA = 8, UNSEEN = 2000003;

/** The scale is alpha / r, so a small rank takes larger steps at one rate: at 0.01, rank 1 learns nothing. */
export const rateOf = (rank) => RATE * Math.sqrt(rank / 8);

export class Engine {
  /** base: where the files lie. progress(bytes): as the weights arrive. Throws an Error with one sentence. */
  static async start(base, progress = () => {}) {
    if (typeof WebAssembly === "undefined" || typeof Worker === "undefined") throw new Error("This browser has no WebAssembly or no workers, and the model needs both.");
    const load = async (name, as) => {
      const answer = await fetch(new URL(name, base));
      if (!answer.ok) throw new Error(`The file ${name} did not arrive (${answer.status}). Reload the page to try again.`);
      return answer[as]();
    };
    const [weights, kernels, merges] = await Promise.all([arriving(new URL("base.safetensors", base), progress), load("kernels.wasm", "arrayBuffer"), load("vocab.bpe", "text")]);
    if (!WebAssembly.validate(kernels)) throw new Error("This browser cannot run WebAssembly SIMD. Any current Chrome, Edge, Firefox or Safari can.");
    const engine = new Engine();
    engine.tokenizer = new Tokenizer(merges);
    engine.words = commonWords(engine.tokenizer);
    const phone = /Mobi|Android/.test(navigator.userAgent), many = Math.max(1, Math.min(phone ? 2 : 4, navigator.hardwareConcurrency || 2));
    engine.workers = Array.from({ length: many }, () => new Asked(new URL("./worker.js", import.meta.url)));
    const words = answerIds(engine.tokenizer, engine.words), draw = random(UNSEEN);
    [engine.base] = await Promise.all(engine.workers.map((worker) => worker.ask("begin", { weights, kernels, words })));
    engine.unseen = Array.from({ length: 100 }, () => makeRecord(draw, engine.words));
    return engine;
  }

  record(draw = Math.random) { return makeRecord(draw, this.words); }

  /**
   * Train for `STEPS` steps on fresh records; yields { step, losses: { lora, norm }, seconds } after each.
   * chosen(path): which layers get A and B. control: also train the final norm alone, on the same rows.
   */
  async *train({ rank, seed, chosen, control = false }) {
    const draw = random(seed), adapter = fresh(rank, ALPHA / rank, draw, chosen), adam = new Adam(parts(adapter));
    const norm = control ? { gain: null, bias: null } : null;
    let normAdam = null;
    Object.assign(this, { adapter, norm });
    const began = performance.now();
    for (let step = 0; step < STEPS; step++) {
      const batch = asRows(this.tokenizer, Array.from({ length: ROWS }, () => this.record(draw)));
      const { loss, gradients } = await this.step(batch, { adapter, rank, learn: "adapter" });
      adam.update(gradients, rateOf(rank) * schedule(step, STEPS));
      const losses = { lora: loss };
      if (norm) {
        const own = await this.step(batch, { norm, rank, learn: "norm" });
        if (!normAdam) {
          Object.assign(norm, await this.finalNorm());
          normAdam = new Adam([norm.gain, norm.bias]);
        }
        normAdam.update(own.gradients, RATE * schedule(step, STEPS));
        losses.norm = own.loss;
      }
      yield { step: step + 1, losses, seconds: (performance.now() - began) / 1000 };
    }
  }

  /** One batch over all workers: the mean loss, and the gradients of it. */
  async step({ ids, targets }, { adapter = null, norm = null, rank, learn }) {
    const count = targets.reduce((n, target) => n + (target >= 0), 0), share = Math.ceil(ROWS / this.workers.length);
    const answers = await Promise.all(this.workers.map((worker, i) => {
      const from = i * share, rows = Math.min(share, ROWS - from), part = (all) => all.slice(from * TOKENS, (from + rows) * TOKENS);
      return rows > 0 && worker.ask("step", { adapter, norm: norm?.gain && norm, rank, ids: part(ids), targets: part(targets), rows, count, learn });
    }));
    const [first, ...others] = answers.filter(Boolean);
    for (const other of others) {
      first.loss += other.loss;
      first.gradients.forEach((gradient, n) => gradient.forEach((_, i) => { gradient[i] += other.gradients[n][i]; }));
    }
    return { loss: first.loss / count, gradients: first.gradients };
  }

  finalNorm() { return this.workers[0].ask("norm", {}); }

  /** How many of the hundred unseen records come out right. */
  async score({ adapter = null, norm = null } = {}) {
    const { ids, targets } = asRows(this.tokenizer, this.unseen), many = this.workers.length, share = Math.ceil(this.unseen.length / many);
    const hits = await Promise.all(this.workers.map((worker, i) => {
      const from = i * share, rows = Math.min(share, this.unseen.length - from), part = (all) => all.slice(from * TOKENS, (from + rows) * TOKENS);
      return worker.ask("right", { adapter, norm, ids: part(ids), targets: part(targets), rows });
    }));
    return hits.flat().filter(Boolean).length;
  }

  /** The record that the model writes after a sentence. */
  async answer(sentence, { adapter = null, norm = null } = {}) {
    return this.write(`${sentence}\n`, { adapter, norm, most: 40 });
  }

  /** A text after `prompt`; said(text) with all so far, as each token is there. worker: which of them writes. */
  async write(prompt, { said = () => {}, worker = 0, ...given }) {
    const so = [], ids = this.tokenizer.encode(prompt);
    const heard = (id) => { so.push(id); said(this.tokenizer.decode(so)); };
    return this.tokenizer.decode(await this.workers[worker % this.workers.length].ask("write", { ids, ...given }, heard));
  }
}

/** A worker as something one asks: ask(job, given, said) resolves with its answer. */
class Asked {
  constructor(address) {
    Object.assign(this, { worker: new Worker(address, { type: "module" }), open: new Map(), next: 0 });
    this.worker.onmessage = ({ data: { id, done, said, error } }) => {
      const asked = this.open.get(id);
      if (said !== undefined) return asked.said?.(said);
      this.open.delete(id);
      if (error) asked.fail(new Error(error));
      else asked.done(done);
    };
    this.worker.onerror = (event) => this.open.forEach(({ fail }) => fail(new Error(event.message || "A worker could not start.")));
  }
  ask(job, given, said) {
    const id = this.next++;
    return new Promise((done, fail) => {
      this.open.set(id, { done, fail, said });
      this.worker.postMessage({ id, job, given });
    });
  }
}

async function arriving(address, progress) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`The model did not arrive (${answer.status}). Reload the page to try again.`);
  const pieces = [];
  let bytes = 0;
  for await (const piece of pieced(answer.body)) {
    pieces.push(piece);
    bytes += piece.length;
    progress(bytes);
  }
  return new Blob(pieces).arrayBuffer();
}

async function* pieced(stream) { // Safari's streams are not iterable yet
  const reader = stream.getReader();
  for (let next = await reader.read(); !next.done; next = await reader.read()) yield next.value;
}
