// Two answers to one prompt, blind: which is better? At the end whose answers were preferred how often, with the interval.
import { html, watch } from "./dom.js";
import { explorer } from "./explorer.js";
import { plot } from "./plot.js";

const LEFT = "left", RIGHT = "right", TIE = "tie", KEYS = { 1: LEFT, 2: RIGHT, 0: TIE };
const STYLE = `
.llm-explorer .prefer { flex: 1; min-width: 0; }
.llm-explorer .prefer .text { white-space: pre-wrap; overflow-wrap: anywhere; overflow-y: auto; max-height: 22em; padding: 4px 8px; box-sizing: border-box;
  border: 1px solid color-mix(in oklab, currentColor 25%, transparent); border-radius: 4px; }
.llm-explorer .prefer .asked { background: color-mix(in oklab, currentColor 7%, transparent); }
.llm-explorer .prefer .answers { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 2px 10px; margin: 8px 0; }
.llm-explorer .prefer .answers h4 { font: inherit; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
.llm-explorer .prefer .answers .preferred { border-color: currentColor; box-shadow: 0 0 0 1px currentColor; }
.llm-explorer .prefer .choices { display: flex; flex-wrap: wrap; gap: 6px 10px; margin: 6px 0; }
.llm-explorer .prefer .choices button { padding: 3px 10px; cursor: pointer; }
.llm-explorer .prefer .choices button[aria-disabled=true] { color: color-mix(in oklab, currentColor 55%, transparent); cursor: default; }
.llm-explorer .prefer .choices button[aria-pressed=true] { background: #0072b2; color: #fff; }
`;

/** The interval of Wilson around the share of `k` in `n`, at 95%. */
export function wilson(k, n, z = 1.959963984540054) {
  const middle = (k + z * z / 2) / (n + z * z), half = (z / (n + z * z)) * Math.sqrt((k * (n - k)) / n + z * z / 4);
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}

/** As many fair coins as asked for, the same for the same seed (mulberry32). */
function coins(seed, many) {
  let state = Math.imul(seed + 1, 0x9e3779b1);
  return Array.from({ length: many }, () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 31) === 1;
  });
}

/**
 * pairs: [prompt, answer of names[0], answer of names[1]]; same: how many more had equal answers, which are ties.
 * least: how many are judged before the score may be asked for.
 */
