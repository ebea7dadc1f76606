// GPT-2's byte pair encoding (Radford et al. 2019) from OpenAI's own table of merges.

export const END = 50256; // <|endoftext|>

// Every byte is written as a visible character: itself where it has a shape, else one from 256 on.
const VISIBLE = [[33, 126], [161, 172], [174, 255]].flatMap(([from, to]) => Array.from({ length: to - from + 1 }, (_, i) => from + i));
const HIDDEN = Array.from({ length: 256 }, (_, byte) => byte).filter((byte) => !VISIBLE.includes(byte));
const ORDER = [...VISIBLE, ...HIDDEN]; // the first 256 ids
const CHARACTER = new Map([...VISIBLE.map((byte) => [byte, String.fromCharCode(byte)]), ...HIDDEN.map((byte, i) => [byte, String.fromCharCode(256 + i)])]);
const BYTE = new Map([...CHARACTER].map(([byte, character]) => [character, byte]));
const PIECES = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

export class Tokenizer {
  /** merges: the text of vocab.bpe. The id of a merge is 256 + its line. */
  constructor(merges) {
    const pairs = merges.trimEnd().split("\n").slice(1);
    this.tokens = [...ORDER.map((byte) => CHARACTER.get(byte)), ...pairs.map((pair) => pair.replace(" ", ""))];
    this.ids = new Map(this.tokens.map((token, id) => [token, id]));
    this.ranks = new Map(pairs.map((pair, rank) => [pair, rank]));
    this.known = new Map();
  }

  encode(text) {
    return (text.match(PIECES) ?? []).flatMap((piece) => {
      if (!this.known.has(piece)) this.known.set(piece, this.merged(piece));
      return this.known.get(piece);
    });
  }

  merged(piece) {
    const parts = [...new TextEncoder().encode(piece)].map((byte) => CHARACTER.get(byte));
    for (;;) { // the earliest merge first
      let rank = Infinity, at = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const found = this.ranks.get(`${parts[i]} ${parts[i + 1]}`);
        if (found < rank) [rank, at] = [found, i];
      }
      if (at < 0) return parts.map((part) => this.ids.get(part));
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
  }

  /** The text of `ids`; an unfinished character at the end shows as a replacement mark. */
  decode(ids) {
    return new TextDecoder().decode(Uint8Array.from(ids.filter((id) => id !== END).flatMap((id) => [...this.tokens[id]].map((c) => BYTE.get(c)))));
  }
}
