// The arithmetic of the page: float32 matrices in one memory, four numbers at a time (WebAssembly SIMD).
// A pointer is an offset in bytes; sizes count floats. Every width that the model has is a multiple of eight.

// C [M, N] = beta C + alpha A [M, K] B [K, N]. B lies in panels of eight columns: row k of panel p begins at
// B + p * panel + k * ldb. A row-major matrix has ldb = its width and panel = 8; a packed one ldb = 8 and panel = 8 K.
export function matmul(
  A: usize, lda: i32, B: usize, ldb: i32, panel: i32, C: usize, ldc: i32, M: i32, N: i32, K: i32, alpha: f32, beta: f32,
): void {
  const rowA = <usize>lda << 2, rowB = <usize>ldb << 2, rowC = <usize>ldc << 2;
  for (let top = 0; top < M; top += 64) { // 64 rows of A stay in the cache while B passes by
    const end = min(top + 64, M);
    for (let p = 0; p < N >> 3; p++) {
      const panelB = B + (<usize>p * <usize>panel << 2);
      let m = top;
      for (; m + 4 <= end; m += 4) { // four rows times eight columns in eight registers
        let a0 = A + <usize>m * rowA, a1 = a0 + rowA, a2 = a1 + rowA, a3 = a2 + rowA, b = panelB;
        let x0 = f32x4.splat(0), y0 = x0, x1 = x0, y1 = x0, x2 = x0, y2 = x0, x3 = x0, y3 = x0;
        for (let k = 0; k < K; k++) {
          const left = v128.load(b), right = v128.load(b, 16);
          let s = v128.load_splat<f32>(a0);
          x0 = f32x4.add(x0, f32x4.mul(s, left)); y0 = f32x4.add(y0, f32x4.mul(s, right));
          s = v128.load_splat<f32>(a1);
          x1 = f32x4.add(x1, f32x4.mul(s, left)); y1 = f32x4.add(y1, f32x4.mul(s, right));
          s = v128.load_splat<f32>(a2);
          x2 = f32x4.add(x2, f32x4.mul(s, left)); y2 = f32x4.add(y2, f32x4.mul(s, right));
          s = v128.load_splat<f32>(a3);
          x3 = f32x4.add(x3, f32x4.mul(s, left)); y3 = f32x4.add(y3, f32x4.mul(s, right));
          a0 += 4; a1 += 4; a2 += 4; a3 += 4; b += rowB;
        }
        let c = C + <usize>m * rowC + (<usize>p << 5);
        put(c, x0, y0, alpha, beta); c += rowC;
        put(c, x1, y1, alpha, beta); c += rowC;
        put(c, x2, y2, alpha, beta); c += rowC;
        put(c, x3, y3, alpha, beta);
      }
      for (; m < end; m++) {
        let a = A + <usize>m * rowA, b = panelB, x = f32x4.splat(0), y = x;
        for (let k = 0; k < K; k++) {
          const s = v128.load_splat<f32>(a);
          x = f32x4.add(x, f32x4.mul(s, v128.load(b)));
          y = f32x4.add(y, f32x4.mul(s, v128.load(b, 16)));
          a += 4; b += rowB;
        }
        put(C + <usize>m * rowC + (<usize>p << 5), x, y, alpha, beta);
      }
    }
  }
}

// @ts-ignore: decorator
@inline function put(c: usize, x: v128, y: v128, alpha: f32, beta: f32): void {
  x = f32x4.mul(x, f32x4.splat(alpha));
  y = f32x4.mul(y, f32x4.splat(alpha));
  if (beta != 0) {
    x = f32x4.add(x, f32x4.mul(f32x4.splat(beta), v128.load(c)));
    y = f32x4.add(y, f32x4.mul(f32x4.splat(beta), v128.load(c, 16)));
  }
  v128.store(c, x);
  v128.store(c, y, 16);
}

