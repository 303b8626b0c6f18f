// Where a message is made: the text field, what is attached to it, and the ways things get there (picked, dropped, pasted, recorded). In
// the flow: main.js takes the parts of a turn from here and tells whether an answer is being written.

import { byId, element, icon, iconButton, note, say } from "./elements.js";
import { plainWords } from "./errors.js";
import { isLarge, kindInWords, kindOf, medium, show, upload } from "./media.js";
import { composes, grow } from "./turns.js";

/**
 * actions: {send(), changed(), enlarge(medium, label), count(medium, signal) -> Promise of its tokens or null,
 * needKey(error) -> Promise of whether there is another key to try with}
 */
export class Composer {
  constructor(actions) {
    this.actions = actions;
    this.field = byId("message");
    this.list = byId("attachments");
    this.attached = []; // {medium, item, controller}
    this.busy = false;

    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.busy) this.actions.send();
    });
    this.field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || composes(event)) return;
      event.preventDefault();
      byId("composer").requestSubmit();
    });
    this.field.addEventListener("input", () => this.changed());
    this.field.addEventListener("paste", (event) => {
      const { files, types } = event.clipboardData;
      // Text of a word processor comes with a picture of itself; nobody means that.
      if (!files.length || (types.includes("text/plain") && types.includes("text/html"))) return;
      event.preventDefault();
      this.attach(files);
    });

    const files = byId("files");
    byId("attach").addEventListener("click", () => files.click());
    files.addEventListener("change", () => {
      this.attach(files.files);
      files.value = ""; // so that the same file can be chosen again
    });
    this.acceptDrops();
  }

  get text() {
    return this.field.value;
  }

  set text(text) {
    this.field.value = text;
    this.changed();
  }

  /** The message as parts, media first; the composer is empty afterwards. */
  take() {
    const text = this.text.trim();
    const parts = [...this.attached.map(({ medium }) => ({ medium })), ...(text ? [{ text }] : [])];
    this.attached = [];
    this.list.replaceChildren();
    this.text = "";
    return parts;
  }

  /** The same without taking it. */
  parts() {
    return [...this.attached.map(({ medium }) => ({ medium })), ...(this.text.trim() ? [{ text: this.text.trim() }] : [])];
  }

  setBusy(busy) {
    this.busy = busy;
    // The one button takes the place of the other, and its focus, or that of a button which is gone with what it belonged to.
    const takesFocus = [byId("send"), byId("stop"), document.body].includes(document.activeElement);
    byId("send").hidden = busy;
    byId("stop").hidden = !busy;
    if (takesFocus) byId(busy ? "stop" : "send").focus();
    this.changed();
  }

  changed() {
    grow(this.field);
    this.list.hidden = this.attached.length === 0;
    // Not disabled, which would take it out of the order of focus; an empty message is simply not sent.
    byId("send").setAttribute("aria-disabled", String(this.parts().length === 0));
    this.actions.changed();
  }

  attach(files) {
    for (const file of files) {
      const made = medium(file, file.name);
      if (made) this.attachMedium(made);
      else note(`${file.name} is neither a picture nor a sound nor a video, so the model cannot read it.`);
    }
    this.field.focus();
  }

  attachMedium(made) {
    const label = `${kindInWords(made.mimeType)} ${made.name}`;
    const state = element("span", { class: "state" });
    const entry = { medium: made, controller: new AbortController() };
    const remove = iconButton("close", `Remove ${label}`, () => {
      entry.controller.abort();
      this.attached = this.attached.filter((each) => each !== entry);
      entry.item.remove();
      this.changed();
      this.field.focus();
    });
    entry.item = element(
      "li",
      { class: kindOf(made.mimeType) },
      show(made, label, this.actions.enlarge),
      element("span", { class: "name" }, made.name),
      state,
      remove,
    );
    this.attached.push(entry);
    this.list.append(entry.item);
    say(`${label} attached`);
    this.changed();
    this.prepare(entry, state);
  }

  // Sends what is large at once, so that it is there when the message is sent, and says how many tokens the model will read.
  async prepare(entry, state) {
    const { medium, controller } = entry;
    try {
      if (isLarge(medium)) {
        const bar = element("progress", { max: 1, value: 0, "aria-label": `Sending ${medium.name}` });
        state.replaceChildren(bar);
        await upload(medium, (share) => (bar.value = share), controller.signal);
      }
      const tokens = await this.actions.count(medium, controller.signal);
      state.replaceChildren(tokens === null ? "" : `${tokens.toLocaleString("en")} tokens`);
      entry.tokens = tokens ?? 0;
      this.actions.changed();
    } catch (error) {
      if (error.name === "AbortError") return;
      if (await this.actions.needKey(error)) return this.prepare(entry, state);
      const again = element(
        "button",
        { type: "button", class: "quiet", onclick: () => this.prepare(entry, state) },
        icon("retry"),
        "Try again",
      );
      const useful = error.code !== 400; // what is wrong with the file itself stays wrong
      state.replaceChildren(element("span", { class: "wrong", role: "alert" }, plainWords(error)), useful ? again : "");
    }
  }

  // The whole page takes what is dropped. Entering a child leaves its parent, so the two are counted.
  acceptDrops() {
    const cover = byId("drop");
    let inside = 0;
    const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
    const enter = (step) => (event) => {
      if (!carriesFiles(event)) return;
      inside += step;
      cover.hidden = inside <= 0;
    };
    addEventListener("dragenter", enter(1));
    addEventListener("dragleave", enter(-1));
    addEventListener("dragover", (event) => {
      if (carriesFiles(event)) event.preventDefault();
    });
    addEventListener("drop", (event) => {
      if (!carriesFiles(event)) return;
      event.preventDefault();
      inside = 0;
      cover.hidden = true;
      this.attach(event.dataTransfer.files);
    });
  }
}
