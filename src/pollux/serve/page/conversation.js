// The conversation: its turns, the draft of the next one, and where they are kept (IndexedDB, which also holds pictures and sounds), so
// that a reload loses nothing. In the flow: main.js changes it through these functions, turns.js shows it.
//
// A turn is {id, role: "user" | "model", parts, ...}. A model's turn has more: state ("writing", "done", "stopped", "failed"), figures
// (what it took, figures.js), grounding and pages (what it rests on, grounding.js), error, sent (the settings it was asked with), finishReason.

const STORE = "conversation";
const KEY = "current";
const PAUSE = 600; // ms between two savings while an answer is written

let lastId = Date.now();

const newId = () => String(++lastId);

export class Conversation {
  /** failed(error): called when the conversation cannot be kept, because there is no room for instance. */
  constructor(failed) {
    this.failed = failed;
    this.turns = [];
    this.draft = "";
    this.caching = false; // whether the beginning shall be kept on the server
    this.cache = null; // {name, ids, model, around, tokens, expires}: the turns that it keeps, see cache.js
    this.database = null;
    this.timer = 0;
  }

  /** What was kept, if anything. An answer that was being written when the page was left counts as stopped. */
  async load() {
    this.database = await openDatabase();
    const kept = await finished(this.database.transaction(STORE).objectStore(STORE).get(KEY));
    if (!kept) return;
    Object.assign(this, kept);
    for (const turn of this.turns) if (turn.state === "writing") turn.state = "stopped";
  }

  add(turn) {
    const added = { ...turn, id: newId() };
    this.turns = [...this.turns, added];
    this.saveSoon();
    return added;
  }

  /** Replace all turns; lists of turns are never changed in place, so an old one can be put back. */
  replace(turns) {
    this.turns = turns;
    this.saveSoon();
  }

  indexOf(turn) {
    return this.turns.findIndex(({ id }) => id === turn.id);
  }

  saveSoon() {
    this.timer ||= setTimeout(() => this.saveNow(), PAUSE);
  }

  saveNow() {
    this.save().catch(this.failed);
  }

  async save() {
    clearTimeout(this.timer);
    this.timer = 0;
    if (!this.database) return; // the browser lets this page keep nothing, as main.js has said
    const { turns, draft, caching, cache } = this;
    await finished(this.database.transaction(STORE, "readwrite").objectStore(STORE).put({ turns, draft, caching, cache }, KEY));
  }
}

function openDatabase() {
  const opening = indexedDB.open("pollux", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore(STORE);
  return finished(opening);
}

function finished(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
