// The conversation as it is seen: an article for each turn, with what was said, what it took and what can be done about it. In the flow:
// main.js calls show() when the list of turns changes and update() while an answer is written; the buttons call the actions it gave.

import { copy, element, icon, iconButton } from "./elements.js";
import { inWords } from "./figures.js";
import { link, marked, sources } from "./grounding.js";
import { codeFigure, Markdown } from "./markdown.js";
import { kindInWords, kindOf, show as showMedium } from "./media.js";
import { isUnanswered } from "./request.js";

const OUTCOMES = {
  OUTCOME_OK: "Result",
  OUTCOME_FAILED: "Ended with an error",
  OUTCOME_DEADLINE_EXCEEDED: "Ended: it took too long",
};
const NEAR_END = 80; // pixels: who is closer to the end than this wants to follow what is written

/** actions: {retry(turn), edit(turn, text), code(turn), enlarge(medium, label)} */
export class Transcript {
  constructor(scroller, container, toEnd, actions) {
    Object.assign(this, { scroller, container, toEnd, actions });
    this.views = new Map(); // id of a turn -> its view
    this.waiting = new Set(); // turns to draw in the next frame
    this.follows = true;
    this.top = 0; // where the scroller was last
    scroller.addEventListener("scroll", () => this.scrolled(), { passive: true });
    // Follows the end when text grows, a picture has loaded or the window changes.
    const observer = new ResizeObserver(() => this.follow());
    observer.observe(container);
    observer.observe(scroller);
    toEnd.addEventListener("click", () => this.goToEnd());
  }

  show(turns) {
    const ids = new Set(turns.map(({ id }) => id));
    for (const [id, view] of this.views) {
      if (ids.has(id)) continue;
      view.article.remove();
      this.views.delete(id);
    }
    turns.forEach((turn, i) => {
      if (!this.views.has(turn.id)) this.views.set(turn.id, new TurnView(turn, this.actions));
      const { article } = this.views.get(turn.id);
      if (this.container.children[i] !== article) this.container.insertBefore(article, this.container.children[i] ?? null);
      this.update(turn);
    });
  }

  update(turn) {
    this.waiting.delete(turn);
    this.views.get(turn.id)?.update(turn);
  }

  /** Draw a turn at the next frame: chunks may come faster than a screen shows. */
  updateSoon(turn) {
    if (this.waiting.size === 0) {
      requestAnimationFrame(() => {
        for (const each of [...this.waiting]) this.update(each);
      });
    }
    this.waiting.add(turn);
  }

  goToEnd() {
    this.follows = true;
    this.follow();
  }

  follow() {
    if (this.follows) this.scroller.scrollTop = this.scroller.scrollHeight;
    this.scrolled();
  }

  // Only going up, which the page never does by itself, means that somebody wants to read elsewhere; text may have grown meanwhile.
  scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    const away = scrollHeight - scrollTop - clientHeight;
    if (away < NEAR_END) this.follows = true;
    else if (scrollTop < this.top) this.follows = false;
    this.top = scrollTop;
    this.toEnd.hidden = this.follows || away < NEAR_END;
  }
}

class TurnView {
  constructor(turn, actions) {
    this.turn = turn;
    this.actions = actions;
    this.parts = element("div", { class: "parts" });
    this.shown = []; // {kind, node, update} of the parts that are shown
    this.status = element("div", { class: "status" });
    this.foot = element("footer");
    this.footOf = null; // the state that the foot was made for
    // The headings let a screen reader go from turn to turn.
    const heading = element("h2", { class: "unseen" }, turn.role === "user" ? "You" : "Answer");
    this.article = element("article", { class: `turn ${turn.role}` }, heading, this.parts, this.status, this.foot);
  }

