/**
 * Moving an image that the models get: shifted by pixels and turned about its centre.
 *
 * An image is 28 rows of 28 integers, 0 = ground, 255 = ink, as the service's /predict reads it.
 */

export const SIDE = 28;
const CENTRE = (SIDE - 1) / 2;

/** @typedef {number[][]} Pixels */

/**
 * @typedef {object} Move
 * @property {number} right Pixels; negative: to the left.
 * @property {number} down Pixels; negative: up.
 * @property {number} turn Degrees, clockwise.
 */

/** @type {Move} */
export const STILL = { right: 0, down: 0, turn: 0 };

/**
 * The image turned and then shifted; between pixels bilinear, and ground where nothing was.
 *
 * @param {Pixels} image
 * @param {Move} move
 * @returns {Pixels}
 */
export function moved(image, move) {
  const ground = groundOf(image);
  const angle = (move.turn * Math.PI) / 180;
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  return image.map((row, y) =>
    row.map((_, x) => {
      // Where does this pixel come from? The move, undone: first the shift, then the turn.
      const [fromX, fromY] = [x - move.right - CENTRE, y - move.down - CENTRE];
      const sourceX = cos * fromX + sin * fromY + CENTRE;
      const sourceY = cos * fromY - sin * fromX + CENTRE;
      return between(image, sourceX, sourceY, ground);
    }),
  );
}

/**
 * The middle value of the image's rim: what it is drawn on.
 *
 * @param {Pixels} image
 * @returns {number}
 */
export function groundOf(image) {
  const last = image.length - 1;
  const rim = [...image[0], ...image[last], ...image.map((row) => row[0]), ...image.map((row) => row[last])];
  return rim.sort((a, b) => a - b)[rim.length >> 1];
}

/**
 * @param {Pixels} image
 * @param {number} x
 * @param {number} y
 * @param {number} ground
 * @returns {number}
 */
function between(image, x, y, ground) {
  const [left, top] = [Math.floor(x), Math.floor(y)];
  const [shareX, shareY] = [x - left, y - top];
  const at = (/** @type {number} */ column, /** @type {number} */ row) => image[row]?.[column] ?? ground;
  const upper = at(left, top) * (1 - shareX) + at(left + 1, top) * shareX;
  const lower = at(left, top + 1) * (1 - shareX) + at(left + 1, top + 1) * shareX;
  return Math.round(upper * (1 - shareY) + lower * shareY);
}

/**
 * Paint an image into a canvas of 28 x 28.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {Pixels | null} image None: all ground.
 */
export function paint(canvas, image) {
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
  const data = context.createImageData(SIDE, SIDE);
  for (let i = 0; i < SIDE * SIDE; i += 1) {
    const value = image ? image[Math.floor(i / SIDE)][i % SIDE] : 0;
    data.data.set([value, value, value, 255], 4 * i);
  }
  context.putImageData(data, 0, 0);
}
