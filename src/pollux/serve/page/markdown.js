// Markdown -> elements, safely: what a model writes is data, so every piece of it ends as a text node. In the flow: turns.js gives a
// Markdown the text so far after each chunk; only blocks that changed are made anew, so a long answer stays quick, and a selection in
// what is written already survives. Understood: paragraphs, headings, lists, tasks, quotes, tables, fenced code, rules.

import { copy, element, icon } from "./elements.js";
import { inline } from "./inline.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})(.*)$/;
const HEADING = /^ {0,3}(#{1,6})(?=\s|$)/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)/;
const DEEPEST = 8; // levels of lists and quotes; below, text is text

/** The elements of one text that grows. */
export class Markdown {
  constructor(container) {
    this.container = container;
    this.shown = []; // source of the blocks that the container shows
  }

  show(source) {
    const blocks = parse(source.split(/\r\n|\n|\r/));
    const sources = blocks.map((block) => block.kind + block.lines.join("\n"));
    let same = 0;
    while (same < sources.length && sources[same] === this.shown[same]) same += 1;
    while (this.container.children.length > same) this.container.lastElementChild.remove();
    this.container.append(...blocks.slice(same).map((block) => render(block, 0)));
    this.shown = sources;
  }
}

/** Lines -> blocks {kind, lines, ...}; every line belongs to one block, and a block can be read without the others. */
function parse(lines) {
  const blocks = [];
  let i = 0;
  const take = (kind, end, more = {}) => {
    blocks.push({ kind, lines: lines.slice(i, end), ...more });
    i = end;
  };
  while (i < lines.length) {
    const line = lines[i];
    const fence = fenceOf(line);
    if (!line.trim()) i += 1;
    else if (fence) take("code", endOfCode(lines, i, fence), { fence });
    else if (HEADING.test(line)) take("heading", i + 1);
    else if (RULE.test(line)) take("rule", i + 1);
    else if (QUOTE.test(line))
      take(
        "quote",
        endWhile(lines, i, (next) => QUOTE.test(next)),
      );
    else if (ITEM.test(line)) take("list", endOfList(lines, i));
    else if (isTable(lines, i))
      take(
        "table",
        endWhile(lines, i + 2, (next) => next.includes("|") && next.trim()),
      );
    else
      take(
        "paragraph",
        endWhile(lines, i + 1, (next, at) => next.trim() && !interrupts(next) && !isTable(lines, at)),
      );
  }
  return blocks;
}

function render(block, depth) {
  switch (block.kind) {
    case "code":
      return code(block);
    case "heading": {
      const line = block.lines[0];
      const level = HEADING.exec(line)[1].length;
      // The page has its name as h1 and each turn an unseen h2, so headings of an answer begin below.
      return element(
        `h${Math.min(level + 2, 6)}`,
        { class: `level${level}` },
        inline(
          line
            .trim()
            .slice(level)
            .trim()
            .replace(/(^|\s)#+$/, ""),
        ),
      );
    }
    case "rule":
      return element("hr");
    case "quote":
      return element(
        "blockquote",
        {},
        ...nested(
          block.lines.map((line) => line.replace(QUOTE, "")),
          depth + 1,
        ),
      );
    case "list":
      return list(block.lines, depth + 1);
    case "table":
      return table(block.lines);
    default:
      return element(
        "p",
        {},
        inline(
          block.lines
            .map((line) => line.trimStart())
            .join("\n")
            .trimEnd(),
        ),
      );
  }
}

function nested(lines, depth) {
  if (depth > DEEPEST) return [element("p", {}, lines.join("\n"))];
  return parse(lines).map((block) => render(block, depth));
}

function endWhile(lines, start, belongs) {
  let end = start;
  while (end < lines.length && belongs(lines[end], end)) end += 1;
  return end;
}

function interrupts(line) {
  const item = ITEM.exec(line);
  if (item) return item[1].length < 4 && item[3] !== "" && (!/^\d/.test(item[2]) || /^1[.)]/.test(item[2]));
  return fenceOf(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line);
}

function fenceOf(line) {
  const found = FENCE.exec(line);
  if (!found || (found[1][0] === "`" && found[2].includes("`"))) return null;
  return { marks: found[1], language: found[2].trim().split(/\s/)[0] };
}

function endOfCode(lines, start, fence) {
  const closes = (line) => {
    const marks = line.trim();
    return marks.length >= fence.marks.length && marks === fence.marks[0].repeat(marks.length);
  };
  const end = endWhile(lines, start + 1, (line) => !closes(line));
  return Math.min(end + 1, lines.length); // without an end so far, it is being written
}

function code({ lines, fence }) {
  const last = lines.at(-1).trim();
  const closed = lines.length > 1 && last.length >= fence.marks.length && last === fence.marks[0].repeat(last.length);
  const text = lines.slice(1, closed ? -1 : undefined).join("\n");
  return codeFigure(text, fence.language, `Code ${fence.language}`.trim());
}

/** Code, or what it printed, under a caption and with a button that copies it. label: for screen readers. */
export function codeFigure(text, caption, label) {
  const inside = element("code", {}, text);
  const button = element("button", { type: "button", class: "quiet" }, icon("copy"), element("span", {}, "Copy"));
  button.addEventListener("click", () => copy(inside.textContent, button));
  return element(
    "figure",
    { class: "code" },
    element("figcaption", {}, element("span", {}, caption), button),
    element("pre", { tabindex: "0", role: "region", "aria-label": label }, inside),
  );
}

// A list goes on while lines are items of its kind, indented below one, blank before one of these, or lazy ends of a paragraph.
function endOfList(lines, start) {
  const numbered = /\d/.test(ITEM.exec(lines[start])[2]);
  const first = ITEM.exec(lines[start])[1].length;
  let blank = false;
  return trimEnd(
    lines,
    endWhile(lines, start, (line) => {
      const wasBlank = blank;
      blank = !line.trim();
      if (blank) return true;
      const item = ITEM.exec(line);
      if (indent(line) >= first + 2) return true;
      if (item && !RULE.test(line)) return /\d/.test(item[2]) === numbered;
      return !wasBlank && !interrupts(line);
    }),
  );
}

function trimEnd(lines, end) {
  let last = end;
  while (last > 0 && !lines[last - 1].trim()) last -= 1;
  return last;
}

function indent(line) {
  return line.length - line.trimStart().length;
}

function list(lines, depth) {
  const [, outer, mark] = ITEM.exec(lines[0]);
  const items = [];
  let inside = 0;
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && item[1].length < outer.length + 2) {
      items.push([line.slice(item[0].length)]);
      inside = item[0].length;
    } else {
      // Models indent what belongs to "1." by two, three or four; whatever it is, up to the text of the item it is taken away.
      items.at(-1).push(line.slice(Math.min(indent(line), inside)));
    }
  }
  const loose = items.some((item, i) =>
    item.some((line, j) => !line.trim() && j > 0 && (j < trimEnd(item, item.length) || i < items.length - 1)),
  );
  const start = /\d/.test(mark) ? parseInt(mark, 10) : null;
  return element(
    start === null ? "ul" : "ol",
    start === null || start === 1 ? {} : { start },
    ...items.map((item) => listItem(item, loose, depth)),
  );
}

