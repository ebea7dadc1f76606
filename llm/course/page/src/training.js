// The training loop of the page: rows split over workers, gradients added up, one step of Adam.

/** AdamW without weight decay (Loshchilov & Hutter 2019), betas 0.9 and 0.95, after clipping all gradients to a norm of 1. */
export class Adam {
  constructor(parts) {
    Object.assign(this, { parts, step: 0, first: parts.map((p) => new Float32Array(p.length)), second: parts.map((p) => new Float32Array(p.length)) });
  }

  update(gradients, rate) {
    let squares = 0;
    for (const gradient of gradients) for (const g of gradient) squares += g * g;
    const clip = Math.min(1, 1 / (Math.sqrt(squares) + 1e-6));
    this.step += 1;
    const one = 1 - 0.9 ** this.step, two = 1 - 0.95 ** this.step;
    this.parts.forEach((part, n) => {
      const gradient = gradients[n], m = this.first[n], v = this.second[n];
      for (let i = 0; i < part.length; i++) {
        const g = clip * gradient[i];
        m[i] = 0.9 * m[i] + 0.1 * g;
        v[i] = 0.95 * v[i] + 0.05 * g * g;
        part[i] -= (rate * (m[i] / one)) / (Math.sqrt(v[i] / two) + 1e-8);
      }
    });
  }
}

/** The share of the rate at a step: ten steps of warm-up, then a cosine down to a tenth, as llm/training.py has it. */
export function schedule(step, steps, warmup = 10, least = 0.1) {
  if (step < warmup) return (step + 1) / warmup;
  return least + (1 - least) * 0.5 * (1 + Math.cos((Math.PI * (step - warmup)) / Math.max(1, steps - warmup)));
}
