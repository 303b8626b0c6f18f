// Puts the page together and runs the conversation: what happens when a message is sent, stopped, tried again or edited. The other modules
// know nothing of each other's work: gemini.js talks to the server, conversation.js keeps, turns.js shows, composer.js and settings.js ask.

import { ContextCache } from "./cache.js";
import { asCode } from "./code.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { askForKey, enlarge, showCode } from "./dialogs.js";
import { byId, element, endNote, icon, note, say } from "./elements.js";
import { asksForKey, plainWords } from "./errors.js";
import { byModality, Stopwatch } from "./figures.js";
import { countTokens, hasKey, listModels, streamGenerateContent } from "./gemini.js";
import { blobOf, mediumPart, nameFor } from "./media.js";
import { Camera, SoundRecorder } from "./recorder.js";
import { requestBody } from "./request.js";
import { Settings } from "./settings.js";
import { Size } from "./size.js";
import { textOf, Transcript } from "./turns.js";

let models = [];
let running = null; // {controller, ended} of the answer that is being written

const conversation = new Conversation((error) => note(`This browser keeps nothing more (${error.message}).`));
const size = new Size();
const settings = new Settings(() => {});
const cache = new ContextCache(conversation, cacheNow);
const transcript = new Transcript(byId("transcript"), byId("turns"), byId("to-end"), { retry, edit, code: codeOf, enlarge });
const composer = new Composer({ send, changed: draftChanged, count: countMedium, enlarge, needKey });
const recorder = new SoundRecorder((medium) => composer.attachMedium(medium));
new Camera((medium) => composer.attachMedium(medium));

// --- A message and its answer

async function send() {
  if (running || !model() || !composer.parts().length || !settings.check()) return;
  endNote(); // to undo what was done before would take the message away
  conversation.add({ role: "user", parts: composer.take() });
  transcript.goToEnd();
  await answer();
}

/** Let the model answer the turns so far. */
async function answer() {
  const before = conversation.turns;
  const turn = conversation.add({ role: "model", parts: [], state: "writing", model: model().name, sent: settings.values() });
  const controller = new AbortController();
  let end;
  running = { controller, ended: new Promise((resolve) => (end = resolve)) };
  showAll();
  composer.setBusy(true);
  say("The model is answering.");
  let wantsKey = false;
  try {
    await write(turn, before, controller.signal);
    turn.state = "done";
  } catch (error) {
    turn.state = error.name === "AbortError" ? "stopped" : "failed";
    turn.error = plainWords(error);
    wantsKey = asksForKey(error) && error.message;
  } finally {
    running = null;
    composer.setBusy(false);
    transcript.update(turn);
    conversation.saveNow();
    end();
  }
  say(turn.state === "failed" ? "" : textOf(turn) || "The answer has come."); // an error speaks for itself: it is an alert
  if (wantsKey && (await askForKey(wantsKey))) await retry(turn);
}

// Ask the server and put into the turn what comes.
async function write(turn, before, signal) {
  try {
    await writeOnce(turn, before, signal);
  } catch (error) {
    if (!turn.cache || turn.parts.length || ![403, 404].includes(error.code)) throw error;
    cache.forget(); // the server has forgotten it: it is kept anew
    await writeOnce(turn, before, signal);
  }
}

async function writeOnce(turn, before, signal) {
  turn.cache = await cache.current(before, turn.model, turn.sent);
  const body = await requestBody(before, turn.sent, turn.cache);
  const watch = new Stopwatch();
  try {
    for await (const chunk of streamGenerateContent(turn.model, body, signal)) {
      watch.chunk(chunk);
      addChunk(turn, chunk);
      transcript.updateSoon(turn);
      conversation.saveSoon();
    }
  } finally {
    turn.figures = watch.figures();
  }
}

