// The frozen base: int8 numbers and one float32 scale for each row, as `python -m llm page` writes them.
import { read } from "./safetensors.js";

export const CONTEXT = 64, WIDTH = 128, HEADS = 4, BLOCKS = 4, INNER = 512, WORDS = 50257;
const LINEARS = { "attn.c_attn": [WIDTH, 3 * WIDTH], "attn.c_proj": [WIDTH, WIDTH], "mlp.c_fc": [WIDTH, INNER], "mlp.c_proj": [INNER, WIDTH] };

/** Every linear layer of the blocks, [path, inputs, outputs], in the model's order. */
export const LAYERS = Array.from({ length: BLOCKS }, (_, block) =>
  Object.entries(LINEARS).map(([name, [inputs, outputs]]) => [`transformer.h.${block}.${name}`, inputs, outputs])).flat();

export class Weights {
  constructor(buffer) {
    const { tensors, metadata } = read(buffer);
    Object.assign(this, { tensors, metadata });
  }

  /** A vector as it is, or a matrix [outputs, inputs] as floats. */
  floats(name) {
    const { shape: [rows, columns], data } = this.tensors[name];
    if (columns === undefined) return data;
    const out = new Float32Array(data.length);
    for (let i = 0; i < rows; i++) this.row(name, i, out, i * columns);
    return out;
  }

  /** Row `i` of a matrix into `out` at `at`. */
  row(name, i, out, at = 0) {
    const { shape: [, columns], data } = this.tensors[name], scale = this.tensors[`${name}.scale`].data[i];
    for (let j = 0; j < columns; j++) out[at + j] = data[i * columns + j] * scale;
  }
}
