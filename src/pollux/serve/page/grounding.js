// What an answer rests on: a numbered link behind each span that sources support, and the list of the sources. In the flow: turns.js shows
// the texts that marked() gives, has link() turn their marks into links, and puts sources() below them.

import { element } from "./elements.js";
import { anchor, safeAddress } from "./inline.js";

// Around the numbers of a mark: from the private use area, so that Markdown takes a mark for letters.
const OPEN = "\uE000";
const CLOSE = "\uE001";
const MARK = /\uE000([\d,]+)\uE001/;
const AFTER = /[*_~`"'”’»)\]]*/y; // what a span may be wrapped in: a mark goes behind it
const FAILED = {
  URL_RETRIEVAL_STATUS_UNSAFE: "this server does not fetch it",
  URL_RETRIEVAL_STATUS_PAYWALL: "it asks for payment",
};

/** The text of each part of an answer, with marks; undefined for parts that are no text. */
export function marked({ parts, grounding }) {
  const texts = parts.map((part) => ("text" in part ? part.text : undefined));
  const supports = grounding?.groundingSupports ?? [];
  if (!supports.length) return texts;
  const numbers = numbered(grounding);
  let start = 0; // bytes before the part, thoughts left out
  return texts.map((text, i) => {
    if (text === undefined || parts[i].thought) return text;
    const bytes = new TextEncoder().encode(text);
    const first = start;
    start += bytes.length;
    const marks = new Map(); // place in the text -> numbers
    for (const { segment, groundingChunkIndices = [] } of supports) {
      const end = segment.endIndex - first;
      if (end <= 0 || end > bytes.length) continue;
      AFTER.lastIndex = new TextDecoder().decode(bytes.subarray(0, end)).length;
      const place = AFTER.lastIndex + AFTER.exec(text)[0].length;
      marks.set(place, new Set([...(marks.get(place) ?? []), ...groundingChunkIndices.map((index) => numbers.get(index))]));
    }
    return withMarks(text, marks);
  });
}

function withMarks(text, marks) {
  let made = "";
  let from = 0;
  const plain = (piece) => piece.replace(/[\uE000\uE001]/g, "\uFFFD"); // a model cannot write marks of its own
  for (const [place, numbers] of [...marks].sort(([a], [b]) => a - b)) {
    made += `${plain(text.slice(from, place))}${OPEN}${[...numbers].sort((a, b) => a - b)}${CLOSE}`;
    from = place;
  }
  return made + plain(text.slice(from));
}

/** Make the marks that are shown in an element links to their sources. */
export function link(container, { grounding }) {
  if (!grounding?.groundingSupports) return;
  const sources = new Map([...numbered(grounding)].map(([index, n]) => [n, sourceOf(grounding.groundingChunks[index])]));
  const walker = document.createTreeWalker(container, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) if (walker.currentNode.data.includes(OPEN)) found.push(walker.currentNode);
  for (let node of found) {
    for (let mark = MARK.exec(node.data); mark; mark = MARK.exec(node.data)) {
      const rest = node.splitText(mark.index);
      rest.deleteData(0, mark[0].length);
      const links = mark[1].split(",").map((n) => citation(Number(n), sources.get(Number(n))));
      // Code stays as it was written: what supports it is named behind it.
      const code = node.parentElement.closest("figure.code") ?? node.parentElement.closest("code");
      if (code) code.after(...links);
      else rest.before(...links);
      node = rest;
    }
  }
}

function citation(n, { title, address }) {
  const label = `Source ${n}: ${title}`;
  const inside = address ? anchor(address, String(n)) : element("span", { role: "note" }, String(n));
  inside.title = title;
  inside.ariaLabel = label;
  return element("sup", { class: "cite" }, inside);
}

/** The list of sources, and what could not be read; null if there is nothing to say. */
export function sources({ grounding, pages = [] }) {
  const numbers = grounding ? numbered(grounding) : new Map();
  const chunks = grounding?.groundingChunks ?? [];
  const cited = chunks.filter((_, i) => numbers.has(i));
  const others = chunks.filter((_, i) => !numbers.has(i));
  const failed = pages.filter(({ urlRetrievalStatus }) => urlRetrievalStatus !== "URL_RETRIEVAL_STATUS_SUCCESS");
  const nothing = grounding?.webSearchQueries && !chunks.length;
  if (!chunks.length && !failed.length && !nothing) return null;
  return element(
    "section",
    { class: "sources", "aria-label": "Sources" },
    cited.length > 0 && element("ol", {}, ...cited.map(listed)),
    others.length > 0 &&
      element(
        "details",
        {},
        element("summary", {}, cited.length ? `Read as well: ${others.length}` : `Read: ${others.length}, none of it named in the answer`),
        element("ul", {}, ...others.map(listed)),
      ),
    nothing && element("p", { class: "note" }, "The search found nothing."),
    ...failed.map(({ retrievedUrl, urlRetrievalStatus }) =>
      element("p", { class: "note" }, `Not read: ${retrievedUrl} (${FAILED[urlRetrievalStatus] ?? "it could not be fetched"})`),
    ),
  );
}

function listed(chunk) {
  const { title, address, place } = sourceOf(chunk);
  return element("li", {}, address ? anchor(address, title) : title, place && element("span", { class: "place" }, place));
}

// Chunks that spans rest on -> their numbers, in order from 1.
function numbered({ groundingSupports = [] }) {
  const indices = [...new Set(groundingSupports.flatMap(({ groundingChunkIndices = [] }) => groundingChunkIndices))].sort((a, b) => a - b);
  return new Map(indices.map((index, i) => [index, i + 1]));
}

function sourceOf(chunk) {
  const { uri = "", title } = chunk.web ?? chunk.retrievedContext ?? {};
  const address = safeAddress(uri);
  const place = address ? new URL(address).host : uri.split("#")[0];
  return { title: title || uri || "a source", address, place: place === title ? "" : place };
}
