// Matrices as { rows, columns, values }, row by row: as much of their arithmetic as pictures need.

/** The first rows and columns; zeros where there are no more. */
export function corner(matrix, rows, columns) {
  const values = new Float32Array(rows * columns), wide = Math.min(columns, matrix.columns);
  for (let i = 0; i < Math.min(rows, matrix.rows); i++)
    values.set(matrix.values.subarray(i * matrix.columns, i * matrix.columns + wide), i * columns);
  return { rows, columns, values };
}

/** scale * A @ B */
export function product(A, B, scale = 1) {
  const values = new Float32Array(A.rows * B.columns);
  for (let i = 0; i < A.rows; i++)
    for (let k = 0; k < A.columns; k++) {
      const a = scale * A.values[i * A.columns + k];
      if (a === 0) continue;
      for (let j = 0; j < B.columns; j++) values[i * B.columns + j] += a * B.values[k * B.columns + j];
    }
  return { rows: A.rows, columns: B.columns, values };
}

/** M + scale * N */
export function plus(M, N, scale = 1) {
  return { ...M, values: M.values.map((v, i) => v + scale * N.values[i]) };
}

/** The square root of the sum of the squared entries. */
export const size = ({ values }) => Math.sqrt(values.reduce((sum, v) => sum + v * v, 0));

export const largest = ({ values }) => values.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
