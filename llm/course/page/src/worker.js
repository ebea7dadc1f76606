// One worker: the base, one model that trains and scores records, and one that writes text. It answers one message at a time.
import { GPT } from "./gpt.js";
import { random, TOKENS } from "./records.js";
import { END } from "./tokenizer.js";
import { Weights } from "./weights.js";

const RANK = 32, MOST_TOKENS = 60; // of the writer: two adapters of 16 fit
let module, weights, words, trainer = null, writer = null;

const JOBS = {
  async begin(given) {
    ({ words } = given);
    module = await WebAssembly.compile(given.kernels);
    weights = new Weights(given.weights);
    return weights.metadata.base_fingerprint;
  },

  /** Loss and gradients of a share of a batch of `count` targets. */
  step({ adapter, norm, rank, ids, targets, rows, count, learn }) {
    const model = training(rank, rows);
    model.set(adapter);
    model.setNorm(norm?.gain, norm?.bias);
    const { loss, gain, bias } = model.step(ids, targets, rows, TOKENS, { count, learn });
    const gradients = learn === "norm" ? [gain, bias] : Object.values(model.gradients()).flatMap(({ A, B }) => [A, B]);
    return { loss, gradients };
  },

  /** The base's final norm, which the control trains. */
  norm: () => ({ gain: weights.floats("transformer.ln_f.weight").slice(), bias: weights.floats("transformer.ln_f.bias").slice() }),

  /** Which of these records come out right. */
  right({ adapter, norm, ids, targets, rows }) {
    const model = training(adapter?.rank ?? trainer?.rank ?? 1, trainer?.rows ?? 8);
    model.set(adapter);
    model.setNorm(norm?.gain, norm?.bias);
    return model.right(ids, targets, rows, TOKENS);
  },

  /** Text after `ids`, a token at a time: `said(id)` as each is there. temperature 0: the likeliest. */
  write({ adapter, norm, ids, temperature = 0, most = MOST_TOKENS, seed = 0 }, said) {
    writer ??= new GPT(module, weights, { rank: RANK, rows: 1, tokens: 64, words: [END] });
    writer.set(adapter);
    writer.setNorm(norm?.gain, norm?.bias);
    const draw = random(seed), all = [...ids];
    for (let i = 0; i < most; i++) {
      const id = drawn(writer.logits(all), temperature, draw);
      if (id === END) break;
      all.push(id);
      said(id);
    }
    return all.slice(ids.length);
  },
};

function training(rank, rows) {
  if (!trainer || trainer.rank !== rank || trainer.rows < rows)
    trainer = new GPT(module, weights, { rank, rows, tokens: TOKENS, words });
  return trainer;
}

/** The likeliest word, or one of the forty likeliest (top-k sampling, Fan et al. 2018). */
function drawn(logits, temperature, draw) {
  if (!temperature) return logits.reduce((best, value, id) => (value > logits[best] ? id : best), 0);
  const first = [...logits.keys()].sort((a, b) => logits[b] - logits[a]).slice(0, 40);
  const shares = first.map((id) => Math.exp((logits[id] - logits[first[0]]) / temperature));
  let left = draw() * shares.reduce((a, b) => a + b);
  return first.find((_, i) => (left -= shares[i]) <= 0) ?? first[0];
}

let busy = Promise.resolve();
onmessage = ({ data: { id, job, given } }) => {
  busy = busy.then(async () => {
    try {
      postMessage({ id, done: await JOBS[job](given, (said) => postMessage({ id, said })) });
    } catch (error) {
      postMessage({ id, error: error.message });
    }
  });
};
