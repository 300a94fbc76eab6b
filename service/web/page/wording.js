/** What the page says of the readings, in a line to see and in one to hear. */

/** @import { Prediction } from "./service.js" */
import { percent } from "./percent.js";

/** @typedef {{model: string, prediction: Prediction | null, certainty: number}} Reading */
/** @typedef {{verdict: "none" | "usual" | "unusual" | "unknown", words: string}} Guard */

const UNREAD = { empty: "Draw something to begin.", strokes: "Keep drawing.", picture: "No digit was found." };

/**
 * @param {Reading[]} readings
 * @param {"empty" | "strokes" | "picture"} sheet What is on it.
 * @returns {{words: string, agreed: boolean}}
 */
export function verdictWords(readings, sheet) {
  const said = readings.filter(({ prediction }) => prediction);
  if (said.length === 0) return { words: UNREAD[sheet], agreed: true };
  const labels = said.map(({ prediction }) => prediction?.label);
  if (labels.some((label) => label !== labels[0])) {
    const each = said.map(({ model, prediction }) => `${model} reads ${prediction?.label}`);
    return { words: `They disagree: ${each.join(", ")}.`, agreed: false };
  }
  const who = said.length === 1 ? `${said[0].model} reads` : said.length === 2 ? "Both read" : `All ${said.length} read`;
  return { words: `${who} ${labels[0]}.`, agreed: true };
}

/**
 * What the input guard says of the image; of several models' guards the one that is alarmed.
 *
 * @param {Reading[]} readings
 * @returns {Guard}
 */
export function guardWords(readings) {
  const predictions = readings.flatMap(({ prediction }) => prediction ?? []);
  if (predictions.length === 0) return { verdict: "none", words: "28 × 28 pixels, prepared by the service in the way of MNIST." };
  const guards = predictions.flatMap(({ guard }) => guard ?? []);
  if (guards.length === 0) {
    return { verdict: "unknown", words: "No input guard: it was not checked whether this looks like a digit." };
  }
  const guard = guards.find(({ usual }) => !usual) ?? guards[0];
  const rare = `${percent(guard.p_value)} of real digits look at least as unusual`;
  if (guard.usual) return { verdict: "usual", words: `Looks like a handwritten digit (${rare}).` };
  return { verdict: "unusual", words: `Does not look like a digit on paper: ${guard.reason ?? "unusual"} (${rare}).` };
}

/**
 * @param {Reading[]} readings
 * @param {Guard} guard
 * @returns {string} Nothing where nothing was read.
 */
export function spokenWords(readings, guard) {
  const each = readings.flatMap(({ model, prediction, certainty }) =>
    prediction ? `${model} reads ${prediction.label}, ${percent(certainty)} sure.` : [],
  );
  return [...each, ...(guard.verdict === "unusual" ? [guard.words] : [])].join(" ");
}
