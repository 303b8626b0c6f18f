// Cached context: the conversation so far kept on the server as a cachedContent, so that later requests name it instead of sending it
// again. In the flow: main.js asks current() before each request; it makes the cache when there is none that fits.

import { byId } from "./elements.js";
import { plainWords } from "./errors.js";
import { number } from "./figures.js";
import { createCachedContent, deleteCachedContent } from "./gemini.js";
import { aroundContents, contents } from "./request.js";

const LIFETIME = 3600; // seconds
const MARGIN = 15_000; // ms before it expires, a cache counts as gone

export class ContextCache {
  /** begin(): called when the switch is turned on, to make the cache at once. */
  constructor(conversation, begin) {
    this.conversation = conversation;
    this.toggle = byId("cache");
    this.toggle.addEventListener("change", () => {
      conversation.caching = this.toggle.checked;
      conversation.saveSoon();
      if (this.toggle.checked) begin();
      else this.drop();
    });
  }

  /** Show what was loaded with the conversation. */
  show() {
    const { caching, cache } = this.conversation;
    this.toggle.checked = caching;
    if (!caching) this.say("Later requests then name what the server keeps, instead of sending it again.");
    else if (!cache) this.say("From the next answer on.");
    else this.say(`${count(cache.ids.length, "turn")}, ${number(cache.tokens)} tokens, until ${timeOf(cache.expires)}.`);
  }

  /** {name, turns} of the cache that a request of these turns can begin with, null if there is none. */
  fitting(turns, model, settings) {
    const { cache } = this.conversation;
    const fits =
      cache &&
      cache.model === model &&
      cache.around === JSON.stringify(aroundContents(settings)) &&
      cache.expires > Date.now() + MARGIN &&
      cache.ids.length < turns.length &&
      cache.ids.every((id, i) => turns[i].id === id);
    return fits ? { name: cache.name, turns: cache.ids.length } : null;
  }

  /** The same, made if need be; null if none is wanted or there is nothing to keep. Raises ApiError. */
  async current(turns, model, settings) {
    if (!this.conversation.caching) return null;
    const found = this.fitting(turns, model, settings);
    if (found) return found;
    await this.drop();
    await this.make(turns.slice(0, -1), model, settings);
    return this.fitting(turns, model, settings);
  }

  /** Keep these turns. Raises ApiError. */
  async make(turns, model, settings) {
    const kept = await contents(turns);
    if (!kept.length) return;
    const around = aroundContents(settings);
    const made = await createCachedContent({ model, contents: kept, ...around, ttl: `${LIFETIME}s` });
    this.conversation.cache = {
      name: made.name,
      model,
      around: JSON.stringify(around),
      ids: turns.map(({ id }) => id),
      tokens: made.usageMetadata?.totalTokenCount ?? 0,
      expires: Date.parse(made.expireTime),
    };
    this.conversation.saveSoon();
    this.show();
  }

  /** Turn the switch off because the server refuses. */
  refuse(error) {
    this.conversation.caching = false;
    this.conversation.cache = null;
    this.show();
    this.say(`The server keeps nothing. ${plainWords(error)}`);
  }

  /** Forget the cache here, for the server has forgotten it already. */
  forget() {
    this.conversation.cache = null;
    this.show();
  }

  /** Give it up on both sides. */
  async drop() {
    const { cache } = this.conversation;
    this.forget();
    if (!cache) return;
    // It would expire by itself; that the server does not find it any more is as good.
    await deleteCachedContent(cache.name).catch((error) => console.warn(`the cache ${cache.name} was not deleted: ${error.message}`));
  }

  say(text) {
    byId("cache-note").textContent = text;
  }
}

const count = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

const timeOf = (time) => new Date(time).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
