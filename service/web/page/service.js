/** Asking the service: the key, the one shape of its errors, and one request at a time. */

/** @import { Pixels } from "./transform.js" */

const KEY = "digits-api-key";
const TIMEOUT_MS = 10_000;
/** A request that has taken so long gives way to a newer one. */
const STALE_MS = 1_000;

/**
 * @typedef {object} Prediction
 * @property {string} label
 * @property {number[]} probabilities
 * @property {{usual: boolean, p_value: number, reason: string | null} | null} [guard]
 */

/**
 * @typedef {object} Answer
 * @property {string} model
 * @property {string} version
 * @property {Prediction[]} predictions
 * @property {Pixels} [image]
 */

/**
 * @typedef {object} Timed
 * @property {Answer} answer
 * @property {number} tookMs From the question to the answer, as the page saw it.
 * @property {number | null} batch Images in the batch that ran.
 * @property {number | null} computeMs
 */

/** @typedef {"down" | "key" | "busy" | "blank" | "refused" | "fault"} Kind */

/** An answer that is none; `message` is what the service said, in its own words. */
export class Trouble extends Error {
  /**
   * @param {Kind} kind
   * @param {string} message
   * @param {number} [retryAfterMs]
   */
  constructor(kind, message, retryAfterMs = 1000) {
    super(message);
    this.kind = kind;
    this.retryAfterMs = retryAfterMs;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (/** @type {string} */ value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** @type {Record<number, Kind>} */
const KINDS = { 401: "key", 422: "blank", 429: "busy", 504: "busy", 502: "down", 503: "down" };

/**
 * @param {string} path Beside the page's own.
 * @param {RequestInit} [options]
 * @returns {Promise<Response>} Of status 200 to 299.
 * @throws {Trouble} Of any other; or the DOMException of a request that was called off.
 */
export async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  const known = key.get();
  if (known) headers.set("x-api-key", known);
  const patience = AbortSignal.timeout(TIMEOUT_MS);
  const signal = options.signal ? AbortSignal.any([options.signal, patience]) : patience;
  let response;
  try {
    response = await fetch(path, { ...options, headers, signal, cache: "no-store" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Trouble("down", patience.aborted ? "It took longer than ten seconds." : "It cannot be reached.");
  }
  if (response.ok) return response;
  const kind = KINDS[response.status] ?? (response.status < 500 ? "refused" : "fault");
  const after = Number(response.headers.get("retry-after")) || 1;
  throw new Trouble(kind, await words(response), 1000 * after);
}

/**
 * @param {Response} response
 * @returns {Promise<string>}
 */
async function words(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error ?? text;
  } catch {
    return text || `${response.status} ${response.statusText}`; // what stands in front of it answered
  }
}

/**
 * Let the service make 28 x 28 pixels of a picture.
 *
 * @param {Blob} picture
 * @param {AbortSignal} signal
 * @returns {Promise<Answer>}
 */
export async function readPicture(picture, signal) {
  const known = ["image/png", "image/jpeg"].includes(picture.type);
  const headers = { "content-type": known ? picture.type : "application/octet-stream" };
  const response = await ask("predict/image?show=image", { method: "POST", headers, body: picture, signal });
  return response.json();
}

/**
 * @param {string} model
 * @param {Pixels | Pixels[]} pixels One image, or many.
 * @param {AbortSignal} signal
 * @returns {Promise<Timed>}
 */
export async function readPixels(model, pixels, signal) {
  const begun = performance.now();
  const response = await ask(`predict?model=${encodeURIComponent(model)}`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ images: pixels }),
    signal,
  });
  const answer = await response.json();
  const compute = /compute;dur=([\d.]+)/.exec(response.headers.get("server-timing") ?? "");
  const batch = response.headers.get("x-batch-size");
  return {
    answer,
    tookMs: performance.now() - begun,
    batch: batch === null ? null : Number(batch),
    computeMs: compute ? Number(compute[1]) : null,
  };
}

/**
 * One request at a time, and of those that wait only the newest is ever sent.
 *
 * @template Input, Output
 */
export class Newest {
  /** @type {AbortController | null} */ #running = null;
  /** @type {Input | null} */ #waiting = null;
  #begun = 0;

  /**
   * @param {(input: Input, signal: AbortSignal) => Promise<Output>} work
   * @param {(output: Output) => void} done
   * @param {(error: unknown) => void} failed
   */
  constructor(work, done, failed) {
    this.work = work;
    this.done = done;
    this.failed = failed;
  }

  get busy() {
    return this.#running !== null;
  }

  /** @param {Input} input */
  ask(input) {
    if (!this.#running) {
      this.#start(input);
      return;
    }
    this.#waiting = input;
    if (performance.now() - this.#begun > STALE_MS) this.#running.abort();
  }

  /** Call off what runs and what waits; nothing more comes of either. */
  cancel() {
    this.#waiting = null;
    this.#running?.abort();
    this.#running = null;
  }

  /** @param {Input} input */
  async #start(input) {
    const control = new AbortController();
    this.#running = control;
    this.#begun = performance.now();
    const outcome = await this.work(input, control.signal).then(
      (output) => () => this.done(output),
      (error) => () => this.failed(error),
    );
    if (this.#running !== control) return; // called off: another may run already
    this.#running = null;
    const next = this.#waiting;
    this.#waiting = null;
    if (next !== null) this.#start(next);
    if (!control.signal.aborted) outcome();
  }
}