export function prefer(el, { colors, pairs, same, names, seed, least }) {
  let round = 0, at = 0, revealed = false, swapped, given; // given: LEFT, RIGHT, TIE or nothing, by pair
  const box = (name, label) => html("div", { class: `text ${name}`, role: "group", "aria-label": label, tabindex: 0 });
  const prompt = box("asked", "prompt"), answers = { [LEFT]: box("", "left answer"), [RIGHT]: box("", "right answer") };
  const heads = { [LEFT]: html("h4"), [RIGHT]: html("h4") };
  const button = (text, act) => html("button", { type: "button", onclick: ({ currentTarget }) => currentTarget.getAttribute("aria-disabled") !== "true" && act() }, text);
  const choices = {
    [LEFT]: button("1: left is better", () => judge(LEFT)), [TIE]: button("0: tie", () => judge(TIE)), [RIGHT]: button("2: right is better", () => judge(RIGHT)),
  };
  const back = button("Back", () => go(at - 1)), next = button("Next", () => go(at + 1));
  const reveal = button("Reveal", () => { revealed = true; made.refresh(); }), again = button("Start over", () => { begin(round + 1); made.refresh(); });
  const picture = plot({
    label: `share of the decided pairs in which ${names[1]} is preferred, with its 95% interval`, height: 96, width: 520, left: 24, right: 24,
    x: { label: `${names[1]} preferred, of the decided pairs`, domain: [0, 1], ticks: [0, 0.25, 0.5, 0.75, 1], format: (share) => `${100 * share}%` },
    y: { label: "", domain: [0, 1], ticks: [] },
  });

  function begin(which) {
    [round, at, revealed, swapped, given] = [which, 0, false, coins(seed + 7919 * which, pairs.length), pairs.map(() => null)];
  }
  function judge(side) {
    if (revealed) return;
    given[at] = side;
    const open = [...given.keys()].map((i) => (at + 1 + i) % pairs.length).find((i) => !given[i]);
    if (open === undefined) revealed = true;
    else at = open;
    made.refresh();
  }
  function go(to) {
    at = to;
    made.refresh();
  }
  const second = (i) => (swapped[i] ? LEFT : RIGHT); // where the answer of names[1] stands
  const judged = () => given.filter(Boolean).length;

  function score() {
    const decided = [...given.keys()].filter((i) => given[i] === LEFT || given[i] === RIGHT), n = decided.length;
    const wins = decided.filter((i) => given[i] === second(i)).length, ties = given.filter((side) => side === TIE).length + same;
    const seen = [...given.keys()].filter((i) => given[i]), stood = seen.filter((i) => second(i) === LEFT).length;
    return { n, wins, ties, seen: seen.length, stood, left: decided.filter((i) => given[i] === LEFT).length, interval: n ? wilson(wins, n) : [0, 1] };
  }
  function told({ n, wins, ties, seen, stood, left, interval }) {
    const apart = `${ties} ${ties === 1 ? "tie stands" : "ties stand"} apart${same ? `, ${same} of them with equal answers` : ""}.`;
    if (!n) return `No pair is decided. ${apart}`;
    const [low, high] = interval.map((share) => `${(100 * share).toFixed(0)}%`);
    const verdict = interval[0] <= 0.5 && interval[1] >= 0.5 ? "The interval includes one half: this does not decide."
      : `The interval lies ${interval[0] > 0.5 ? "above" : "below"} one half: you prefer ${names[Number(interval[0] > 0.5)]}.`;
    return `${names[1]} is preferred in ${wins} of ${n} decided pairs, ${((100 * wins) / n).toFixed(0)}%; 95% interval ${low} to ${high}. ${verdict} ${apart} `
      + `Of the ${seen} pairs that you judged, ${names[1]} stood left in ${stood} and ${names[0]} in ${seen - stood}; you preferred the left answer in ${left} of ${n}.`;
  }

  begin(0);
  const made = explorer(el, {
    name: "a blind comparison of two answers", controls: {},
    views: [html("div", { class: "prefer" }, html("style", {}, STYLE), prompt,
      html("div", { class: "answers" }, heads[LEFT], heads[RIGHT], answers[LEFT], answers[RIGHT]),
      html("div", { class: "choices", role: "group", "aria-label": "which answer is better" }, ...[LEFT, TIE, RIGHT].map((side) => choices[side])),
      html("div", { class: "choices" }, back, next, reveal, again), picture.node)],
    update() {
      show(at);
      for (const [side, node] of Object.entries(choices)) node.setAttribute("aria-pressed", given[at] === side);
      const off = [[back, at === 0], [next, at === pairs.length - 1 || !(revealed || given[at])], [reveal, revealed || judged() < least],
        ...Object.values(choices).map((node) => [node, revealed])];
      for (const [node, is] of off) node.setAttribute("aria-disabled", is); // and not `disabled`, which would take the focus away
      const found = score();
      picture.draw({
        rules: [{ x: 0.5, label: "one half" }],
        lines: revealed && found.n ? [{ points: found.interval.map((share) => [share, 0.4]), color: colors.lora }] : [],
        dots: revealed && found.n ? [{ x: found.wins / found.n, y: 0.4, color: colors.lora, r: 6 }] : [],
      });
      if (revealed) return told(found);
      return `Pair ${at + 1} of ${pairs.length}, ${judged()} judged. Which answer is better? `
        + (judged() < least ? `The score can be revealed after ${least}.` : "The score can be revealed now.");
    },
  });

  function show(i) {
    const [asked, ...both] = pairs[i], last = Number(swapped[i]);
    prompt.textContent = asked;
    [LEFT, RIGHT].forEach((side, k) => {
      const who = k ^ last;
      answers[side].textContent = both[who].trim() || "(no words)";
      answers[side].classList.toggle("preferred", revealed && given[i] === side);
      heads[side].textContent = revealed ? `${side}: ${names[who]}` : side;
      answers[side].setAttribute("aria-label", `${side} answer${revealed ? ` of ${names[who]}` : ""}`);
    });
  }
  made.root.tabIndex = -1; // a click anywhere in it, and the keys are heard here and not by JupyterLab
  made.root.addEventListener("keydown", (event) => {
    if (!(event.key in KEYS) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    judge(KEYS[event.key]);
  });
  picture.watch(made.root);
  // Nothing moves from pair to pair, nor when the score comes: every part has the height of its longest text.
  watch(made.root, () => {
    const says = made.root.querySelector(".says"), before = says.textContent, parts = [prompt, answers[LEFT], answers[RIGHT], says];
    const most = parts.map((part) => { part.style.minHeight = ""; return 0; });
    const many = pairs.length + same;
    says.textContent = told({ n: many, wins: many, ties: many, seen: many, stood: many, left: many, interval: [0, 0.4] });
    for (const i of pairs.keys()) {
      show(i);
      parts.forEach((part, k) => { most[k] = Math.max(most[k], part.offsetHeight); });
    }
    parts.forEach((part, k) => { part.style.minHeight = `${most[k]}px`; });
    says.textContent = before;
    made.refresh();
  });
}
