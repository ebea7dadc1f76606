// Numbers as they are written.
export const whole = (value) => Math.round(value).toLocaleString("en-US");
export const times = (value) => value.toLocaleString("en-US", { maximumSignificantDigits: 3 });

/** A share as "41%", "2.4%", "0%"; never "0%" for what is not zero. */
export function percent(share) {
  if (share < 1e-6) return "0%";
  return share < 0.001 ? "under 0.1%" : `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`;
}

/** How many numbers A and B train, compared with the matrix that holds `all`. */
export function saved(numbers, all, matrix) {
  if (numbers === all) return `${whole(numbers)} numbers in A and B, as many as in ${matrix}`;
  if (numbers > all) return `${whole(numbers)} numbers in A and B, more than the ${whole(all)} in ${matrix}`;
  return `${whole(numbers)} numbers in A and B for ${whole(all)} in ${matrix}, ${times(all / numbers)} times fewer`;
}
