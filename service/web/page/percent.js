/**
 * @param {number} share 0 to 1.
 * @returns {string} In per cent; never 100% of what is only nearly certain.
 */
export function percent(share) {
  if (share > 0.999 && share < 1) return "> 99.9%";
  return share < 0.001 ? "0%" : `${(100 * share).toFixed(1)}%`;
}
