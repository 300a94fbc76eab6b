/** What the page has to say beside the readings: one notice of a kind, gone when it is over. */

/** @typedef {"down" | "back" | "busy" | "refused" | "fault"} Kind */

/** @param {string} words As a log has them, or a person. */
const sentence = (words) => words.charAt(0).toUpperCase() + words.slice(1) + (/[.!?]$/.test(words) || !words ? "" : ".");

export class Notices {
  /** @type {Map<Kind, HTMLElement>} */ #open = new Map();

  /** @param {HTMLElement} place Is read out when something comes into it. */
  constructor(place) {
    this.place = place;
  }

  /**
   * @param {Kind} kind
   * @param {string} words
   * @param {string} more What a person can do, or the service's own words.
   * @param {{seconds?: number}} [options] Gone by itself after so long.
   */
  show(kind, words, more, { seconds } = {}) {
    const text = `${words}${more}`;
    if (this.#open.get(kind)?.dataset.text === text) return; // said already
    this.close(kind);
    const [notice, strong, span] = ["div", "strong", "span"].map((tag) => document.createElement(tag));
    notice.className = "notice";
    Object.assign(notice.dataset, { kind, text });
    [strong.textContent, span.textContent] = [words, sentence(more)];
    notice.append(strong, " ", span);
    if (kind !== "down") notice.append(this.#closer(kind));
    this.#open.set(kind, notice);
    this.place.append(notice);
    if (seconds) setTimeout(() => this.#open.get(kind) === notice && this.close(kind), 1000 * seconds);
  }

  /**
   * @param {Kind} kind
   * @returns {boolean} Was there one?
   */
  close(kind) {
    this.#open.get(kind)?.remove();
    return this.#open.delete(kind);
  }

  /** @param {Kind} kind */
  #closer(kind) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "quiet", textContent: "Close" });
    button.addEventListener("click", () => this.close(kind));
    return button;
  }
}
