/**
 * The page: a drawing becomes 28 x 28 pixels on the service, is moved here, and read by each model.
 *
 * drawing -> POST predict/image?show=image -> pixels -> moved -> POST predict?model=NAME, each model
 */

/** @import { Pixels } from "./transform.js" */
/** @import { Card } from "./proof.js" */
import { Connection } from "./connection.js";
import { currentMove, drawByTools, moveBySliders, openPictures } from "./controls.js";
import { Drawing } from "./drawing.js";
import { button, canvas, dialog, element, framed, input } from "./elements.js";
import { Model } from "./model.js";
import { Notices } from "./notices.js";
import { readsDigits } from "./proof.js";
import { Reach } from "./reach.js";
import { ask, key, Newest, readPicture, Trouble } from "./service.js";
import { moved, paint } from "./transform.js";
import { guardWords, spokenWords, verdictWords } from "./wording.js";

const SPOKEN_AFTER_MS = 900;
const AGAIN_AFTER_MS = 1000;

/** @type {Pixels | null} As the service made them of the drawing. */
let pixels = null;
/** @type {Model[]} */
let models = [];
/** Does a change wait for the next picture on the screen? */
let stirred = false;
/** @type {ReturnType<typeof setTimeout> | undefined} */
let looking;
/** @type {ReturnType<typeof setTimeout> | undefined} */
let speaking;

const notices = new Notices(element("notices"));
const connection = new Connection(lost, found);
const reach = new Reach(/** @type {HTMLDetailsElement} */ (element("reach")), failed);
const drawing = new Drawing(canvas("drawing"), element("pen"), stirring(drawingChanged), (words) => {
  element("pen-words").textContent = words;
});
const pictures = new Newest(
  (/** @type {Drawing} */ sheet, signal) => sheet.content().then((picture) => readPicture(picture, signal)),
  (answer) => {
    notices.close("refused");
    pixels = answer.image ?? null;
    askModels();
  },
  (error) => {
    const unread = error instanceof Trouble && ["refused", "blank"].includes(error.kind);
    // What was read before is no longer what lies on the sheet.
    if (unread) forgetReading();
    // The pen's first touch is too little to read, and nothing to complain of.
    if (!unread || error.kind === "refused" || drawing.state === "picture") failed(error);
  },
);

/**
 * @param {() => void} work
 * @returns {() => void} Asks for it, and tells that there is something to come.
 */
function stirring(work) {
  const soon = framed(() => {
    stirred = false;
    work();
    settle();
  });
  return () => {
    stirred = true;
    settle();
    soon();
  };
}

/** Tell whether what is shown is the last word on what is drawn. */
function settle() {
  const busy = stirred || pictures.busy || models.some((model) => model.newest.busy);
  element("readings").setAttribute("aria-busy", String(busy));
}

function drawingChanged() {
  element("hint").hidden = !drawing.empty;
  button("clear").disabled = drawing.empty;
  button("undo").disabled = !drawing.undoable;
  if (drawing.empty) {
    pictures.cancel();
    notices.close("refused");
    forgetReading();
  } else if (connection.up) {
    pictures.ask(drawing);
  }
}

function forgetReading() {
  pixels = null;
  askModels();
}

/** Show the image as it was moved, and ask every model about it. */
function askModels() {
  const given = pixels && moved(pixels, currentMove());
  paint(canvas("given"), given);
  const what = given ? "28 by 28 pixels of your drawing" : "28 by 28 pixels, nothing drawn yet";
  canvas("given").setAttribute("aria-label", what);
  for (const model of models) model.read(given);
  reach.show(pixels, currentMove().turn);
}

