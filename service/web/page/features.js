/** Feature maps: what a model's first layer makes of the image, asked for when unfolded. */

/** @import { Pixels } from "./transform.js" */
import { ask, Newest, Trouble } from "./service.js";

/**
 * @typedef {object} FeatureMap
 * @property {string} name
 * @property {number} height
 * @property {number} width
 * @property {number[][]} values
 */

/** @typedef {{layer: string, maps: FeatureMap[]}} Features */
/** @typedef {[number, number, number]} Colour */

/** From nothing to most, and from most negative over nothing to most positive. */
/** @type {Colour[]} */
const SEQUENTIAL = [[15, 17, 38], [62, 44, 128], [160, 58, 130], [236, 112, 84], [253, 231, 150]];
/** @type {Colour[]} */
const DIVERGING = [[33, 92, 175], [146, 190, 226], [247, 247, 247], [240, 166, 128], [178, 45, 42]];

/**
 * @param {string} model
 * @param {Pixels} pixels
 * @param {AbortSignal} signal
 * @returns {Promise<Features>}
 */
async function askFeatures(model, pixels, signal) {
  const response = await ask(`models/${encodeURIComponent(model)}/features`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ images: pixels }),
    signal,
  });
  return response.json();
}

export class FeatureMaps {
  /** @type {Pixels | null} */ #pixels = null;

  /**
   * @param {HTMLDetailsElement} details
   * @param {string} model
   * @param {(error: unknown) => void} failed Of what concerns more than feature maps.
   */
  constructor(details, model, failed) {
    this.details = details;
    this.place = /** @type {HTMLElement} */ (details.querySelector(".maps"));
    this.newest = new Newest(
      (/** @type {Pixels} */ pixels, signal) => askFeatures(model, pixels, signal),
      (features) => this.#draw(features),
      (error) => {
        if (error instanceof Trouble && error.kind === "refused") this.#say(`Nothing to show: ${error.message}.`);
        else failed(error);
      },
    );
    details.addEventListener("toggle", () => this.#refresh());
  }

  /** @param {Pixels | null} pixels */
  show(pixels) {
    this.#pixels = pixels;
    this.#refresh();
  }

  #refresh() {
    if (!this.details.open) return;
    if (this.#pixels) {
      this.newest.ask(this.#pixels);
    } else {
      this.newest.cancel();
      this.#say("Draw something to see the result here.");
    }
  }

  /** @param {string} words */
  #say(words) {
    const paragraph = document.createElement("p");
    paragraph.textContent = words;
    this.place.replaceChildren(paragraph);
  }

  /** @param {Features} features */
  #draw({ layer, maps }) {
    const all = maps.flatMap(({ values }) => values.flat());
    const [low, high] = all.reduce(([least, most], value) => [Math.min(least, value), Math.max(most, value)], [0, 0]);
    const most = Math.max(high, -low);
    const scale = low < 0 ? { stops: DIVERGING, from: -most, to: most } : { stops: SEQUENTIAL, from: 0, to: most };
    const words = document.createElement("p");
    words.textContent = `${layer}: ${maps.length} ${maps.length === 1 ? "map" : "maps"}`;
    const grid = document.createElement("div");
    grid.className = "map-grid";
    grid.append(...maps.map((map) => figure(map, scale)));
    this.place.replaceChildren(words, grid, legend(scale));
  }
}

/** @typedef {{stops: Colour[], from: number, to: number}} Scale */

/**
 * @param {FeatureMap} map
 * @param {Scale} scale
 * @returns {HTMLElement}
 */
function figure({ name, height, width, values }, scale) {
  const [element, caption] = ["figure", "figcaption"].map((tag) => document.createElement(tag));
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  canvas.setAttribute("aria-hidden", "true"); // its caption says what it is; its colours cannot be said
  fill(canvas, values.flat(), scale);
  caption.textContent = name;
  element.append(canvas, caption);
  return element;
}

/**
 * @param {Scale} scale
 * @returns {HTMLElement}
 */
function legend(scale) {
  const element = document.createElement("p");
  element.className = "legend";
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: 64, height: 1 });
  canvas.setAttribute("aria-hidden", "true");
  fill(canvas, Array.from({ length: 64 }, (_, i) => scale.from + ((scale.to - scale.from) * i) / 63), scale);
  element.append(scale.from.toPrecision(2), canvas, scale.to.toPrecision(2));
  return element;
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {number[]} values
 * @param {Scale} scale
 */
function fill(canvas, values, scale) {
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
  const data = context.createImageData(canvas.width, canvas.height);
  values.forEach((value, i) => data.data.set([...colour(value, scale), 255], 4 * i));
  context.putImageData(data, 0, 0);
}

/**
 * @param {number} value
 * @param {Scale} scale
 * @returns {Colour}
 */
function colour(value, { stops, from, to }) {
  const place = to > from ? ((value - from) / (to - from)) * (stops.length - 1) : 0;
  const below = Math.min(stops.length - 2, Math.max(0, Math.floor(place)));
  const share = place - below;
  const mix = (/** @type {number} */ i) => stops[below][i] * (1 - share) + stops[below + 1][i] * share;
  return [mix(0), mix(1), mix(2)];
}
