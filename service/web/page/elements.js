/** The page's elements by their ids, and work that waits for the next picture on the screen. */

/**
 * @param {string} id
 * @returns {HTMLElement}
 */
export function element(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no element ${id}`);
  return found;
}

/** @param {string} id */
export const button = (id) => /** @type {HTMLButtonElement} */ (element(id));

/** @param {string} id */
export const input = (id) => /** @type {HTMLInputElement} */ (element(id));

/** @param {string} id */
export const canvas = (id) => /** @type {HTMLCanvasElement} */ (element(id));

/** @param {string} id */
export const dialog = (id) => /** @type {HTMLDialogElement} */ (element(id));

/**
 * @param {string} id Of a template.
 * @returns {HTMLElement} A copy of what it holds.
 */
export function copied(id) {
  const { content } = /** @type {HTMLTemplateElement} */ (element(id));
  return /** @type {HTMLElement} */ (content.firstElementChild?.cloneNode(true));
}

/**
 * @param {() => void} work
 * @returns {() => void} Asks for it; however often within a frame, it is done once.
 */
export function framed(work) {
  let frame = 0;
  return () => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(work);
  };
}
