// Making elements. Everything that the page shows goes through here or through textContent: strings become text nodes, never HTML.

/**
 * element("a", {href: "…", class: "quiet", onclick: f}, "text", child): attributes by name, listeners by "on…", true and false as
 * present and absent. Children that are null or false are left out.
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null && child !== false));
  return made;
}

/** A drawing of the sheet at the end of index.html, by the name after "icon-". */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/** A button that shows an icon and is called `label` by screen readers and in its tip. */
export function iconButton(name, label, onclick) {
  return element("button", { type: "button", class: "plain", title: label, "aria-label": label, onclick }, icon(name));
}

export const byId = (id) => document.getElementById(id);

/** Put a text on the clipboard and say so on the button that was pressed, for a moment. */
export async function copy(text, button) {
  if (navigator.clipboard) await navigator.clipboard.writeText(text);
  else copyOldWay(text);
  const use = button.querySelector("use");
  if (use.getAttribute("href") === "#icon-check") return;
  const before = use.getAttribute("href");
  use.setAttribute("href", "#icon-check");
  say("Copied");
  setTimeout(() => use.setAttribute("href", before), 1500);
}

// The clipboard object exists only under https or on localhost; a phone in the same house reaches the server by http.
function copyOldWay(text) {
  const field = element("textarea", { class: "unseen", "aria-hidden": "true" });
  field.value = text;
  (document.querySelector("dialog[open]") ?? document.body).append(field); // behind an open dialog nothing can be selected
  field.select();
  document.execCommand("copy");
  field.remove();
}

/** Let a screen reader say something; nothing is seen. */
export function say(text) {
  byId("spoken").textContent = text;
}

let hiding = 0;

/** Take away what note() shows. */
export function endNote() {
  clearTimeout(hiding);
  byId("note").replaceChildren();
}

/** A line above the composer that goes away by itself, with at most one thing to do about it. */
export function note(text, action = "", onclick = () => {}) {
  const place = byId("note");
  clearTimeout(hiding);
  const act = () => {
    endNote();
    onclick();
  };
  place.replaceChildren(element("p", {}, text, action && element("button", { type: "button", class: "quiet", onclick: act }, action)));
  hiding = setTimeout(endNote, 9000);
}
