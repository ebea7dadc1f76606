// A drawing in pixels taken apart: its patterns by their sizes, found again at every stroke.

/**
 * The factors of the matrix in which each pixel is a block of `block` x `block` entries: { sizes, U, V }, largest first.
 *
 * One-sided Jacobi: rotate the rows in pairs until all stand at right angles; what is left of each is a pattern.
 */
export function takenApart(pixels, block) {
  const G = pixels.map((row) => [...row]), n = G.length;
  const W = G.map((_, i) => G.map((_, j) => Number(i === j))); // W @ pixels = G throughout
  const dot = (a, b) => a.reduce((sum, v, i) => sum + v * b[i], 0);
  for (let sweep = 0, turned = true; turned && sweep < 30; sweep++) {
    turned = false;
    for (let p = 0; p < n; p++)
      for (let q = p + 1; q < n; q++) {
        const a = dot(G[p], G[p]), b = dot(G[q], G[q]), c = dot(G[p], G[q]);
        if (Math.abs(c) <= 1e-12 * Math.sqrt(a * b)) continue;
        turned = true;
        const zeta = (b - a) / (2 * c), t = (zeta < 0 ? -1 : 1) / (Math.abs(zeta) + Math.hypot(1, zeta));
        const cos = 1 / Math.hypot(1, t), sin = cos * t;
        for (const M of [G, W])
          [M[p], M[q]] = [M[p].map((v, i) => cos * v - sin * M[q][i]), M[q].map((v, i) => sin * M[p][i] + cos * v)];
      }
  }
  const order = G.map((row, i) => [Math.sqrt(dot(row, row)), i]).sort(([a], [b]) => b - a), columns = pixels[0].length;
  const U = { rows: n * block, columns: n, values: new Float32Array(n * block * n) };
  const V = { rows: n, columns: columns * block, values: new Float32Array(n * columns * block) };
  order.forEach(([size, k], at) => {
    if (size < 1e-9) return;
    for (let i = 0; i < U.rows; i++) U.values[i * n + at] = W[k][Math.floor(i / block)] * Math.sqrt(size);
    for (let j = 0; j < V.columns; j++) V.values[at * V.columns + j] = G[k][Math.floor(j / block)] / Math.sqrt(size);
  });
  return { sizes: Array.from({ length: n * block }, (_, i) => (i < n && order[i][0] > 1e-9 ? block * order[i][0] : 0)), U, V };
}

/**
 * Let a hand draw on the picture of `pixels`, and the arrows and Space too; changed() is called after each stroke.
 *
 * cell: frames the pixel that the keys are at. on(): whether there is something to draw on now.
 */
export function drawable({ canvas, cell, pixels, on, changed }) {
  const rows = pixels.length, columns = pixels[0].length;
  let at = [0, 0], ink = null;
  canvas.setAttribute("aria-description", "where it can be drawn on, the arrow keys move and Space sets or clears a pixel");
  const set = (i, j, to) => {
    if (pixels[i]?.[j] === undefined || pixels[i][j] === to) return;
    pixels[i][j] = to;
    changed();
  };
  const under = (event) => {
    const box = canvas.getBoundingClientRect();
    return [Math.floor(((event.clientY - box.top) / box.height) * rows), Math.floor(((event.clientX - box.left) / box.width) * columns)];
  };
  canvas.addEventListener("pointerdown", (event) => {
    const [i, j] = under(event);
    if (!on() || pixels[i]?.[j] === undefined) return;
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    set(i, j, (ink = 1 - pixels[i][j]));
  });
  canvas.addEventListener("pointermove", (event) => { if (ink !== null) set(...under(event), ink); });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { ink = null; });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], " ": [0, 0] }[event.key];
    if (!step || !on()) return;
    event.preventDefault();
    at = [Math.max(0, Math.min(rows - 1, at[0] + step[0])), Math.max(0, Math.min(columns - 1, at[1] + step[1]))];
    if (event.key === " ") set(...at, 1 - pixels[at[0]][at[1]]);
    mark();
  });
  const mark = () => {
    cell.hidden = !on() || document.activeElement !== canvas;
    const wide = canvas.clientWidth / columns, high = canvas.clientHeight / rows;
    Object.assign(cell.style, { left: `${1 + at[1] * wide}px`, top: `${1 + at[0] * high}px`, width: `${wide}px`, height: `${high}px` });
  };
  for (const name of ["focus", "blur"]) canvas.addEventListener(name, mark);
}