// e to the x in four lanes: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes' expf), 1e-7 of the result
// @ts-ignore: decorator
@inline function exp4(x: v128): v128 {
  x = f32x4.max(f32x4.min(x, f32x4.splat(88)), f32x4.splat(-87));
  const n = f32x4.nearest(f32x4.mul(x, f32x4.splat(1.44269504)));
  let r = f32x4.sub(x, f32x4.mul(n, f32x4.splat(0.693359375)));
  r = f32x4.sub(r, f32x4.mul(n, f32x4.splat(-2.12194440e-4)));
  let y = f32x4.splat(1.9875691500e-4);
  y = f32x4.add(f32x4.mul(y, r), f32x4.splat(1.3981999507e-3));
  y = f32x4.add(f32x4.mul(y, r), f32x4.splat(8.3334519073e-3));
  y = f32x4.add(f32x4.mul(y, r), f32x4.splat(4.1665795894e-2));
  y = f32x4.add(f32x4.mul(y, r), f32x4.splat(1.6666665459e-1));
  y = f32x4.add(f32x4.mul(y, r), f32x4.splat(5.0000001201e-1));
  y = f32x4.add(f32x4.add(f32x4.mul(f32x4.mul(y, r), r), r), f32x4.splat(1));
  return f32x4.mul(y, i32x4.shl(i32x4.add(i32x4.trunc_sat_f32x4_s(n), i32x4.splat(127)), 23));
}

// @ts-ignore: decorator
@inline function sum4(v: v128): f32 {
  return f32x4.extract_lane(v, 0) + f32x4.extract_lane(v, 1) + f32x4.extract_lane(v, 2) + f32x4.extract_lane(v, 3);
}

// B [N, M] = A [M, N] transposed
export function transpose(A: usize, lda: i32, B: usize, ldb: i32, M: i32, N: i32): void {
  for (let m = 0; m < M; m++)
    for (let n = 0; n < N; n++) store<f32>(B + (<usize>(n * ldb + m) << 2), load<f32>(A + (<usize>(m * lda + n) << 2)));
}

// each of M rows of Y gets b added
export function addBias(Y: usize, b: usize, M: i32, N: i32): void {
  const bytes = <usize>N << 2;
  for (let m = 0; m < M; m++)
    for (let i: usize = 0; i < bytes; i += 16) {
      const y = Y + <usize>m * bytes + i;
      v128.store(y, f32x4.add(v128.load(y), v128.load(b + i)));
    }
}

// LayerNorm (Ba et al. 2016): H = (X - mean) / sd, Y = H gain + bias. H and S = 1 / sd stay for the way back.
export function norm(X: usize, gain: usize, bias: usize, Y: usize, H: usize, S: usize, M: i32, D: i32): void {
  const bytes = <usize>D << 2, count = <f32>D;
  for (let m = 0; m < M; m++) {
    const row = <usize>m * bytes;
    let total = f32x4.splat(0);
    for (let i: usize = 0; i < bytes; i += 16) total = f32x4.add(total, v128.load(X + row + i));
    const mean = f32x4.splat(sum4(total) / count);
    total = f32x4.splat(0);
    for (let i: usize = 0; i < bytes; i += 16) {
      const d = f32x4.sub(v128.load(X + row + i), mean);
      total = f32x4.add(total, f32x4.mul(d, d));
    }
    const inverse: f32 = 1 / sqrt<f32>(sum4(total) / count + 1e-5), by = f32x4.splat(inverse);
    store<f32>(S + (<usize>m << 2), inverse);
    for (let i: usize = 0; i < bytes; i += 16) {
      const h = f32x4.mul(f32x4.sub(v128.load(X + row + i), mean), by);
      v128.store(H + row + i, h);
      v128.store(Y + row + i, f32x4.add(f32x4.mul(h, v128.load(gain + i)), v128.load(bias + i)));
    }
  }
}

// dX += S (g - mean(g) - H mean(g H)), where g = dY gain
export function normBack(dY: usize, gain: usize, H: usize, S: usize, dX: usize, M: i32, D: i32): void {
  const bytes = <usize>D << 2, count = <f32>D;
  for (let m = 0; m < M; m++) {
    const row = <usize>m * bytes;
    let ofG = f32x4.splat(0), ofGH = ofG;
    for (let i: usize = 0; i < bytes; i += 16) {
      const g = f32x4.mul(v128.load(dY + row + i), v128.load(gain + i));
      ofG = f32x4.add(ofG, g);
      ofGH = f32x4.add(ofGH, f32x4.mul(g, v128.load(H + row + i)));
    }
    const a = f32x4.splat(sum4(ofG) / count), b = f32x4.splat(sum4(ofGH) / count);
    const s = f32x4.splat(load<f32>(S + (<usize>m << 2)));
    for (let i: usize = 0; i < bytes; i += 16) {
      const g = f32x4.mul(v128.load(dY + row + i), v128.load(gain + i)), h = v128.load(H + row + i);
      const d = f32x4.mul(s, f32x4.sub(f32x4.sub(g, a), f32x4.mul(h, b)));
      v128.store(dX + row + i, f32x4.add(v128.load(dX + row + i), d));
    }
  }
}

