// The singular values of an update A B, and the best update of lower rank (Eckart & Young 1936).

/**
 * { s, left, right } with scale A B = left diag(s) right: left [inputs, r] and right [r, outputs], s falling.
 *
 * A = Q R by Gram-Schmidt; then R B has the singular values of A B, and (R B)(R B)^T is only r x r: its eigenvectors come from
 * Jacobi's rotations. The page needs no more than that.
 */
export function decompose({ A, B }, rank, scale = 1) {
  const inputs = A.length / rank, outputs = B.length / rank, Q = Float64Array.from(A), R = square(rank);
  for (let j = 0; j < rank; j++) {
    for (let k = 0; k < j; k++) {
      for (let i = 0; i < inputs; i++) R[k][j] += Q[i * rank + k] * Q[i * rank + j];
      for (let i = 0; i < inputs; i++) Q[i * rank + j] -= R[k][j] * Q[i * rank + k];
    }
    for (let i = 0; i < inputs; i++) R[j][j] += Q[i * rank + j] ** 2;
    R[j][j] = Math.sqrt(R[j][j]);
    for (let i = 0; i < inputs; i++) Q[i * rank + j] /= R[j][j] || 1;
  }
  const RB = Array.from({ length: rank }, (_, i) => {
    const row = new Float64Array(outputs);
    for (let k = i; k < rank; k++) for (let j = 0; j < outputs; j++) row[j] += scale * R[i][k] * B[k * outputs + j];
    return row;
  });
  const { values, vectors } = eigen(RB.map((a) => RB.map((b) => a.reduce((sum, v, i) => sum + v * b[i], 0))));
  const order = values.map((_, i) => i).sort((a, b) => values[b] - values[a]), s = order.map((i) => Math.sqrt(Math.max(0, values[i])));
  const left = new Float32Array(inputs * rank), right = new Float32Array(rank * outputs);
  order.forEach((from, to) => {
    for (let i = 0; i < inputs; i++) {
      let sum = 0;
      for (let k = 0; k < rank; k++) sum += Q[i * rank + k] * vectors[k][from];
      left[i * rank + to] = sum;
    }
    for (let j = 0; j < outputs; j++) {
      let sum = 0;
      for (let k = 0; k < rank; k++) sum += vectors[k][from] * RB[k][j];
      right[to * outputs + j] = s[to] > 1e-12 ? sum / s[to] : 0;
    }
  });
  return { s, left, right };
}

/** An adapter cut to its best rank-k part; its rank stays, and what is cut is zero. */
export function cut({ rank, scale, layers }, k) {
  const kept = Object.entries(layers).map(([path, layer]) => {
    const { s, left, right } = decompose(layer, rank, scale), outputs = right.length / rank;
    return [path, { A: left, B: right.map((v, i) => (i < k * outputs ? v * s[Math.floor(i / outputs)] : 0)) }];
  });
  return { rank, scale: 1, layers: Object.fromEntries(kept) };
}

const square = (n) => Array.from({ length: n }, () => new Float64Array(n));

/** Eigenvalues and eigenvectors (columns) of a symmetric matrix, by Jacobi's rotations. */
function eigen(G) {
  const n = G.length, V = square(n);
  V.forEach((row, i) => { row[i] = 1; });
  for (let sweep = 0; sweep < 40; sweep++)
    for (let p = 0; p < n; p++)
      for (let q = p + 1; q < n; q++) {
        if (Math.abs(G[p][q]) <= 1e-16 * Math.sqrt(Math.abs(G[p][p] * G[q][q]))) continue;
        const theta = (G[q][q] - G[p][p]) / (2 * G[p][q]), t = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.sqrt(theta * theta + 1));
        const c = 1 / Math.sqrt(t * t + 1), s = t * c;
        for (const M of [G, V]) for (let i = 0; i < n; i++) [M[i][p], M[i][q]] = [c * M[i][p] - s * M[i][q], s * M[i][p] + c * M[i][q]];
        for (let i = 0; i < n; i++) [G[p][i], G[q][i]] = [c * G[p][i] - s * G[q][i], s * G[p][i] + c * G[q][i]];
      }
  return { values: G.map((row, i) => row[i]), vectors: V };
}
