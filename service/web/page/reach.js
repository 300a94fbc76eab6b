/** How far can a drawing move and still be read? Each model's answers to every shift, as a map. */

/** @import { Move, Pixels } from "./transform.js" */
/** @import { Prediction } from "./service.js" */
import { copied } from "./elements.js";
import { Newest, readPixels, Trouble } from "./service.js";
import { moved } from "./transform.js";

const FARTHEST = 8;
const SIDE = 2 * FARTHEST + 1;
/** Hundreds of images are asked about: not while the pen still moves. */
const PATIENCE_MS = 300;
const SAME = [51, 70, 200];
const OTHER = [226, 118, 30];

/** @typedef {{image: Pixels, turn: number}} Drawn */
/** @typedef {{model: string, predictions: Prediction[]}} Found */

/** @type {Omit<Move, "turn">[]} From top left, row by row. */
const SHIFTS = Array.from({ length: SIDE * SIDE }, (_, i) => ({
  right: (i % SIDE) - FARTHEST,
  down: Math.floor(i / SIDE) - FARTHEST,
}));

export class Reach {
  /** @type {string[]} */ models = [];
  /** @type {Drawn | null} */ #drawn = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;

  /**
   * @param {HTMLDetailsElement} details
   * @param {(error: unknown) => void} failed Of what concerns more than these maps.
   */
  constructor(details, failed) {
    this.details = details;
    this.place = /** @type {HTMLElement} */ (details.querySelector(".maps"));
    this.newest = new Newest(
      (/** @type {Drawn} */ drawn, signal) => this.#ask(drawn, signal),
      (found) => this.#draw(found),
      (error) => {
        if (error instanceof Trouble && error.kind === "refused") this.#say(`The service does not accept this many images: ${error.message}.`);
        else failed(error);
      },
    );
    details.addEventListener("toggle", () => this.#refresh());
  }

  /**
   * @param {Pixels | null} image Unmoved.
   * @param {number} turn Degrees.
   */
  show(image, turn) {
    if (image && image === this.#drawn?.image && turn === this.#drawn.turn) return; // only shifted
    this.#drawn = image && { image, turn };
    this.#refresh();
  }

  #refresh() {
    clearTimeout(this.#timer);
    if (!this.details.open) return;
    const drawn = this.#drawn;
    if (drawn) {
      this.#timer = setTimeout(() => this.newest.ask(drawn), PATIENCE_MS);
    } else {
      this.newest.cancel();
      this.#say("Draw something to see the result here.");
    }
  }

  /**
   * @param {Drawn} drawn
   * @param {AbortSignal} signal
   * @returns {Promise<Found[]>}
   */
  async #ask({ image, turn }, signal) {
    const images = SHIFTS.map((shift) => moved(image, { ...shift, turn }));
    const ask = async (/** @type {string} */ model) => {
      const { answer } = await readPixels(model, images, signal);
      return { model, predictions: answer.predictions };
    };
    return Promise.all(this.models.map(ask));
  }

  /** @param {string} words */
  #say(words) {
    const paragraph = document.createElement("p");
    paragraph.textContent = words;
    this.place.replaceChildren(paragraph);
  }

  /** @param {Found[]} found */
  #draw(found) {
    this.place.replaceChildren(copied("reach-words"), ...found.map(figure));
  }
}

/**
 * @param {Found} found
 * @returns {HTMLElement}
 */
function figure({ model, predictions }) {
  const unmoved = predictions[(predictions.length - 1) / 2].label;
  const element = document.createElement("figure");
  const caption = document.createElement("figcaption");
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: SIDE, height: SIDE });
  canvas.setAttribute("aria-hidden", "true"); // its caption says the same in a number
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
  const data = context.createImageData(SIDE, SIDE);
  predictions.forEach(({ label, probabilities }, i) => {
    const certainty = Math.max(...probabilities);
    const mixed = (label === unmoved ? SAME : OTHER).map((part) => 255 - (255 - part) * certainty);
    data.data.set([...mixed, 255], 4 * i);
  });
  context.putImageData(data, 0, 0);
  const same = predictions.filter(({ label }) => label === unmoved).length;
  caption.textContent = `${model} reads ${unmoved} at ${same} of ${predictions.length} places`;
  element.append(canvas, caption);
  return element;
}
