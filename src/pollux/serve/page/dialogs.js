// The windows above the page: a picture at its largest, a request as code, and the question for a key. All are dialog elements, which keep
// the focus inside, close by Escape and give the focus back.

import { byId, copy } from "./elements.js";
import { setKey } from "./gemini.js";
import { addressOf } from "./media.js";

for (const dialog of document.querySelectorAll("dialog")) {
  for (const button of dialog.querySelectorAll("[data-close]")) button.addEventListener("click", () => dialog.close());
  // A press beside the window closes it: there the dialog itself, of which the window's inside is a part, is what was pressed.
  dialog.addEventListener("pointerdown", (event) => {
    const { left, right, top, bottom } = dialog.getBoundingClientRect();
    const inside = left <= event.clientX && event.clientX <= right && top <= event.clientY && event.clientY <= bottom;
    if (event.target === dialog && !inside) dialog.close();
  });
}

/** Show a picture as large as the window lets it be. */
export function enlarge(medium, label) {
  const viewer = byId("viewer");
  const picture = viewer.querySelector("img");
  const download = viewer.querySelector("a");
  picture.src = download.href = addressOf(medium.blob);
  picture.alt = label;
  picture.onload = () => picture.classList.toggle("small", picture.naturalWidth <= 128);
  download.download = medium.name;
  viewer.showModal();
}

let code = {};

/** Show a request as {python, curl}. */
export function showCode(written) {
  code = written;
  byId("code").showModal();
  choose(byId("tab-python"));
}

const tabs = [byId("tab-python"), byId("tab-curl")];

function choose(chosen) {
  for (const tab of tabs) {
    tab.setAttribute("aria-selected", String(tab === chosen));
    tab.tabIndex = tab === chosen ? 0 : -1; // one stop for Tab; arrows go from tab to tab
  }
  byId("code-text").textContent = code[chosen.id.replace("tab-", "")];
  byId("code-text").setAttribute("aria-labelledby", chosen.id);
  byId("code-text").scrollTop = 0;
}

for (const tab of tabs) {
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", (event) => {
    if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    const other = tabs[1 - tabs.indexOf(tab)];
    choose(other);
    other.focus();
  });
}

byId("copy-code").addEventListener("click", () => copy(byId("code-text").textContent, byId("copy-code")));

let asking = null; // one question at a time, whoever needs the answer

/** Ask for a key, saying why -> whether there is one to try with. */
export function askForKey(why) {
  asking ??= new Promise((resolve) => {
    const dialog = byId("key");
    byId("key-message").textContent = why;
    byId("key-value").value = "";
    dialog.returnValue = "";
    dialog.showModal();
    byId("key-value").focus();
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "use"), { once: true }); // the value of the button, index.html
  }).then((given) => {
    asking = null;
    if (given) setKey(byId("key-value").value);
    return given;
  });
  return asking;
}
