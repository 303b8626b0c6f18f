// How many tokens the next request has, of those that the model can read: the figure beside the send button. What was said already is known
// from the last answer, what is attached is counted once, and only the text of the draft is counted again when typing pauses.

import { byId } from "./elements.js";
import { number } from "./figures.js";
import { countTokens } from "./gemini.js";
import { contents } from "./request.js";

const PAUSE = 700; // ms without a key

export class Size {
  constructor() {
    this.timer = 0;
    this.controller = new AbortController();
    this.past = { turns: [], tokens: 0 };
  }

  /** Count soon. model: as listModels gives it; attached: tokens of what is attached. */
  update(model, turns, text, attached) {
    clearTimeout(this.timer);
    this.controller.abort();
    this.timer = setTimeout(() => this.count(model, turns, text, attached), PAUSE);
  }

  async count(model, turns, text, attached) {
    const controller = (this.controller = new AbortController());
    try {
      const past = await this.pastTokens(model, turns, controller.signal);
      const draft = text ? await countTokens(model.name, [{ role: "user", parts: [{ text }] }], controller.signal) : { totalTokens: 0 };
      this.show(past + draft.totalTokens + attached, model.inputTokenLimit);
    } catch (error) {
      if (error.name !== "AbortError") this.show(0, 0); // whatever is wrong will be said when the message is sent
    }
  }

  async pastTokens(model, turns, signal) {
    const last = turns.at(-1);
    if (!last) return 0;
    if (last.figures?.read && last.model === model.name) return last.figures.read + last.figures.written;
    if (this.past.turns !== turns || this.past.model !== model.name) {
      const { totalTokens } = await countTokens(model.name, await contents(turns), signal);
      this.past = { turns, model: model.name, tokens: totalTokens };
    }
    return this.past.tokens;
  }

  show(tokens, limit) {
    const place = byId("size");
    place.textContent = tokens ? `${number(tokens)}${limit ? ` / ${number(limit)}` : ""}` : "";
    place.classList.toggle("wrong", Boolean(limit) && tokens > limit);
  }
}