/** Say in a line what all models read, and what the guard thinks of the image. */
function summarise() {
  const readings = models.map(({ card, prediction, certainty }) => ({ model: card.model, prediction, certainty }));
  const { words, agreed } = verdictWords(readings, drawing.state);
  element("verdict").textContent = words;
  element("verdict").dataset.agreed = String(agreed);
  const guard = guardWords(readings);
  element("guard").textContent = guard.words;
  element("guard").dataset.verdict = guard.verdict;
  settle();
  clearTimeout(speaking);
  // Not each of dozens of readings a second: the one that stays.
  speaking = setTimeout(() => (element("spoken").textContent = spokenWords(readings, guard)), SPOKEN_AFTER_MS);
}

/** @param {unknown} error */
function failed(error) {
  settle();
  if (!(error instanceof Trouble)) throw error;
  if (error.kind === "key") askForKey(error.message);
  else if (error.kind === "busy") askAgain("The service is busy; your drawing will be sent again.", error);
  else if (error.kind === "down") brokenOff(error);
  else if (["refused", "blank"].includes(error.kind)) notices.show("refused", "The service cannot read this.", error.message);
  else notices.show("fault", "Something went wrong in the service, not with your drawing.", error.message);
}

/**
 * @param {string} words
 * @param {Trouble} error
 */
function askAgain(words, error) {
  notices.show("busy", words, error.message);
  setTimeout(() => {
    notices.close("busy");
    drawingChanged();
  }, error.retryAfterMs);
}

/** @param {Trouble} error */
async function brokenOff(error) {
  if (!(await connection.check())) return; // it is away, and that is said already
  if (drawing.state !== "picture") {
    askAgain("There was no answer; trying again.", error);
    return;
  }
  const more = "The service is running, but closed the connection. The picture may be too large: try a smaller one.";
  notices.show("refused", "There was no answer.", `${error.message} ${more}`);
}

function lost() {
  for (const each of [pictures, reach.newest, ...models]) each.cancel();
  settle();
  connectionWords("down", "Not reachable");
  const more = "Your drawing is kept. This page keeps trying to reconnect.";
  notices.show("down", "The service does not answer.", more);
}

async function found() {
  clearTimeout(looking);
  try {
    /** @type {{models: Card[]}} */
    const served = await (await ask("models")).json();
    showModels(served.models);
  } catch (error) {
    const kind = error instanceof Trouble ? error.kind : "fault";
    if (kind !== "down") failed(error);
    if (kind !== "key") looking = setTimeout(found, AGAIN_AFTER_MS);
    return;
  }
  const wasAway = notices.close("down");
  button("forget").hidden = key.get() === null;
  if (wasAway) notices.show("back", "The service is back.", "", { seconds: 5 });
  drawingChanged();
}

/** @param {Card[]} cards */
function showModels(cards) {
  for (const model of models) model.cancel();
  const readers = cards.filter(readsDigits);
  models = readers.map((card) => new Model(card, summarise, failed));
  element("readings").replaceChildren(...models.map((model) => model.element));
  reach.models = readers.map((card) => card.model);
  element("proofs").replaceChildren(...models.map((model) => model.proof));
  const others = cards.filter((card) => !readsDigits(card)).map((card) => card.model);
  element("others").hidden = others.length === 0;
  element("others").textContent = `Also served, but not for single digits: ${others.join(", ")}.`;
  connectionWords("up", readers.length === 1 ? "1 model ready" : `${readers.length} models ready`);
}

/**
 * @param {"up" | "down" | "key"} state
 * @param {string} words
 */
function connectionWords(state, words) {
  element("connection").dataset.state = document.body.dataset.service = state;
  element("connection-words").textContent = words;
}

/** @param {string} message */
function askForKey(message) {
  connectionWords("key", "Needs an API key");
  if (key.get() !== null) element("key-words").textContent = `That key was not accepted: ${message}.`;
  key.forget();
  if (!dialog("key-dialog").open) dialog("key-dialog").showModal();
}

element("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(input("key").value.trim());
  input("key").value = "";
  dialog("key-dialog").close();
  found();
});
button("forget").addEventListener("click", () => {
  key.forget();
  location.reload();
});
drawByTools(drawing);
openPictures(drawing);
moveBySliders(stirring(() => connection.up && askModels()));
connection.check();
