// Markdown within a paragraph -> text nodes and elements: emphasis, code, links, line breaks. In the flow: markdown.js finds the blocks
// and calls this for their text. The way is that of CommonMark: walk once, leave markers of emphasis as text nodes, pair them afterwards.
// All steps take time in proportion to the text, whatever a model writes.

import { element } from "./elements.js";

const PUNCTUATION = /[!-/:-@[-`{-~]/;
const SPACE = /[\s\uE000]/; // \uE000 opens a mark of grounding.js, which is no part of the text before it
const DEEPEST = 32; // levels of emphasis of a kind; a browser fails at elements some thousand levels deep
const BARE_ADDRESS = /https?:\/\/[^\s<>"'`\uE000]{1,2048}/y;
const ANGLE_ADDRESS = /<(https?:\/\/[^\s<>]{1,2048}|[\w.+-]{1,64}@[\w.-]{1,255})>/y;
const DESTINATION =
  /\(\s{0,9}(?:<([^<>\n]{0,2048})>|((?:[^\s()\\]|\\.|\([^\s()]{0,500}\)){0,2048}))(?:\s{1,9}(?:"[^"]{0,500}"|'[^']{0,500}'))?\s{0,9}\)/y;

/** The text as a fragment of nodes. */
export function inline(text) {
  const out = document.createDocumentFragment();
  const markers = []; // of emphasis: {node, kind, count, opens, closes}
  const brackets = []; // "[" that may begin a link: {node, markers: how many markers came before}
  const runs = backtickRuns(text);
  let plain = "";
  const flush = () => {
    if (plain) out.append(plain);
    plain = "";
  };

  let i = 0;
  while (i < text.length) {
    const c = text[i];
    if (c === "\\" && i + 1 < text.length && PUNCTUATION.test(text[i + 1])) {
      plain += text[i + 1];
      i += 2;
    } else if (c === "\n" || (c === "\\" && text[i + 1] === "\n")) {
      plain = plain.trimEnd();
      flush();
      out.append(element("br"));
      i += c === "\n" ? 1 : 2;
    } else if (c === "`") {
      const length = runLength(text, i, "`");
      const end = nextRun(runs, length, i + length);
      if (end < 0) {
        plain += text.slice(i, i + length);
        i += length;
      } else {
        flush();
        out.append(element("code", {}, trimCode(text.slice(i + length, end))));
        i = end + length;
      }
    } else if (c === "*" || c === "_" || (c === "~" && text[i + 1] === "~")) {
      flush();
      const count = runLength(text, i, c);
      const node = document.createTextNode(text.slice(i, i + count));
      out.append(node);
      if (count <= DEEPEST) markers.push({ node, kind: c, count, ...flanks(text, i, count) });
      i += count;
    } else if (c === "[" || (c === "!" && text[i + 1] === "[")) {
      flush();
      const node = document.createTextNode(c === "[" ? "[" : "![");
      out.append(node);
      brackets.push({ node, markers: markers.length });
      i += node.length;
    } else if (c === "]" && brackets.length) {
      flush();
      const opener = brackets.pop();
      const found = matchAt(DESTINATION, text, i + 1);
      const address = found && safeAddress((found[1] ?? found[2]).replace(/\\([!-/:-@[-`{-~])/g, "$1"));
      if (address) {
        emphasise(markers.splice(opener.markers));
        const link = anchor(address);
        while (opener.node.nextSibling) link.append(opener.node.nextSibling);
        if (!link.hasChildNodes()) link.append(address);
        opener.node.replaceWith(link);
        brackets.length = 0; // no links within links
        i += 1 + found[0].length;
      } else {
        plain += "]";
        i += 1;
      }
    } else if (c === "<" && matchAt(ANGLE_ADDRESS, text, i)) {
      flush();
      const [whole, address] = matchAt(ANGLE_ADDRESS, text, i);
      const safe = safeAddress(address.includes("://") ? address : `mailto:${address}`);
      out.append(safe ? anchor(safe, address) : whole);
      i += whole.length;
    } else if (c === "h" && !/\w/.test(text[i - 1] ?? " ") && !brackets.length && matchAt(BARE_ADDRESS, text, i)) {
      flush();
      const address = withoutEnd(matchAt(BARE_ADDRESS, text, i)[0]);
      const safe = safeAddress(address);
      out.append(safe ? anchor(safe, address) : address);
      i += address.length;
    } else {
      plain += c;
      i += 1;
    }
  }
  flush();
  emphasise(markers);
  out.normalize();
  return out;
}

/** Only addresses that lead to a page or a letter: never javascript:, data: or a path of this server. */
export function safeAddress(address) {
  if (!/^(https?:\/\/|mailto:)/i.test(address) || !URL.canParse(address)) return null;
  return new URL(address).href;
}

/** A link that leads out of the page. */
export function anchor(address, ...children) {
  return element("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow" }, ...children);
}

function matchAt(pattern, text, at) {
  pattern.lastIndex = at; // a sticky pattern looks at exactly this place
  return pattern.exec(text);
}

function runLength(text, start, c) {
  let end = start;
  while (text[end] === c) end += 1;
  return end - start;
}

// Where runs of backticks begin, by their length: a code span ends at the next run as long as the one it began with.
function backtickRuns(text) {
  const runs = new Map();
  for (const { 0: run, index } of text.matchAll(/`+/g)) {
    if (!runs.has(run.length)) runs.set(run.length, { starts: [], next: 0 });
    runs.get(run.length).starts.push(index);
  }
  return runs;
}

function nextRun(runs, length, from) {
  const run = runs.get(length);
  if (!run) return -1; // the run began after a backslash, which took its first backtick
  while (run.next < run.starts.length && run.starts[run.next] < from) run.next += 1;
  return run.starts[run.next] ?? -1;
}

function trimCode(code) {
  const line = code.replaceAll("\n", " ");
  return /^ .*[^ ].* $/.test(line) ? line.slice(1, -1) : line;
}

// Whether a run of markers can begin or end emphasis (CommonMark, "left-flanking" and "right-flanking").
function flanks(text, start, count) {
  const before = text[start - 1] ?? " ";
  const after = text[start + count] ?? " ";
  const left = !SPACE.test(after) && (!PUNCTUATION.test(after) || SPACE.test(before) || PUNCTUATION.test(before));
  const right = !SPACE.test(before) && (!PUNCTUATION.test(before) || SPACE.test(after) || PUNCTUATION.test(after));
  if (text[start] !== "_") return { opens: left, closes: right };
  return { opens: left && (!right || PUNCTUATION.test(before)), closes: right && (!left || PUNCTUATION.test(after)) };
}

// Pairs each marker that can close with the nearest one of its kind before it that can open, and wraps what lies between.
function emphasise(markers) {
  const open = { "*": [], _: [], "~": [] };
  let order = 0;
  for (const marker of markers) {
    marker.order = order++;
    const openers = open[marker.kind];
    while (marker.closes && marker.count && openers.length) {
      const opener = openers.at(-1);
      const width = marker.kind === "~" ? 2 : Math.min(2, opener.count, marker.count);
      if (opener.count < width || marker.count < width) break;
      // Openers of other kinds between the two can close nothing any more: emphasis does not overlap.
      for (const others of Object.values(open)) while (others.length && others.at(-1).order > opener.order) others.pop();
      wrap(opener.node, marker.node, marker.kind === "~" ? "del" : width === 2 ? "strong" : "em");
      for (const side of [opener, marker]) {
        side.count -= width;
        side.node.data = marker.kind.repeat(side.count);
      }
      if (!opener.count) openers.pop();
    }
    if (marker.opens && marker.count && openers.length < DEEPEST) openers.push(marker);
  }
}

function wrap(from, to, tag) {
  const made = element(tag);
  while (from.nextSibling !== to) made.append(from.nextSibling);
  to.before(made);
}

// A full stop or a closing bracket after an address belongs to the sentence, unless the bracket was opened within it.
function withoutEnd(address) {
  let end = address.length;
  for (;;) {
    const last = address[end - 1];
    const inside = address.slice(0, end);
    if (/[.,;:!?*_~]/.test(last) || (last === ")" && inside.split(")").length > inside.split("(").length)) end -= 1;
    else return inside;
  }
}
