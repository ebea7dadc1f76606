// The file format of weights and adapters: eight bytes of length, a JSON header, then the numbers.

const ARRAYS = { F32: Float32Array, I8: Int8Array };

/** The tensors of a file by name, each { shape, data }, and its metadata. Throws an Error with one sentence. */
export function read(buffer) {
  const bad = (why) => new Error(`This is not a safetensors file that this page can read: ${why}.`);
  if (buffer.byteLength < 8) throw bad("it has fewer than eight bytes");
  const length = Number(new DataView(buffer).getBigUint64(0, true)), begin = 8 + length;
  if (begin > buffer.byteLength) throw bad("its header is longer than the file");
  let header;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(buffer, 8, length)));
  } catch {
    throw bad("its header is no JSON");
  }
  const { __metadata__: metadata = {}, ...entries } = header, tensors = {};
  for (const [name, { dtype, shape, data_offsets: [from, to] = [] }] of Object.entries(entries)) {
    const kind = ARRAYS[dtype], many = shape?.reduce((a, b) => a * b, 1);
    if (!kind) throw bad(`${name} is stored as ${dtype}, and only F32 and I8 are known here`);
    if (!(from >= 0 && to - from === many * kind.BYTES_PER_ELEMENT && begin + to <= buffer.byteLength)) throw bad(`${name} does not fit its place`);
    tensors[name] = { shape, data: new kind(buffer.slice(begin + from, begin + to)) };
  }
  return { tensors, metadata };
}

/** A file of float32 tensors, { name: { shape, data } }, as an ArrayBuffer. */
export function write(tensors, metadata = {}) {
  const header = { __metadata__: metadata };
  let at = 0;
  for (const [name, { shape, data }] of Object.entries(tensors)) {
    header[name] = { dtype: "F32", shape, data_offsets: [at, at + data.byteLength] };
    at += data.byteLength;
  }
  let text = JSON.stringify(header);
  text += " ".repeat((8 - (new TextEncoder().encode(text).length % 8)) % 8); // the numbers begin at a multiple of eight
  const head = new TextEncoder().encode(text), out = new Uint8Array(8 + head.length + at);
  new DataView(out.buffer).setBigUint64(0, BigInt(head.length), true);
  out.set(head, 8);
  let to = 8 + head.length;
  for (const { data } of Object.values(tensors)) {
    out.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), to);
    to += data.byteLength;
  }
  return out.buffer;
}