function listItem(lines, loose, depth) {
  const task = /^\[([ xX])\] /.exec(lines[0]);
  const text = task ? [lines[0].slice(task[0].length), ...lines.slice(1)] : lines;
  const children = nested(text, depth);
  const tight = loose ? children : children.flatMap((child) => (child.tagName === "P" ? [...child.childNodes] : [child]));
  const box =
    task &&
    element("input", { type: "checkbox", disabled: true, checked: task[1] !== " ", "aria-label": task[1] === " " ? "to do" : "done" });
  return element("li", task ? { class: "task" } : {}, box, ...tight);
}

function isTable(lines, at) {
  if (!lines[at].includes("|") || at + 1 >= lines.length || !lines[at + 1].includes("-")) return false;
  const marks = cells(lines[at + 1]);
  return marks.every((mark) => /^:?-+:?$/.test(mark)) && marks.length === cells(lines[at]).length;
}

// Between bars that are neither escaped nor in code.
function cells(line) {
  const found = [""];
  let inCode = false;
  const text = line
    .trim()
    .replace(/^\|/, "")
    .replace(/(^|[^\\])\|$/, "$1");
  for (let i = 0; i < text.length; i += 1) {
    if (text[i] === "`") inCode = !inCode;
    if (text[i] === "\\" && text[i + 1] === "|") found[found.length - 1] += text[++i];
    else if (text[i] === "|" && !inCode) found.push("");
    else found[found.length - 1] += text[i];
  }
  return found.map((cell) => cell.trim());
}

function table(lines) {
  const sides = cells(lines[1]).map((mark) => (mark.endsWith(":") ? (mark.startsWith(":") ? "centre" : "right") : null));
  const row = (line, tag) => {
    const texts = cells(line);
    return element(
      "tr",
      {},
      ...sides.map((side, i) => element(tag, { class: side, scope: tag === "th" && "col" }, inline(texts[i] ?? ""))),
    );
  };
  const body = lines.slice(2).map((line) => row(line, "td"));
  const whole = element("table", {}, element("thead", {}, row(lines[0], "th")), element("tbody", {}, ...body));
  // Wide tables scroll by themselves, also with the keyboard.
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" }, whole);
}
