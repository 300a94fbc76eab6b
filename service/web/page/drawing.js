/** The sheet: strokes by mouse, finger, pen or keyboard, or a picture; undone step by step. */

const SIDE = 560;
/** What is sent: four times what the service scales a digit to and more, and quickly packed. */
const SENT_SIDE = 280;
const PAPER = "#ffffff";
const INK = "#14161a";
const STEP = 1 / 28;
const LONG_STEP = 4 / 28;

/** @typedef {{x: number, y: number}} Point On the sheet, both 0 to 1. */
/** @typedef {{kind: "stroke", width: number, points: Point[]}} Stroke Width: share of the sheet. */
/** @typedef {{kind: "picture", file: File, bitmap: ImageBitmap | null}} Picture */
/** @typedef {{kind: "fresh", asked: boolean}} Fresh A new sheet, asked for or begun by a stroke. */

/** @type {Record<string, [number, number]>} */
const ARROWS = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };

export class Drawing {
  /** @type {(Stroke | Picture | Fresh)[]} */ #steps = [];
  /** @type {Stroke | null} */ #stroke = null;
  /** @type {Point} */ #pen = { x: 0.5, y: 0.25 };
  /** @type {number | null} */ #pointer = null;
  #penDown = false;
  #byKeys = false;
  width = 0.075;

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {HTMLElement} cursor Shows where the keyboard's pen is.
   * @param {() => void} changed
   * @param {(words: string) => void} say Of the keyboard's pen, for who does not see it.
   */
  constructor(canvas, cursor, changed, say) {
    this.canvas = canvas;
    this.cursor = cursor;
    this.changed = changed;
    this.say = say;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    canvas.addEventListener("pointerdown", (event) => this.#begin(event));
    canvas.addEventListener("pointermove", (event) => this.#go(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => this.#end());
    canvas.addEventListener("keydown", (event) => this.#press(event));
    canvas.addEventListener("focus", () => this.#showCursor(canvas.matches(":focus-visible")));
    canvas.addEventListener("blur", () => this.#liftPen());
    this.#render();
  }

  /** The picture or the strokes that are on the sheet now. */
  get #shown() {
    const start = this.#steps.findLastIndex((step) => step.kind !== "stroke");
    const first = this.#steps[start];
    const strokes = /** @type {Stroke[]} */ (this.#steps.slice(start + 1));
    return { picture: first?.kind === "picture" ? first : null, strokes };
  }

  /** @returns {"empty" | "strokes" | "picture"} */
  get state() {
    const { picture, strokes } = this.#shown;
    if (picture) return "picture";
    return strokes.length ? "strokes" : "empty";
  }

  get empty() {
    return this.state === "empty";
  }

  get undoable() {
    return this.#steps.length > 0;
  }

  undo() {
    const gone = this.#steps.pop();
    const last = this.#steps.at(-1);
    // A sheet that a stroke began by itself goes with that stroke.
    if (gone?.kind === "stroke" && last?.kind === "fresh" && !last.asked) this.#steps.pop();
    this.#stroke = null;
    this.#penDown = false;
    this.#update();
  }

  clear() {
    if (!this.empty) this.#steps.push({ kind: "fresh", asked: true });
    this.#stroke = null;
    this.#liftPen();
    this.#update();
  }

  /**
   * Lay a picture on the sheet; the service reads the file itself, the sheet only shows it.
   *
   * @param {File} file
   */
  async open(file) {
    const bitmap = await createImageBitmap(file).catch(() => null);
    this.#steps.push({ kind: "picture", file, bitmap });
    this.#update();
  }

  /** @returns {Promise<Blob>} What the service shall read: the picture's file, or the strokes. */
  async content() {
    const { picture } = this.#shown;
    if (picture) return picture.file;
    const small = new OffscreenCanvas(SENT_SIDE, SENT_SIDE);
    const context = /** @type {OffscreenCanvasRenderingContext2D} */ (small.getContext("2d"));
    context.drawImage(this.canvas, 0, 0, SENT_SIDE, SENT_SIDE);
    return small.convertToBlob({ type: "image/png" });
  }

  /** @param {PointerEvent} event */
  #begin(event) {
    if (event.button !== 0 || this.#pointer !== null) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.#pointer = event.pointerId;
    this.#penDown = false;
    this.#showCursor(false);
    this.#startStroke(this.#place(event));
  }

  /** @param {PointerEvent} event */
  #go(event) {
    if (event.pointerId !== this.#pointer) return;
    const passed = event.getCoalescedEvents?.() ?? [];
    for (const each of passed.length ? passed : [event]) this.#stroke?.points.push(this.#place(each));
    this.#update();
  }

  #end() {
    this.#pointer = null;
    this.#stroke = null;
  }

  /**
   * @param {PointerEvent} event
   * @returns {Point}
   */
  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  }

  /** @param {Point} point */
  #startStroke(point) {
    if (this.#shown.picture) this.#steps.push({ kind: "fresh", asked: false });
    this.#stroke = { kind: "stroke", width: this.width, points: [point] };
    this.#steps.push(this.#stroke);
    this.#update();
  }

  /** @param {KeyboardEvent} event */
  #press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    this.#byKeys = true;
    const arrow = ARROWS[event.key];
    if (arrow) this.#movePen(arrow, event.shiftKey ? LONG_STEP : STEP);
    else if (event.key === " ") this.#togglePen();
    else if (event.key === "Escape") this.#liftPen();
    else if (event.key === "Delete" || event.key === "Backspace") this.clear();
    else return;
    event.preventDefault();
  }

  /**
   * @param {[number, number]} arrow
   * @param {number} step
   */
  #movePen([right, down], step) {
    const inside = (/** @type {number} */ value) => Math.min(1, Math.max(0, value));
    this.#pen = { x: inside(this.#pen.x + right * step), y: inside(this.#pen.y + down * step) };
    this.#showCursor();
    if (!this.#penDown) return;
    if (!this.#stroke) this.#startStroke(this.#pen);
    this.#stroke?.points.push(this.#pen);
    this.#update();
  }

  #togglePen() {
    if (this.#penDown) {
      this.#liftPen();
      return;
    }
    this.#penDown = true;
    this.#startStroke(this.#pen);
    this.#showCursor();
    this.say("Pen down");
  }

  #liftPen() {
    if (this.#penDown) this.say("Pen up");
    this.#penDown = false;
    if (this.#pointer === null) this.#stroke = null;
    this.#showCursor();
  }

  /** @param {boolean} [byKeys] A mouse shows by itself where it is. */
  #showCursor(byKeys = this.#byKeys) {
    this.#byKeys = byKeys;
    this.cursor.hidden = !byKeys || document.activeElement !== this.canvas;
    this.cursor.style.setProperty("--x", String(this.#pen.x));
    this.cursor.style.setProperty("--y", String(this.#pen.y));
    this.cursor.dataset.down = String(this.#penDown);
  }

  #update() {
    this.#render();
    this.changed();
  }

  #render() {
    const { context } = this;
    const { picture, strokes } = this.#shown;
    context.fillStyle = PAPER;
    context.fillRect(0, 0, SIDE, SIDE);
    if (picture) this.#renderPicture(picture);
    Object.assign(context, { lineCap: "round", lineJoin: "round", strokeStyle: INK });
    for (const stroke of strokes) this.#renderStroke(stroke);
  }

  /** @param {Picture} picture */
  #renderPicture({ bitmap, file }) {
    if (bitmap) {
      const scale = SIDE / Math.max(bitmap.width, bitmap.height);
      const [width, height] = [bitmap.width * scale, bitmap.height * scale];
      this.context.drawImage(bitmap, (SIDE - width) / 2, (SIDE - height) / 2, width, height);
      return;
    }
    Object.assign(this.context, { fillStyle: "#5a606c", font: "28px sans-serif", textAlign: "center" });
    this.context.fillText(file.name.slice(0, 36), SIDE / 2, SIDE / 2, SIDE - 40);
  }

  /** @param {Stroke} stroke */
  #renderStroke({ points, width }) {
    const { context } = this;
    const at = points.map(({ x, y }) => [x * SIDE, y * SIDE]);
    context.lineWidth = width * SIDE;
    context.beginPath();
    context.moveTo(at[0][0], at[0][1]);
    // Through the middles, bent towards the points: a hand draws no corners.
    for (let i = 1; i < at.length - 1; i += 1) {
      const middle = [(at[i][0] + at[i + 1][0]) / 2, (at[i][1] + at[i + 1][1]) / 2];
      context.quadraticCurveTo(at[i][0], at[i][1], middle[0], middle[1]);
    }
    const last = at[at.length - 1];
    // A line of no length is not drawn: a dot is a hair's breadth.
    context.lineTo(last[0] + (at.length === 1 ? 0.1 : 0), last[1]);
    context.stroke();
  }
}
