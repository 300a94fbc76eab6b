/** The proof card: what GET /models says of a model, in words that a person can judge. */

/**
 * @typedef {object} Verdict
 * @property {string} format
 * @property {string} precision
 * @property {string} device
 * @property {boolean} passed
 * @property {number} scaled_error
 * @property {number} label_flips
 * @property {number | null} certificate
 * @property {number} samples
 * @property {{scaled_error: number | null}} tolerance
 */

/**
 * @typedef {object} Card
 * @property {string} model
 * @property {string} version
 * @property {string} variant
 * @property {string} device
 * @property {string} provider
 * @property {{name: string, shape: number[]}[]} inputs
 * @property {{name: string}[]} outputs
 * @property {string[]} labels
 * @property {number} parameters
 * @property {number | null} test_accuracy
 * @property {string | null} test_images
 * @property {Verdict[]} parity
 * @property {{samples: number, scaled_error: number, scaled_error_bound: number | null, wrong_labels: number, failures: string[]}} golden
 * @property {boolean} default
 */

const count = new Intl.NumberFormat("en");

/**
 * @param {Card} card
 * @returns {boolean} Does it take one image of 28 x 28 and say how likely each label is?
 */
export function readsDigits({ inputs, outputs }) {
  return inputs.length === 1 && inputs[0].name === "images" && outputs.some(({ name }) => name === "probabilities");
}

/**
 * @param {Card} card
 * @returns {HTMLElement[]} What goes into the model's section of proof.
 */
export function proof(card) {
  const { golden } = card;
  const parts = [seal(card)];
  const list = document.createElement("dl");
  const accuracy = card.test_accuracy === null ? "not recorded" : `${(100 * card.test_accuracy).toFixed(2)}%`;
  line(list, "Accuracy", accuracy, card.test_images ?? "");
  for (const verdict of served(card)) {
    const { samples, scaled_error: error, tolerance, label_flips: flips } = verdict;
    const allowed = tolerance.scaled_error === null ? "" : ` of ${short(tolerance.scaled_error)} allowed`;
    line(list, "Same as trained", `error ${short(error)}${allowed}`, `${flipped(flips)} on ${count.format(samples)} images`);
  }
  const right = golden.samples - golden.wrong_labels;
  const bound = golden.scaled_error_bound === null ? "" : ` of ${short(golden.scaled_error_bound)} allowed`;
  line(list, "Golden samples", `${right} of ${golden.samples} right`, `error ${short(golden.scaled_error)}${bound}`);
  line(list, "Version", card.version, "from its weights' hash").classList.add("mono");
  line(list, "Runs as", `${card.variant} on ${card.device}`, card.provider);
  parts.push(list, variants(card));
  return parts;
}

/**
 * @param {Card} card
 * @returns {HTMLElement}
 */
function seal(card) {
  const verdicts = served(card);
  const passed = verdicts.length > 0 && verdicts.every((verdict) => verdict.passed) && card.golden.failures.length === 0;
  const element = document.createElement("p");
  element.className = "seal";
  element.dataset.passed = String(passed);
  element.textContent = passed ? "Proven" : "Not proven";
  return element;
}

/**
 * The verdicts on the very file that is served, as the gate that made the bundle gave them.
 *
 * @param {Card} card
 * @returns {Verdict[]}
 */
function served({ parity, variant, device }) {
  const own = parity.filter((verdict) => name(verdict) === variant);
  const here = own.filter((verdict) => verdict.device === device);
  return here.length ? here : own;
}

/**
 * @param {Verdict} verdict
 * @returns {string} As an answer names it.
 */
function name({ format, precision }) {
  return precision === "fp32" ? format : `${format}-${precision}`;
}

/**
 * @param {Card} card
 * @returns {HTMLElement} All verdicts of the bundle, to be unfolded.
 */
function variants(card) {
  const details = document.createElement("details");
  const summary = document.createElement("summary");
  const passed = card.parity.filter((verdict) => verdict.passed).length;
  summary.textContent = `${passed} of ${card.parity.length} checked files passed`;
  const list = document.createElement("ul");
  for (const verdict of card.parity) {
    const item = document.createElement("li");
    item.dataset.passed = String(verdict.passed);
    item.textContent = `${name(verdict)} on ${verdict.device}: error ${short(verdict.scaled_error)}, ${flipped(verdict.label_flips)}`;
    list.append(item);
  }
  details.append(summary, list);
  return details;
}

/**
 * @param {HTMLElement} list
 * @param {string} term
 * @param {string} value
 * @param {string} more
 * @returns {HTMLElement}
 */
function line(list, term, value, more) {
  const [row, dt, dd, small] = ["div", "dt", "dd", "small"].map((tag) => document.createElement(tag));
  [dt.textContent, dd.textContent, small.textContent] = [term, value, more];
  if (more) dd.append(" ", small);
  row.append(dt, dd);
  list.append(row);
  return row;
}

const flipped = (/** @type {number} */ flips) => (flips === 0 ? "no label differs" : `${flips} labels differ`);

/** @param {number} value */
function short(value) {
  if (value === 0) return "0";
  if (value >= 0.001) return value.toPrecision(2);
  const [digits, power] = value.toExponential(1).split("e-");
  return `${digits}\u202f×\u202f10${superscript(power)}`;
}

/** @param {string} power */
function superscript(power) {
  return `⁻${[...power].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(digit)]).join("")}`;
}
