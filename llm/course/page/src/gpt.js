// The course's GPT with LoRA on each linear layer of its blocks: forward, backward for A and B alone, and decoding.
//
// This is notebook 01 to 04 once more, in JavaScript. All matrices lie in the memory of a WebAssembly module (kernels.ts),
// which multiplies them; what happens to them, and in which order, stands here.
import { BLOCKS, CONTEXT, HEADS, INNER, LAYERS, WIDTH, WORDS } from "./weights.js";

const EMBEDDING = "transformer.wte.weight"; // equal to the output head's matrix, so one copy travels
const AT_ONCE = 1024, ROWS = 64; // words of a block of the head, and positions that see it together
const eights = (n) => (n + 7) & ~7;

/** W [outputs, inputs] in panels of eight columns: as [outputs, inputs] for dY W, or transposed for X W^T. */
function packed(W, outputs, inputs, transposed) {
  const [rows, columns] = transposed ? [inputs, outputs] : [outputs, inputs], out = new Float32Array(W.length);
  let at = 0;
  for (let panel = 0; panel < columns; panel += 8)
    for (let i = 0; i < rows; i++)
      for (let j = panel; j < panel + 8; j++) out[at++] = transposed ? W[j * inputs + i] : W[i * inputs + j];
  return out;
}

export class GPT {
  /**
   * module: of kernels.wasm. weights: a `Weights`. rank: of A and B; rows x tokens: the largest batch.
   * words: the ids that the loss may choose from; the task's own are a fiftieth of all, and the loss is as good.
   */
  constructor(module, weights, { rank = 8, rows = 16, tokens = 40, words = null } = {}) {
    Object.assign(this, { weights, rank, wide: eights(rank), rows, tokens, words: words ?? Array.from({ length: WORDS }, (_, i) => i) });
    this.memory = new WebAssembly.Memory({ initial: 1, maximum: 65536 });
    this.kernels = new WebAssembly.Instance(module, { env: { memory: this.memory } }).exports;
    this.top = 1024;
    const M = Math.max(rows * tokens, CONTEXT), wide = this.wide, floats = (n) => this.room(n);
    this.M = M;

    this.layers = LAYERS.map(([path, inputs, outputs]) => {
      const W = weights.floats(`${path}.weight`), layer = { path, inputs, outputs, scale: 0 };
      layer.W = this.keep(packed(W, outputs, inputs, false));
      layer.WT = this.keep(packed(W, outputs, inputs, true));
      layer.bias = weights.tensors[`${path}.bias`] ? this.keep(weights.floats(`${path}.bias`)) : 0;
      for (const name of ["A", "AT", "dA"]) layer[name] = floats(inputs * wide);
      for (const name of ["B", "BT", "dB"]) layer[name] = floats(wide * outputs);
      layer.low = floats(M * wide);
      return layer;
    });
    this.blocks = Array.from({ length: BLOCKS }, (_, i) => {
      const [attention, projection, up, down] = this.layers.slice(4 * i);
      const kept = { qkv: 3 * WIDTH, mixed: WIDTH, before: INNER, after: INNER }; // what the way back needs
      return { attention, projection, up, down, first: this.norm(`transformer.h.${i}.ln_1`), second: this.norm(`transformer.h.${i}.ln_2`),
        P: floats(HEADS * Math.max(rows * tokens ** 2, CONTEXT ** 2)), ...Object.fromEntries(Object.entries(kept).map(([name, n]) => [name, floats(M * n)])) };
    });
    this.last = this.norm("transformer.ln_f");

    this.head = []; // the chosen rows of the embedding, a block of words at a time
    for (let from = 0; from < this.words.length; from += AT_ONCE) {
      const ids = this.words.slice(from, from + AT_ONCE), places = eights(ids.length), W = new Float32Array(places * WIDTH);
      ids.forEach((id, i) => weights.row(EMBEDDING, id, W, i * WIDTH));
      this.head.push({ ids, places, W: this.keep(packed(W, places, WIDTH, false)), WT: this.keep(packed(W, places, WIDTH, true)) });
    }
    const spare = { x: M * WIDTH, dx: M * WIDTH, dy: M * WIDTH, dqkv: 3 * M * WIDTH, dInner: M * INNER, dLow: M * wide, lowT: M * wide, dAT: wide * INNER,
      attention: 2 * CONTEXT * CONTEXT, states: M * WIDTH, scores: ROWS * AT_ONCE, most: ROWS, Z: ROWS, gathered: ROWS * WIDTH };
    for (const [name, n] of Object.entries(spare)) this[name] = floats(n);
    this.set(null);
  }

