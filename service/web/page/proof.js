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
 * Fill a model's card of proof.
 *
 * @param {HTMLElement} element
 * @param {Card} card
 */
export function fillProof(element, card) {
  const find = (/** @type {string} */ selector) => /** @type {HTMLElement} */ (element.querySelector(selector));
  const verdicts = served(card);
  const passed = verdicts.length > 0 && verdicts.every((verdict) => verdict.passed) && card.golden.failures.length === 0;
  find(".name").textContent = card.model;
  find(".seal").textContent = passed ? "Proven" : "Not proven";
  find(".seal").dataset.passed = String(passed);
  find(".lines").append(...lines(card, verdicts));
  find(".variants summary").textContent = `${card.parity.filter((verdict) => verdict.passed).length} of ${card.parity.length} checks of its files passed`;
  find(".variants ul").append(...card.parity.map(item));
}

/**
 * @param {Card} card
 * @param {Verdict[]} verdicts Of what is served.
 * @returns {HTMLElement[]}
 */
function lines({ golden, ...card }, verdicts) {
  const accuracy = card.test_accuracy === null ? "not recorded" : `${(100 * card.test_accuracy).toFixed(2)}%`;
  const right = golden.samples - golden.wrong_labels;
  const version = line("Version", card.version, "from its weights' hash");
  version.classList.add("mono");
  return [
    line("Accuracy", accuracy, card.test_images ?? ""),
    ...verdicts.map(({ samples, scaled_error: error, tolerance, label_flips: flips }) =>
      line("Same as the checkpoint", bounded(error, tolerance.scaled_error), `${flipped(flips)} on ${count.format(samples)} images`),
    ),
    line("Golden samples", `${right} of ${golden.samples} correct`, bounded(golden.scaled_error, golden.scaled_error_bound)),
    version,
    line("Runs as", `${card.variant} on ${card.device}`, card.provider),
  ];
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
 * @param {Verdict} verdict
 * @returns {HTMLElement}
 */
function item(verdict) {
  const element = document.createElement("li");
  element.dataset.passed = String(verdict.passed);
  element.textContent = `${name(verdict)} on ${verdict.device}: error ${short(verdict.scaled_error)}, ${flipped(verdict.label_flips)}`;
  return element;
}

/**
 * @param {string} term
 * @param {string} value
 * @param {string} more
 * @returns {HTMLElement}
 */
function line(term, value, more) {
  const [row, dt, dd, small] = ["div", "dt", "dd", "small"].map((tag) => document.createElement(tag));
  [dt.textContent, dd.textContent, small.textContent] = [term, value, more];
  if (more) dd.append(" ", small);
  row.append(dt, dd);
  return row;
}

/**
 * @param {number} error
 * @param {number | null} bound
 */
function bounded(error, bound) {
  return `error ${short(error)}${bound === null ? "" : ` of ${short(bound)} allowed`}`;
}

const flipped = (/** @type {number} */ flips) => (flips === 0 ? "no label differs" : flips === 1 ? "1 label differs" : `${flips} labels differ`);

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