// GELU's tanh form (Hendrycks & Gimpel 2016) is x sigmoid(2u) with 2u = sqrt(8 / pi) (x + 0.044715 x^3)
// @ts-ignore: decorator
@inline function twiceU(x: v128): v128 {
  const cubic = f32x4.add(f32x4.splat(1), f32x4.mul(f32x4.splat(0.044715), f32x4.mul(x, x)));
  return f32x4.mul(f32x4.splat(1.5957691216), f32x4.mul(x, cubic));
}
// @ts-ignore: decorator
@inline function sigmoid(x: v128): v128 {
  return f32x4.div(f32x4.splat(1), f32x4.add(f32x4.splat(1), exp4(f32x4.neg(x))));
}
export function gelu(X: usize, Y: usize, n: i32): void {
  for (let i: usize = 0, end = <usize>n << 2; i < end; i += 16) {
    const x = v128.load(X + i);
    v128.store(Y + i, f32x4.mul(x, sigmoid(twiceU(x))));
  }
}
// dY becomes dX
export function geluBack(X: usize, dY: usize, n: i32): void {
  const one = f32x4.splat(1);
  for (let i: usize = 0, end = <usize>n << 2; i < end; i += 16) {
    const x = v128.load(X + i), s = sigmoid(twiceU(x));
    const slope = f32x4.mul(f32x4.splat(1.5957691216), f32x4.add(one, f32x4.mul(f32x4.splat(0.134145), f32x4.mul(x, x))));
    const d = f32x4.add(s, f32x4.mul(f32x4.mul(x, slope), f32x4.mul(s, f32x4.sub(one, s))));
    v128.store(dY + i, f32x4.mul(v128.load(dY + i), d));
  }
}

