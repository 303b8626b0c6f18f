// The panel of parameters, remembered in this browser. In the flow: main.js reads values() for each request; a field that is empty is not
// sent, so the model's own setting holds, which stands in the field in grey.

import { byId } from "./elements.js";

const KEPT = "pollux.settings";
const NUMBERS = ["temperature", "topP", "topK", "maxOutputTokens", "seed", "thinkingBudget"];
const TOOLS = ["codeExecution", "googleSearch", "urlContext"];
const narrow = matchMedia("(max-width: 60rem)"); // as in page.css: here the panel covers the page instead of standing beside it

export class Settings {
  /** changed() is called after each change. */
  constructor(changed) {
    this.changed = changed;
    this.panel = byId("settings");
    this.form = byId("parameters");
    this.fields = [...this.form.elements].filter(({ id }) => id);
    this.ranges = [...this.form.querySelectorAll("[data-of]")];
    this.fill(JSON.parse(localStorage.getItem(KEPT) ?? "{}"));

    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("input", (event) => {
      if (event.target.dataset.of) byId(event.target.dataset.of).value = event.target.value;
      this.keep();
    });
    byId("defaults").addEventListener("click", () => {
      this.fill({});
      this.keep();
    });
    byId("open-settings").addEventListener("click", () => (this.panel.hidden ? this.open() : this.close()));
    byId("close-settings").addEventListener("click", () => this.close());
    this.panel.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      this.close();
    });
    narrow.addEventListener("change", () => this.cover());
  }

  /** What is set, by its name in the API; null where nothing is. The schema is parsed. */
  values() {
    const values = {
      systemInstruction: byId("systemInstruction").value.trim(),
      responseModalities: byId("responseModalities").value,
      includeThoughts: !byId("thinking").hidden && byId("includeThoughts").checked,
      schema: byId("schema").value.trim() && byId("schema").validity.valid ? JSON.parse(byId("schema").value) : null,
    };
    for (const name of NUMBERS) values[name] = byId(name).value === "" ? null : byId(name).valueAsNumber;
    if (byId("thinking").hidden) values.thinkingBudget = null;
    values.tools = TOOLS.filter((name) => offered(name) && byId(name).checked);
    return values;
  }

  /** Whether all fields are right; if one is not, it is shown with what is wrong. */
  check() {
    if (this.fields.every((field) => field.validity.valid)) return true;
    this.open();
    this.form.reportValidity();
    return false;
  }

  /** Show in the empty fields what holds for a model, and only what it has. */
  describe(model) {
    byId("temperature").max = model.maxTemperature ?? 2;
    this.form.querySelector('[data-of="temperature"]').max = byId("temperature").max;
    byId("maxOutputTokens").max = model.outputTokenLimit ?? "";
    byId("temperature").placeholder = model.temperature ?? "";
    byId("topP").placeholder = model.topP ?? "";
    byId("topK").placeholder = model.topK || "off";
    byId("maxOutputTokens").placeholder = model.outputTokenLimit ? `up to ${model.outputTokenLimit}` : "";
    byId("thinking").hidden = !model.thinking;
    for (const name of TOOLS) byId(name).closest("label").hidden = !model.supportedTools?.includes(name);
    byId("tools").hidden = !TOOLS.some(offered);
    this.tie();
  }

  fill(kept) {
    for (const field of this.fields) {
      const value = kept[field.id] ?? "";
      if (field.type === "checkbox") field.checked = value === true;
      else field.value = value;
    }
    this.tie();
  }

  keep() {
    this.tie();
    const kept = {};
    for (const field of this.fields) {
      const value = field.type === "checkbox" ? field.checked : field.value;
      if (value) kept[field.id] = value;
    }
    localStorage.setItem(KEPT, JSON.stringify(kept));
    this.changed();
  }

  // Sliders follow their fields, and the schema says what is wrong with it.
  tie() {
    for (const range of this.ranges) {
      const field = byId(range.dataset.of);
      range.classList.toggle("unset", field.value === "");
      range.value = field.value || field.placeholder || 1;
      range.setAttribute("aria-valuetext", field.value || `${field.placeholder}, the model’s own`);
    }
    const wrong = whyNoSchema(byId("schema").value);
    byId("schema").setCustomValidity(wrong);
    byId("schema-error").textContent = wrong;
    byId("schema-error").hidden = !wrong;
  }

  open() {
    this.panel.hidden = false;
    byId("open-settings").setAttribute("aria-expanded", "true");
    this.cover();
    byId("close-settings").focus();
  }

  close() {
    this.panel.hidden = true;
    byId("open-settings").setAttribute("aria-expanded", "false");
    this.cover();
    byId("open-settings").focus();
  }

  // Where the panel covers the page, nothing behind it can be reached.
  cover() {
    const covered = narrow.matches && !this.panel.hidden;
    for (const behind of document.querySelectorAll("body > header, body > main")) behind.inert = covered;
  }
}

const offered = (name) => !byId(name).closest("label").hidden;

function whyNoSchema(text) {
  if (!text.trim()) return "";
  try {
    const schema = JSON.parse(text);
    return schema && typeof schema === "object" && !Array.isArray(schema) ? "" : 'A schema is an object, such as {"type": "string"}.';
  } catch (error) {
    return `This is not JSON: ${error.message}`;
  }
}
