/** Is the service there? Asked now and then, and often while it is not. */

const STEADY_MS = 5_000;
const AWAY_MS = 1_000;
const TIMEOUT_MS = 3_000;

export class Connection {
  /** @type {boolean | null} */ #up = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;

  /**
   * @param {() => void} lost
   * @param {() => void} found At first, and each time that it is there again.
   */
  constructor(lost, found) {
    this.lost = lost;
    this.found = found;
    document.addEventListener("visibilitychange", () => document.hidden || this.check());
  }

  get up() {
    return this.#up === true;
  }

  /**
   * Ask now, and then again and again.
   *
   * @returns {Promise<boolean>} Is it there?
   */
  async check() {
    clearTimeout(this.#timer);
    const up = await ready();
    clearTimeout(this.#timer); // of a check beside this one
    this.#timer = setTimeout(() => document.hidden || this.check(), up ? STEADY_MS : AWAY_MS);
    if (up !== this.#up) {
      this.#up = up;
      if (up) this.found();
      else this.lost();
    }
    return up;
  }
}

async function ready() {
  try {
    // Open to everybody, with or without a key.
    return (await fetch("readyz", { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) })).ok;
  } catch {
    return false;
  }
}