  // memory

  room(n) {
    const at = this.top;
    this.top += (4 * n + 63) & ~63;
    const missing = Math.ceil((this.top - this.memory.buffer.byteLength) / 65536);
    if (missing > 0) this.memory.grow(missing + 64);
    return at;
  }
  view(at, n) { return new Float32Array(this.memory.buffer, at, n); }
  keep(numbers) {
    const at = this.room(numbers.length);
    this.view(at, numbers.length).set(numbers);
    return at;
  }
  norm(path) {
    const [gain, bias] = ["weight", "bias"].map((part) => this.keep(this.weights.floats(`${path}.${part}`)));
    return { gain, bias, Y: this.room(this.M * WIDTH), H: this.room(this.M * WIDTH), S: this.room(this.M) };
  }

  // the adapter

  /**
   * Put an adapter on: { scale, layers: { path: { A [inputs, rank], B [rank, outputs] } } }, or null for the base alone.
   * A layer that it does not name stays the base's.
   */
  set(adapter) {
    const { wide, kernels } = this, rank = adapter?.rank; // at most this.rank
    for (const layer of this.layers) {
      const { inputs, outputs } = layer, own = adapter?.layers[layer.path];
      layer.scale = own ? adapter.scale : 0;
      if (!own) continue;
      const A = this.view(layer.A, inputs * wide).fill(0), B = this.view(layer.B, wide * outputs).fill(0);
      for (let i = 0; i < inputs; i++) A.set(own.A.subarray(i * rank, (i + 1) * rank), i * wide); // padded to a multiple of eight
      B.set(own.B);
      kernels.transpose(layer.A, wide, layer.AT, inputs, inputs, wide);
      kernels.transpose(layer.B, outputs, layer.BT, wide, wide, outputs);
    }
  }

  // one LoRA layer
  //
  // forward      Y = X W^T + scale (X A) B
  //
  // backward     W is frozen, so it gets no gradient. With low = scale X A and dLow = scale dY B^T:
  //              dB = low^T dY        dA = X^T dLow        dX = dY W + dLow A^T

  linear(layer, X, Y, M, beta = 0) { // Y = beta Y + ...
    const { inputs, outputs, scale } = layer, { wide, kernels } = this;
    kernels.matmul(X, inputs, layer.WT, 8, 8 * inputs, Y, outputs, M, outputs, inputs, 1, beta);
    if (layer.bias) kernels.addBias(Y, layer.bias, M, outputs);
    if (!scale) return;
    kernels.matmul(X, inputs, layer.A, wide, 8, layer.low, wide, M, wide, inputs, scale, 0);
    kernels.matmul(layer.low, wide, layer.B, outputs, 8, Y, outputs, M, outputs, wide, 1, 1);
  }

  linearBack(layer, X, dY, dX, M) { // dX = 0: nobody asks for it
    const { inputs, outputs, scale } = layer, { wide, kernels, dLow, lowT, dAT } = this;
    if (dX) kernels.matmul(dY, outputs, layer.W, 8, 8 * outputs, dX, inputs, M, inputs, outputs, 1, 0);
    if (!scale) return;
    kernels.transpose(layer.low, wide, lowT, M, M, wide);
    kernels.matmul(lowT, M, dY, outputs, 8, layer.dB, outputs, wide, outputs, M, 1, 0);
    kernels.matmul(dY, outputs, layer.BT, wide, 8, dLow, wide, M, wide, outputs, scale, 0);
    kernels.transpose(dLow, wide, lowT, M, M, wide);
    kernels.matmul(lowT, M, X, inputs, 8, dAT, inputs, wide, inputs, M, 1, 0); // dA^T: its width is a multiple of eight
    kernels.transpose(dAT, inputs, layer.dA, wide, wide, inputs);
    if (dX) kernels.matmul(dLow, wide, layer.AT, inputs, 8, dX, inputs, M, inputs, wide, 1, 1);
  }

  // the model

  normed(norm, X, M) { this.kernels.norm(X, norm.gain, norm.bias, norm.Y, norm.H, norm.S, M, WIDTH); }

