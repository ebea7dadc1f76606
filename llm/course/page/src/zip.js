// A folder as one file: a zip without compression, because an adapter's numbers do not shrink.

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});
const crc32 = (bytes) => ~bytes.reduce((crc, byte) => TABLE[(crc ^ byte) & 255] ^ (crc >>> 8), -1) >>> 0;

/** files: { name: Uint8Array }. */
export function zip(folder, files) {
  const pieces = [], entries = [];
  let at = 0;
  const put = (bytes) => { pieces.push(bytes); at += bytes.length; };
  const record = (signature, ...fields) => { // each field is [bytes, value], little-endian
    const all = [[4, signature], ...fields], out = new DataView(new ArrayBuffer(all.reduce((sum, [size]) => sum + size, 0)));
    all.reduce((to, [size, value]) => (size === 2 ? out.setUint16(to, value, true) : out.setUint32(to, value, true), to + size), 0);
    return new Uint8Array(out.buffer);
  };
  const DATE = 0x21; // 1 January 1980: the same adapter is the same file
  for (const [name, bytes] of Object.entries(files)) {
    const path = new TextEncoder().encode(`${folder}/${name}`);
    const about = [[2, 20], [2, 0x800], [2, 0], [2, 0], [2, DATE], [4, crc32(bytes)], [4, bytes.length], [4, bytes.length], [2, path.length], [2, 0]];
    entries.push([record(0x02014b50, [2, 20], ...about, [2, 0], [2, 0], [2, 0], [4, 0], [4, at]), path]);
    put(record(0x04034b50, ...about));
    put(path);
    put(bytes);
  }
  const begin = at;
  for (const [entry, path] of entries) { put(entry); put(path); }
  put(record(0x06054b50, [2, 0], [2, 0], [2, entries.length], [2, entries.length], [4, at - begin], [4, begin], [2, 0]));
  return new Blob(pieces);
}