function addChunk(turn, { candidates: [candidate] = [], promptFeedback }) {
  if (promptFeedback?.blockReason) turn.finishReason = `BLOCKED_${promptFeedback.blockReason}`;
  if (candidate?.finishReason) turn.finishReason = candidate.finishReason;
  if (candidate?.groundingMetadata) turn.grounding = candidate.groundingMetadata;
  if (candidate?.urlContextMetadata) turn.pages = candidate.urlContextMetadata.urlMetadata;
  for (const part of candidate?.content?.parts ?? []) {
    const last = turn.parts.at(-1);
    if ("text" in part) {
      if (last && "text" in last && Boolean(last.thought) === Boolean(part.thought)) last.text += part.text;
      else if (part.text) turn.parts.push({ text: part.text, ...(part.thought && { thought: true }) });
    } else if (part.inlineData) {
      const { mimeType, data } = part.inlineData;
      const number = conversation.turns.flatMap(({ parts }) => parts).filter((each) => each.medium?.drawn).length + 1;
      turn.parts.push({
        medium: { blob: blobOf(data, mimeType), mimeType, name: nameFor(`drawn-${number}`, mimeType), file: null, drawn: true },
      });
    } else {
      turn.parts.push(part);
    }
  }
}

/** End the answer that is being written; what there is of it stays. */
async function stop() {
  running?.controller.abort();
  await running?.ended;
}

/** Another answer to the same turns. */
async function retry(turn) {
  if (!settings.check()) return;
  await stop();
  conversation.replace(conversation.turns.slice(0, conversation.indexOf(turn)));
  transcript.goToEnd();
  await answer();
}

/** Say something else in a turn, and go on from there. */
async function edit(turn, text) {
  if (!settings.check()) return;
  await stop();
  const before = conversation.turns;
  const at = conversation.indexOf(turn);
  const first = turn.parts.findIndex((part) => "text" in part && !part.thought);
  const others = turn.parts.filter((part) => !("text" in part));
  const place = first < 0 ? others.length : turn.parts.slice(0, first).filter((part) => !("text" in part)).length;
  const parts = text ? others.toSpliced(place, 0, { text }) : others;
  conversation.replace(before.slice(0, at));
  conversation.add({ ...turn, parts, figures: undefined, grounding: undefined, pages: undefined }); // a turn of its own: what was kept of the old one does not fit it
  showAll();
  if (before.length > at + 2) note("What came after the edited turn is gone.", "Undo", () => putBack(before));
  if (turn.role === "user") await answer();
  else byId("message").focus();
}

async function clear() {
  await stop();
  const { turns } = conversation;
  if (!turns.length) return byId("message").focus();
  conversation.replace([]);
  cache.drop();
  showAll();
  byId("message").focus();
  note("A new conversation.", "Undo", () => putBack(turns));
}

async function putBack(turns) {
  await stop();
  conversation.replace(turns);
  showAll();
}

function showAll() {
  transcript.show(conversation.turns);
  byId("welcome").hidden = conversation.turns.length > 0;
  draftChanged();
}

function draftChanged() {
  conversation.draft = composer.text;
  if (!model() || running) return; // while an answer is written, its size is not known
  conversation.saveSoon();
  const attached = composer.attached.reduce((sum, { tokens = 0 }) => sum + tokens, 0);
  size.update(model(), conversation.turns, composer.text.trim(), attached);
}

// --- What can be done beside sending

/** The request of an answer as code, with the settings it had. */
async function codeOf(turn) {
  const before = conversation.turns.slice(0, conversation.indexOf(turn));
  showCode(await asCode(turn.model, before, turn.sent, turn.cache));
}

/** The request that sending would make now. */
async function codeOfDraft() {
  if (!model() || !settings.check()) return;
  const turns = [...conversation.turns, { role: "user", parts: composer.parts() }];
  const values = settings.values();
  showCode(await asCode(model().name, turns, values, cache.fitting(turns, model().name, values)));
}