// Causal attention (Vaswani et al. 2017) of R rows of T tokens; QKV [R T, 3 D]. P [R heads, T, T] stays for the way back.
// spare: 2 T max(T, d) floats.
export function attend(QKV: usize, Y: usize, P: usize, spare: usize, R: i32, T: i32, D: i32, heads: i32): void {
  const d = D / heads, wide = 3 * D, scale: f32 = 1 / sqrt<f32>(<f32>d), bytes = <usize>T << 2;
  for (let r = 0; r < R; r++)
    for (let h = 0; h < heads; h++) {
      const q = QKV + (<usize>(r * T * wide + h * d) << 2), k = q + (<usize>D << 2), v = k + (<usize>D << 2);
      const p = P + (<usize>((r * heads + h) * T * T) << 2);
      transpose(k, wide, spare, T, T, d);
      matmul(q, wide, spare, T, 8, p, T, T, T, d, scale, 0);
      for (let i = 0; i < T; i++) {
        const row = p + <usize>i * bytes;
        let most: f32 = -1e30;
        for (let j = 0; j <= i; j++) most = max(most, load<f32>(row + (<usize>j << 2)));
        for (let j = i + 1; j < T; j++) store<f32>(row + (<usize>j << 2), -1e30); // no token sees a later one
        let total = f32x4.splat(0);
        for (let j: usize = 0; j < bytes; j += 16) {
          const e = exp4(f32x4.sub(v128.load(row + j), f32x4.splat(most)));
          v128.store(row + j, e);
        }
        for (let j = i + 1; j < T; j++) store<f32>(row + (<usize>j << 2), 0);
        for (let j: usize = 0; j < bytes; j += 16) total = f32x4.add(total, v128.load(row + j));
        const by = f32x4.splat(1 / sum4(total));
        for (let j: usize = 0; j < bytes; j += 16) v128.store(row + j, f32x4.mul(v128.load(row + j), by));
      }
      matmul(p, T, v, wide, 8, Y + (<usize>(r * T * D + h * d) << 2), D, T, d, T, 1, 0);
    }
}
// dV = P^T dY; dS = P (dP - sum(P dP)) with dP = dY V^T; dQ = scale dS K; dK = scale dS^T Q
export function attendBack(QKV: usize, dY: usize, P: usize, dQKV: usize, spare: usize, R: i32, T: i32, D: i32, heads: i32): void {
  const d = D / heads, wide = 3 * D, bytes = <usize>T << 2, dS = spare + (<usize>(T * max(T, d)) << 2);
  const scale = f32x4.splat(1 / sqrt<f32>(<f32>d));
  for (let r = 0; r < R; r++)
    for (let h = 0; h < heads; h++) {
      const at = <usize>(r * T * wide + h * d) << 2, next = <usize>D << 2;
      const q = QKV + at, k = q + next, v = k + next, dQ = dQKV + at, dK = dQ + next, dV = dK + next;
      const p = P + (<usize>((r * heads + h) * T * T) << 2), dy = dY + (<usize>(r * T * D + h * d) << 2);
      transpose(p, T, spare, T, T, T);
      matmul(spare, T, dy, D, 8, dV, wide, T, d, T, 1, 0);
      transpose(v, wide, spare, T, T, d);
      matmul(dy, D, spare, T, 8, dS, T, T, T, d, 1, 0);
      for (let i = 0; i < T; i++) {
        const a = p + <usize>i * bytes, b = dS + <usize>i * bytes;
        let total = f32x4.splat(0);
        for (let j: usize = 0; j < bytes; j += 16) total = f32x4.add(total, f32x4.mul(v128.load(a + j), v128.load(b + j)));
        const mean = f32x4.splat(sum4(total));
        for (let j: usize = 0; j < bytes; j += 16)
          v128.store(b + j, f32x4.mul(scale, f32x4.mul(v128.load(a + j), f32x4.sub(v128.load(b + j), mean))));
      }
      matmul(dS, T, k, wide, 8, dQ, wide, T, d, T, 1, 0);
      transpose(dS, T, spare, T, T, T);
      matmul(spare, T, q, wide, 8, dK, wide, T, d, T, 1, 0);
    }
}

// One block of N words (of ld places) of a softmax that sees a few words at a time (Milakov & Gimelshein 2018).
// Per row: most is the largest logit so far, Z the sum of exp(logit - most), and H [M, D] what has been gathered with those
// weights. A new largest logit shrinks Z and H; then the logits become exp(logit - most), and Z grows by their sum.
export function softmaxBlock(logits: usize, most: usize, Z: usize, H: usize, M: i32, N: i32, ld: i32, D: i32): void {
  for (let m = 0; m < M; m++) {
    const row = logits + (<usize>(m * ld) << 2), at = <usize>m << 2;
    for (let j = N; j < ld; j++) store<f32>(row + (<usize>j << 2), -1e30);
    let tops = f32x4.splat(-1e30);
    const bytes = <usize>ld << 2;
    for (let j: usize = 0; j < bytes; j += 16) tops = f32x4.max(tops, v128.load(row + j));
    const before = load<f32>(most + at);
    const now = max(before, max(max(f32x4.extract_lane(tops, 0), f32x4.extract_lane(tops, 1)), max(f32x4.extract_lane(tops, 2), f32x4.extract_lane(tops, 3))));
    const shrink: f32 = before < -1e29 ? 0 : f32x4.extract_lane(exp4(f32x4.splat(before - now)), 0);
    const h = H + (<usize>(m * D) << 2);
    for (let i: usize = 0; i < <usize>D << 2; i += 16) v128.store(h + i, f32x4.mul(v128.load(h + i), f32x4.splat(shrink)));
    let total = f32x4.splat(0);
    for (let j: usize = 0; j < bytes; j += 16) {
      const e = exp4(f32x4.sub(v128.load(row + j), f32x4.splat(now)));
      v128.store(row + j, e);
    }
    for (let j = N; j < ld; j++) store<f32>(row + (<usize>j << 2), 0);
    for (let j: usize = 0; j < bytes; j += 16) total = f32x4.add(total, v128.load(row + j));
    store<f32>(most + at, now);
    store<f32>(Z + at, load<f32>(Z + at) * shrink + sum4(total));
  }
}
