/** The buttons, sliders and ways to bring a picture. */

/** @import { Drawing } from "./drawing.js" */
/** @import { Move } from "./transform.js" */
import { button, element, input } from "./elements.js";

/** @type {[string, string][]} */
const SLIDERS = [["shift-x", " px"], ["shift-y", " px"], ["turn", "°"]];

/** @returns {Move} */
export function currentMove() {
  const [right, down, turn] = SLIDERS.map(([id]) => Number(input(id).value));
  return { right, down, turn };
}

/** @param {() => void} changed */
export function moveBySliders(changed) {
  const show = () => {
    for (const [id, unit] of SLIDERS) element(`${id}-out`).textContent = input(id).value.replace("-", "−") + unit;
    button("straight").disabled = SLIDERS.every(([id]) => input(id).value === "0");
    changed();
  };
  for (const [id] of SLIDERS) input(id).addEventListener("input", show);
  button("straight").addEventListener("click", () => {
    for (const [id] of SLIDERS) input(id).value = "0";
    show();
  });
}

/** @param {Drawing} drawing */
export function drawByTools(drawing) {
  button("undo").addEventListener("click", () => drawing.undo());
  button("clear").addEventListener("click", () => drawing.clear());
  input("width").addEventListener("input", () => (drawing.width = Number(input("width").value) / 100));
  document.addEventListener("keydown", (event) => {
    const undo = event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey) && !event.shiftKey;
    if (!undo || event.target instanceof HTMLInputElement) return;
    event.preventDefault();
    drawing.undo();
  });
}

/** @param {Drawing} drawing */
export function openPictures(drawing) {
  const open = (/** @type {FileList | undefined} */ files) => files?.length && drawing.open(files[0]);
  const chooser = input("file");
  chooser.addEventListener("change", () => {
    open(chooser.files ?? undefined);
    chooser.value = ""; // so that the same file can be chosen again
  });
  document.addEventListener("paste", (event) => open(event.clipboardData?.files));
  // Anywhere on the page: a picture that misses the sheet would replace the page.
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    element("paper").dataset.over = "true";
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) element("paper").dataset.over = "false";
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    element("paper").dataset.over = "false";
    open(event.dataTransfer?.files);
  });
}