  /** The final states of `rows` rows of `tokens` ids, in `this.last.Y`. `tokens` is a multiple of eight. */
  forward(ids, rows, tokens) {
    const M = rows * tokens, { kernels, weights, x } = this, X = this.view(x, M * WIDTH), position = new Float32Array(WIDTH);
    for (let j = 0; j < tokens; j++) {
      weights.row("transformer.wpe.weight", j, position);
      for (let i = 0; i < rows; i++) {
        const at = (i * tokens + j) * WIDTH;
        weights.row(EMBEDDING, ids[i * tokens + j], X, at);
        for (let c = 0; c < WIDTH; c++) X[at + c] += position[c];
      }
    }
    for (const block of this.blocks) {
      this.normed(block.first, x, M);
      this.linear(block.attention, block.first.Y, block.qkv, M);
      kernels.attend(block.qkv, block.mixed, block.P, this.attention, rows, tokens, WIDTH, HEADS);
      this.linear(block.projection, block.mixed, x, M, 1); // x += ...
      this.normed(block.second, x, M);
      this.linear(block.up, block.second.Y, block.before, M);
      kernels.gelu(block.before, block.after, M * INNER);
      this.linear(block.down, block.after, x, M, 1);
    }
    this.normed(this.last, x, M);
  }

  /** From `this.dy`, the gradient at the final states, to dA and dB of every layer that has them. */
  backward(rows, tokens) {
    const M = rows * tokens, { kernels, dx, dy, dqkv, dInner } = this;
    const back = (norm) => kernels.normBack(dy, norm.gain, norm.H, norm.S, dx, M, WIDTH); // dx += ...
    this.view(dx, M * WIDTH).fill(0);
    back(this.last);
    for (const [i, block] of [...this.blocks.entries()].reverse()) {
      this.linearBack(block.down, block.after, dx, dInner, M);
      kernels.geluBack(block.before, dInner, M * INNER);
      this.linearBack(block.up, block.second.Y, dInner, dy, M);
      back(block.second);
      this.linearBack(block.projection, block.mixed, dx, dy, M);
      kernels.attendBack(block.qkv, dy, block.P, dqkv, this.attention, rows, tokens, WIDTH, HEADS);
      this.linearBack(block.attention, block.first.Y, dqkv, i ? dy : 0, M); // the embedding below is frozen
      if (i) back(block.first);
    }
  }

  /**
   * The loss of a batch, summed over the targets that count (>= 0), and into dA and dB the gradients of sum / count.
   *
   * count: the targets of the whole batch, of which this may be a part. learn: "adapter"; or "norm", the final norm's gain
   * and bias alone, whose gradients come back with the loss; or "" for the loss alone.
   */
  step(ids, targets, rows, tokens, { count = 0, learn = "adapter" } = {}) {
    const M = rows * tokens, { kernels, weights } = this, places = [], answers = [];
    this.forward(ids, rows, tokens);
    for (let i = 0; i < M; i++) if (targets[i] >= 0) { places.push(i); answers.push(targets[i]); }
    const N = places.length, final = this.view(this.last.Y, M * WIDTH), states = this.view(this.states, N * WIDTH);
    count ||= N;
    places.forEach((place, i) => states.set(final.subarray(place * WIDTH, (place + 1) * WIDTH), i * WIDTH));
    const dy = this.view(this.dy, M * WIDTH).fill(0), right = new Float32Array(WIDTH);
    let loss = 0;
    for (let from = 0; from < N; from += ROWS) {
      const m = Math.min(ROWS, N - from), part = this.states + 4 * from * WIDTH;
      const most = this.view(this.most, ROWS).fill(-1e30), Z = this.view(this.Z, ROWS).fill(0), gathered = this.view(this.gathered, ROWS * WIDTH).fill(0);
      for (const { ids: block, places: wide, W, WT } of this.head) { // logits, and softmax(logits) W, without ever holding them all
        kernels.matmul(part, WIDTH, WT, 8, 8 * WIDTH, this.scores, wide, m, wide, WIDTH, 1, 0);
        kernels.softmaxBlock(this.scores, this.most, this.Z, this.gathered, m, block.length, wide, WIDTH);
        kernels.matmul(this.scores, wide, W, 8, 8 * wide, this.gathered, WIDTH, m, WIDTH, wide, 1, 1);
      }
      for (let i = 0; i < m; i++) { // d loss / d state = softmax(logits) W - the right word's row
        weights.row(EMBEDDING, answers[from + i], right);
        let logit = 0;
        for (let c = 0; c < WIDTH; c++) {
          logit += states[(from + i) * WIDTH + c] * right[c];
          dy[places[from + i] * WIDTH + c] = (gathered[i * WIDTH + c] / Z[i] - right[c]) / count;
        }
        loss += Math.log(Z[i]) + most[i] - logit;
      }
    }
    if (learn === "adapter") this.backward(rows, tokens);
    if (learn !== "norm") return { loss, count: N };
    const H = this.view(this.last.H, M * WIDTH), gain = new Float32Array(WIDTH), bias = new Float32Array(WIDTH);
    for (let i = 0; i < M * WIDTH; i++) {
      gain[i % WIDTH] += dy[i] * H[i];
      bias[i % WIDTH] += dy[i];
    }
    return { loss, count: N, gain, bias };
  }