  update(turn) {
    const writing = turn.state === "writing";
    this.turn = turn;
    this.article.setAttribute("aria-busy", String(writing));
    this.article.classList.toggle("writing", writing);
    this.article.classList.toggle("unanswered", isUnanswered(turn));
    const texts = marked(turn);
    turn.parts.forEach((part, i) => this.updatePart(part, i, texts[i]));
    while (this.shown.length > turn.parts.length) this.shown.pop().node.remove();
    this.status.replaceChildren(...this.said(turn));
    if (!writing && this.footOf !== turn.state) this.foot.replaceChildren(...this.below(turn));
    this.footOf = turn.state;
  }

  updatePart(part, i, text) {
    const kind = kindOfPart(part);
    if (this.shown[i] && this.shown[i].kind !== kind) {
      while (this.shown.length > i) this.shown.pop().node.remove();
    }
    if (!this.shown[i]) {
      this.shown[i] = { kind, ...this.partView(part, kind) };
      this.parts.append(this.shown[i].node);
    }
    this.shown[i].update(text);
  }

  // How a part is shown -> {node, update(text)}.
  partView(part, kind) {
    const still = () => {};
    if (kind === "medium") {
      const label = `${this.turn.role === "model" ? "drawn " : ""}${kindInWords(part.medium.mimeType)} ${part.medium.name}`;
      return {
        node: element("div", { class: `medium ${kindOf(part.medium.mimeType)}` }, showMedium(part.medium, label, this.actions.enlarge)),
        update: still,
      };
    }
    if (kind === "thought") {
      const inside = element("div", { class: "markdown" });
      const markdown = new Markdown(inside);
      const summary = element("summary");
      const update = (text) => {
        summary.textContent = this.turn.state === "writing" && this.turn.parts.at(-1) === part ? "Thinking …" : "Thoughts";
        markdown.show(text);
      };
      return { node: element("details", { class: "thought" }, summary, inside), update };
    }
    if (kind === "code") {
      const { language = "", code } = part.executableCode;
      const caption = language.charAt(0) + language.slice(1).toLowerCase();
      return { node: element("div", { class: "ran" }, codeFigure(code, caption, `Code that was run, ${caption}`)), update: still };
    }
    if (kind === "result") return { node: resultView(part.codeExecutionResult), update: still };
    if (kind === "other") {
      return { node: element("pre", { class: "other" }, JSON.stringify(part, null, 2)), update: still };
    }
    if (this.turn.role === "user") {
      const node = element("p", { class: "bubble", dir: "auto" });
      return { node, update: (text) => (node.textContent = text) };
    }
    const node = element("div", { class: "markdown", dir: "auto" });
    const markdown = new Markdown(node);
    const update = (text) => {
      markdown.show(this.turn.sent?.schema ? asJson(part.text) : text);
      link(node, this.turn);
    };
    return { node, update };
  }

  // Between the parts and the foot: that the answer is coming, why it ended early, what went wrong.
  said(turn) {
    if (turn.role === "user") return [];
    if (turn.state === "writing")
      // Also while code runs, which may take a while.
      return turn.parts.length && !turn.parts.at(-1).executableCode ? [] : [element("p", { class: "waiting", "aria-hidden": "true" }, icon("waiting"))];
    if (turn.state === "failed") {
      const retry = element(
        "button",
        { type: "button", class: "quiet", onclick: () => this.actions.retry(this.turn) },
        icon("retry"),
        "Try again",
      );
      return [element("div", { class: "wrong", role: "alert" }, element("p", {}, turn.error), retry)];
    }
    const why = turn.state === "stopped" ? "Stopped." : endInWords(turn);
    const found = sources(turn);
    return [...(found ? [found] : []), ...(why ? [element("p", { class: "note" }, why)] : [])];
  }

  below(turn) {
    const can = [];
    const text = textOf(turn);
    if (text) {
      const button = iconButton("copy", "Copy", () => copy(textOf(this.turn), button));
      can.push(button);
    }
    if (turn.role === "model" && turn.state !== "failed") can.push(iconButton("retry", "Try again", () => this.actions.retry(this.turn)));
    if (turn.role === "user" || text) can.push(iconButton("edit", "Edit", () => this.edit()));
    if (turn.role === "model") can.push(iconButton("code", "This request as code", () => this.actions.code(this.turn)));
    const figures = turn.figures && turn.state !== "failed" && readOut(turn.figures);
    return [...(figures ? [figures] : []), element("div", { class: "actions" }, ...can)];
  }

