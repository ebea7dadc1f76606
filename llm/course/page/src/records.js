// The task: a sentence to its JSON record, as llm/text/records.py has it. Values are drawn anew, so the model must copy.
import { END } from "./tokenizer.js";

export const TOKENS = 40; // of a row: no record has more without its last, and the kernels want a multiple of eight
const COMMON = 2750, VALUES = 100; // words among the tokenizer's first; numbers below

/** Seeded numbers from 0 to 1 (mulberry32). */
export function random(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), seed | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** The common words of one token each, inside a text and at its beginning. */
export const commonWords = (tokenizer) =>
  tokenizer.tokens.filter((token) => /^[A-Za-z]{3,}$/.test(token) && tokenizer.ids.get(`Ġ${token}`) < COMMON).sort();

export function makeRecord(draw, words) {
  const word = () => words[Math.floor(draw() * words.length)];
  const item = word(), origin = word(), destination = word(), day = Math.floor(draw() * VALUES);
  const clauses = [`from "${origin}"`, `to "${destination}"`, `at ${day}`];
  for (let i = 2; i > 0; i--) {
    const j = Math.floor(draw() * (i + 1));
    [clauses[i], clauses[j]] = [clauses[j], clauses[i]];
  }
  return { sentence: `Send "${item}" ${clauses.join(" ")}.`, answer: JSON.stringify({ destination, item, day, origin }).replaceAll(":", ": ").replaceAll(",", ", ") };
}

/** Records as rows of TOKENS ids, and targets of which only the answer and its end count; -100 does not. */
export function asRows(tokenizer, records) {
  const ids = new Int32Array(records.length * TOKENS).fill(END), targets = new Int32Array(ids.length).fill(-100);
  records.forEach(({ sentence, answer }, i) => {
    const prompt = tokenizer.encode(`${sentence}\n`), rest = [...tokenizer.encode(answer), END];
    ids.set([...prompt, ...rest].slice(0, -1), i * TOKENS);
    targets.set(rest, i * TOKENS + prompt.length - 1);
  });
  return { ids, targets };
}

/** All ids that a record's answer can have: what the loss chooses from. */
export function answerIds(tokenizer, words) {
  const ids = new Set([END]), add = (text) => tokenizer.encode(text).forEach((id) => ids.add(id));
  for (const word of words) add(JSON.stringify({ destination: word, item: word, day: 0, origin: word }).replaceAll(":", ": ").replaceAll(",", ", "));
  for (let day = 0; day < VALUES; day++) add(`{"destination": "a", "item": "a", "day": ${day}, "origin": "a"}`);
  return [...ids].sort((a, b) => a - b);
}