  /** The gradients of the last step, { path: { A, B } }, of the layers that the adapter names. */
  gradients() {
    const { rank, wide } = this;
    return Object.fromEntries(this.layers.filter((layer) => layer.scale).map(({ path, inputs, outputs, dA, dB }) => {
      const padded = this.view(dA, inputs * wide), A = new Float32Array(inputs * rank);
      for (let i = 0; i < inputs; i++) A.set(padded.subarray(i * wide, i * wide + rank), i * rank);
      return [path, { A, B: this.view(dB, rank * outputs).slice() }];
    }));
  }

  /** Another final norm, as trained by `learn: "norm"`; null for the base's own. */
  setNorm(gain = null, bias = null) {
    this.view(this.last.gain, WIDTH).set(gain ?? this.weights.floats("transformer.ln_f.weight"));
    this.view(this.last.bias, WIDTH).set(bias ?? this.weights.floats("transformer.ln_f.bias"));
  }

  // decoding

  /** Which rows are right in all their targets when each token is the likeliest one: what greedy decoding would write. */
  right(ids, targets, rows, tokens) {
    const hits = [];
    for (let from = 0; from < rows; from += this.rows) {
      const n = Math.min(this.rows, rows - from), part = targets.subarray(from * tokens, (from + n) * tokens);
      this.forward(ids.subarray(from * tokens, (from + n) * tokens), n, tokens);
      for (let i = 0; i < n; i++) {
        const row = part.subarray(i * tokens, (i + 1) * tokens), first = row.findIndex((id) => id >= 0);
        const m = row.findLastIndex((id) => id >= 0) - first + 1, best = this.likeliest(this.last.Y + 4 * (i * tokens + first) * WIDTH, m);
        hits.push(best.every((id, j) => row[first + j] < 0 || id === row[first + j]));
      }
    }
    return hits;
  }

  /** The likeliest of `this.words` after each of `m` states, m <= 64. */
  likeliest(states, m) {
    const top = new Float32Array(m).fill(-Infinity), best = new Int32Array(m);
    for (const { ids, places, WT } of this.head) {
      this.kernels.matmul(states, WIDTH, WT, 8, 8 * WIDTH, this.scores, places, m, places, WIDTH, 1, 0);
      const logits = this.view(this.scores, m * places);
      for (let i = 0; i < m; i++)
        for (let j = 0; j < ids.length; j++)
          if (logits[i * places + j] > top[i]) [top[i], best[i]] = [logits[i * places + j], ids[j]];
    }
    return best;
  }

  /** The logits of all words after `ids`, of which the last 64 are seen. */
  logits(ids) {
    const seen = ids.slice(-CONTEXT), tokens = eights(seen.length), row = [...seen, ...Array(tokens - seen.length).fill(0)];
    this.forward(row, 1, tokens);
    const state = this.view(this.last.Y + 4 * (seen.length - 1) * WIDTH, WIDTH).slice(), out = new Float32Array(WORDS);
    const { data } = this.weights.tensors[EMBEDDING], scales = this.weights.tensors[`${EMBEDDING}.scale`].data;
    for (let i = 0; i < WORDS; i++) {
      let sum = 0;
      for (let c = 0, at = i * WIDTH; c < WIDTH; c++, at++) sum += state[c] * data[at];
      out[i] = sum * scales[i];
    }
    return out;
  }
}
