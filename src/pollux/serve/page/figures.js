// What an answer took: tokens in and out by modality, tokens from the cache, time to the first token, tokens a second. In the flow: main.js
// makes a Stopwatch for each answer and gives it every chunk; turns.js writes its figures under the answer.

const ORDER = ["TEXT", "IMAGE", "AUDIO", "VIDEO", "DOCUMENT"];
const LEAST = 250; // ms between the first chunk and the last that a rate can be measured over
const FEW = 16; // tokens that say nothing of a rate
const WORDS = { TEXT: "text", IMAGE: "image", AUDIO: "audio", VIDEO: "video", DOCUMENT: "document" };

export class Stopwatch {
  constructor() {
    this.start = performance.now();
    this.first = null; // {time, tokens} of the first chunk that brought something
    this.last = null;
    this.usage = {};
  }

  chunk({ candidates = [], usageMetadata }) {
    if (usageMetadata) this.usage = usageMetadata;
    if (!candidates.some((candidate) => candidate.content?.parts?.length)) return;
    this.last = { time: performance.now(), tokens: written(this.usage) };
    this.first ??= this.last;
  }

  /** Plain data, kept with the turn. Times in seconds. */
  figures() {
    const now = performance.now();
    const tokens = written(this.usage);
    // The rate of writing, without reading the prompt. Of an answer that came nearly at once, such as a picture, only the whole is known.
    const since = this.first && this.last.time - this.first.time > LEAST ? this.first : { time: this.start, tokens: 0 };
    const seconds = ((this.last?.time ?? now) - since.time) / 1000;
    return {
      read: this.usage.promptTokenCount ?? 0,
      readBy: byModality(this.usage.promptTokensDetails),
      written: tokens,
      writtenBy: byModality(this.usage.candidatesTokensDetails),
      found: this.usage.toolUsePromptTokenCount ?? 0,
      thought: this.usage.thoughtsTokenCount ?? 0,
      cached: this.usage.cachedContentTokenCount ?? 0,
      untilFirst: this.first && (this.first.time - this.start) / 1000,
      all: (now - this.start) / 1000,
      rate: tokens - since.tokens >= FEW && seconds > 0 ? (tokens - since.tokens) / seconds : null,
    };
  }
}

function written(usage) {
  return (usage.candidatesTokenCount ?? 0) + (usage.thoughtsTokenCount ?? 0);
}

/** [[modality, tokens]] of promptTokensDetails, without empty ones. */
export function byModality(details = []) {
  return details
    .filter(({ tokenCount }) => tokenCount)
    .map(({ modality, tokenCount }) => [modality, tokenCount])
    .sort(([a], [b]) => ORDER.indexOf(a) - ORDER.indexOf(b));
}

/** The figures as [what, value] pairs, in words. */
export function inWords(figures) {
  const lines = [
    ["tokens in", tokens(figures.read, figures.readBy)],
    ["out", tokens(figures.written, figures.writtenBy)],
  ];
  if (figures.found) lines.push(["from tools", number(figures.found)]);
  if (figures.thought) lines.push(["thinking", number(figures.thought)]);
  if (figures.cached) lines.push(["cached", number(figures.cached)]);
  if (figures.untilFirst !== null) lines.push(["first after", duration(figures.untilFirst)]);
  if (figures.rate !== null) lines.push(["tokens/s", rounded(figures.rate)]);
  return lines;
}

function tokens(total, parts) {
  const onlyText = parts.every(([modality]) => modality === "TEXT");
  const split = parts.map(([modality, count]) => `${number(count)} ${WORDS[modality] ?? modality.toLowerCase()}`).join(", ");
  return `${number(total)}${onlyText ? "" : ` (${split})`}`;
}

export const number = (value) => value.toLocaleString("en");

const rounded = (value) => (value < 10 ? value.toFixed(1) : number(Math.round(value)));

const duration = (seconds) => (seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(1)} s`);
