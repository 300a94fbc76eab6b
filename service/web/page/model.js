/** One model: what it reads, how sure it is, how long it took; and, on a card of its own, its proof. */

/** @import { Pixels } from "./transform.js" */
/** @import { Prediction, Timed } from "./service.js" */
/** @import { Card } from "./proof.js" */
import { copied } from "./elements.js";
import { FeatureMaps } from "./features.js";
import { percent } from "./percent.js";
import { fillProof } from "./proof.js";
import { Newest, readPixels } from "./service.js";

const count = new Intl.NumberFormat("en");

export class Model {
  /** @type {Prediction | null} */ prediction = null;
  /** @type {{row: HTMLElement, share: HTMLElement}[]} */ #bars = [];

  /**
   * @param {Card} card
   * @param {() => void} changed
   * @param {(error: unknown) => void} failed
   */
  constructor(card, changed, failed) {
    this.card = card;
    this.element = copied("reading");
    this.proof = copied("proof");
    for (const each of [this.element, this.proof]) each.dataset.model = card.model;
    this.#text(".name", card.model);
    this.#text(".size", `${count.format(card.parameters)} parameters`);
    this.#find(".bars").append(...card.labels.map((label) => this.#bar(label)));
    fillProof(this.proof, card);
    const unfolded = /** @type {HTMLDetailsElement} */ (this.proof.querySelector(".features"));
    this.features = new FeatureMaps(unfolded, card.model, failed);
    this.changed = changed;
    this.newest = new Newest(
      (/** @type {Pixels} */ pixels, signal) => readPixels(card.model, pixels, signal),
      (timed) => this.#show(timed),
      failed,
    );
  }

  /** @param {Pixels | null} pixels None: nothing is drawn. */
  read(pixels) {
    this.features.show(pixels);
    if (pixels) this.newest.ask(pixels);
    else this.#empty();
  }

  /** Call off what runs; its answer comes too late for anything. */
  cancel() {
    this.newest.cancel();
    this.features.newest.cancel();
  }

  /** How likely the model holds its reading, 0 to 1. */
  get certainty() {
    return Math.max(0, ...(this.prediction?.probabilities ?? []));
  }

  /** @param {Timed} timed */
  #show({ answer, tookMs, batch, computeMs }) {
    this.prediction = answer.predictions[0];
    const { label, probabilities } = this.prediction;
    this.#text(".name", answer.version === this.card.version ? answer.model : `${answer.model} version ${answer.version}`);
    this.#text(".digit", label);
    this.#text(".confidence", `${percent(this.certainty)} sure`);
    this.#text(".time", milliseconds(tookMs));
    this.#text(".compute", computeMs === null ? "not reported" : milliseconds(computeMs));
    this.#text(".batch", batch === null ? "not reported" : count.format(batch));
    this.element.dataset.sure = String(this.certainty >= 0.5);
    this.#fill(probabilities, this.card.labels.indexOf(label));
    this.changed();
  }

  #empty() {
    this.cancel();
    this.prediction = null;
    delete this.element.dataset.sure;
    this.#text(".digit", "–");
    this.#text(".confidence", "nothing drawn yet");
    for (const figure of [".time", ".compute", ".batch"]) this.#text(figure, "–");
    this.#fill(this.card.labels.map(() => 0), -1);
    this.changed();
  }

  /**
   * @param {number[]} probabilities
   * @param {number} best
   */
  #fill(probabilities, best) {
    this.#bars.forEach(({ row, share }, i) => {
      row.style.setProperty("--share", String(probabilities[i]));
      row.dataset.best = String(i === best);
      share.textContent = best < 0 ? "" : percent(probabilities[i]);
    });
  }

  /**
   * @param {string} label
   * @returns {HTMLElement}
   */
  #bar(label) {
    const [row, digit, track, share] = ["li", "span", "span", "span"].map((tag) => document.createElement(tag));
    [digit.className, track.className, share.className] = ["label", "track", "share"];
    digit.textContent = label;
    row.append(digit, track, share);
    this.#bars.push({ row, share });
    return row;
  }

  /**
   * @param {string} selector
   * @returns {HTMLElement}
   */
  #find(selector) {
    return /** @type {HTMLElement} */ (this.element.querySelector(selector));
  }

  /**
   * @param {string} selector
   * @param {string} words
   */
  #text(selector, words) {
    this.#find(selector).textContent = words;
  }
}

/** @param {number} value */
function milliseconds(value) {
  return `${value < 10 ? value.toFixed(value < 1 ? 2 : 1) : Math.round(value)} ms`;
}