  /** Write the turn anew, in its place; the conversation goes on from there. */
  edit() {
    const { turn } = this;
    const field = element("textarea", { rows: 1, "aria-label": turn.role === "user" ? "Your message" : "Answer", dir: "auto" });
    field.value = textOf(turn);
    const cancel = element("button", { type: "button", class: "quiet" }, "Cancel");
    const accept = element("button", { type: "submit", class: "filled" }, turn.role === "user" ? "Send" : "Keep");
    const form = element("form", { class: "edit" }, field, element("div", { class: "row" }, cancel, accept));
    const texts = this.shown.filter(({ kind }) => kind === "text" || kind === "thought").map(({ node }) => node);
    const close = () => {
      form.remove();
      for (const hidden of [...texts, this.foot]) hidden.hidden = false;
      this.article.classList.remove("editing");
      this.foot.querySelector('[aria-label="Edit"]')?.focus();
    };
    cancel.addEventListener("click", close);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const text = field.value.trim();
      if (!text && !turn.parts.some((part) => part.medium)) return field.focus();
      close();
      this.actions.edit(turn, text);
    });
    field.addEventListener("input", () => grow(field));
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation(); // it ends the editing, not an answer
        close();
      } else if (event.key === "Enter" && !event.shiftKey && !composes(event) && turn.role === "user") {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    for (const hidden of [...texts, this.foot]) hidden.hidden = true;
    this.article.classList.add("editing");
    this.parts.append(form);
    grow(field);
    field.focus();
  }
}

/** Whether a key belongs to a word that is being composed (Japanese, Chinese, ...): there, Enter chooses it. 229 is how Safari says it. */
export const composes = (event) => event.isComposing || event.keyCode === 229;

/** Make a text field as high as its text; the style sheet has the limit. */
export function grow(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

/** What a turn says, without thoughts and media. */
export function textOf(turn) {
  return turn.parts
    .filter((part) => "text" in part && !part.thought)
    .map((part) => part.text)
    .join("");
}

function kindOfPart(part) {
  if (part.medium) return "medium";
  if ("text" in part) return part.thought ? "thought" : "text";
  if (part.executableCode) return "code";
  return part.codeExecutionResult ? "result" : "other";
}

// What code printed, and how it ended; a caption alone if it printed nothing.
function resultView({ outcome, output = "" }) {
  const said = OUTCOMES[outcome] ?? "Ended";
  const text = output.trimEnd();
  const inside = text ? codeFigure(text, said, said) : element("p", { class: "note" }, `${said}. It printed nothing.`);
  return element("div", { class: outcome === "OUTCOME_OK" ? "ran" : "ran failed" }, inside);
}

function readOut(figures) {
  const pairs = inWords(figures).map(([what, value]) => element("div", {}, element("dt", {}, what), element("dd", {}, value)));
  return element("dl", { class: "figures", "aria-label": "What this answer took" }, ...pairs);
}

function endInWords({ finishReason, sent, parts }) {
  if (finishReason === "MAX_TOKENS") {
    if (!sent?.maxOutputTokens) return "Ended at the most tokens that an answer of this model may have.";
    return `Ended at the most tokens that an answer may have (${sent.maxOutputTokens}); the settings can raise it.`;
  }
  if (finishReason === "NO_IMAGE") return "The model drew no picture.";
  if (finishReason && finishReason !== "STOP") return `Ended early: ${finishReason.toLowerCase().replaceAll("_", " ")}.`;
  return parts.length ? "" : "The model ended its answer before it wrote anything.";
}

// An answer that has to follow a schema is JSON; once it is whole it is laid out. The fence is longer than any within JSON can be.
function asJson(text) {
  const fence = "~".repeat(40);
  let laidOut = text;
  try {
    laidOut = JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    // still being written, or cut off by the limit of tokens: shown as it is
  }
  return `${fence}json\n${laidOut}\n${fence}`;
}