async function cacheNow() {
  try {
    cache.show();
    if (model() && !running) await cache.make(conversation.turns, model().name, settings.values());
  } catch (error) {
    cache.refuse(error);
  }
}

/** Tokens of an attached medium, without the markers of a turn around it; null if the model is not known yet. */
async function countMedium(medium, signal) {
  if (!model()) return null;
  const counted = await countTokens(model().name, [{ role: "user", parts: [await mediumPart(medium)] }], signal);
  return byModality(counted.promptTokensDetails).reduce((sum, [modality, tokens]) => (modality === "TEXT" ? sum : sum + tokens), 0);
}

async function needKey(error) {
  return asksForKey(error) && askForKey(error.message);
}

// --- Models

const model = () => models.find(({ name }) => name === byId("model").value);

let nextTry = 0;

async function loadModels() {
  clearTimeout(nextTry);
  try {
    models = await listModels();
    if (!models.length) throw new Error("The server has no model that answers.");
  } catch (error) {
    if (await needKey(error)) return loadModels();
    return showTrouble(error);
  }
  byId("trouble").hidden = true;
  // By the name that requests use: several names of one model have the same display name.
  const options = models.map(({ name, description }) =>
    element("option", { value: name, title: description }, name.replace("models/", "")),
  );
  byId("model").replaceChildren(...options);
  const remembered = localStorage.getItem("pollux.model");
  if (models.some(({ name }) => name === remembered)) byId("model").value = remembered;
  byId("change-key").hidden = !hasKey();
  chooseModel();
}

function showTrouble(error) {
  const text = plainWords(error);
  const trouble = byId("trouble");
  if (trouble.hidden || trouble.firstChild?.textContent !== text) {
    const retryButton = element("button", { type: "button", class: "quiet", onclick: loadModels }, icon("retry"), "Try again");
    trouble.replaceChildren(element("p", {}, text), retryButton);
    trouble.hidden = false;
  }
  // A server that is away or still loads its model comes by itself.
  if ([0, 503].includes(error.code)) nextTry = setTimeout(loadModels, 3000);
}

function chooseModel() {
  settings.describe(model());
  draftChanged();
}

// --- Wiring

byId("model").addEventListener("change", () => {
  localStorage.setItem("pollux.model", byId("model").value);
  chooseModel();
});
byId("stop").addEventListener("click", stop);
byId("clear").addEventListener("click", clear);
byId("show-code").addEventListener("click", codeOfDraft);
byId("change-key").addEventListener("click", async () => {
  if (await askForKey("Another key for this server:")) await loadModels();
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) stop();
});
addEventListener("pagehide", () => conversation.saveNow());

const starts = {
  picture() {
    composer.text = "caption this";
    byId("attach").click();
  },
  sound() {
    composer.text = "transcribe";
    recorder.start();
  },
  drawing() {
    composer.text = "draw a big red circle top left";
    send();
  },
};
byId("welcome").addEventListener("click", (event) => starts[event.target.closest("[data-start]")?.dataset.start]?.());

byId("theme").addEventListener("click", () => {
  const other = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  // What the system prefers needs no note, and then follows it again.
  if ((other === "dark") === systemIsDark.matches) localStorage.removeItem("pollux.theme");
  else localStorage.setItem("pollux.theme", other);
  applyTheme();
  showTheme();
});

systemIsDark.addEventListener("change", showTheme);

function showTheme() {
  byId("theme").setAttribute("aria-pressed", String(document.documentElement.dataset.theme === "dark"));
}

async function start() {
  showTheme();
  try {
    await conversation.load();
  } catch (error) {
    note(`This browser keeps nothing (${error.message}): the conversation ends with the page.`);
  }
  composer.text ||= conversation.draft; // somebody may have begun to write already
  cache.show();
  showAll();
  transcript.goToEnd();
  if (matchMedia("(hover: hover)").matches) byId("message").focus(); // on a phone this would open the keyboard
  await loadModels();
}

start();
