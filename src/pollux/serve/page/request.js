// The conversation and the settings -> the body of a request of the Gemini API. In the flow: main.js sends it, code.js writes it as curl
// and Python. Turns are those of conversation.js: {role, parts: [{text}, {text, thought}, {medium}, or a part of the API as it came]}.

import { mediumPart, upload } from "./media.js";

/** generationConfig of the settings: only what was set, so that all else stays the model's own. */
export function generationConfig(settings) {
  const config = {};
  for (const name of ["temperature", "topP", "topK", "maxOutputTokens", "seed"]) {
    if (settings[name] !== null) config[name] = settings[name];
  }
  if (settings.responseModalities) config.responseModalities = settings.responseModalities.split(",");
  if (settings.schema) Object.assign(config, { responseMimeType: "application/json", responseJsonSchema: settings.schema });
  const thinking = {};
  if (settings.includeThoughts) thinking.includeThoughts = true;
  if (settings.thinkingBudget !== null) thinking.thinkingBudget = settings.thinkingBudget;
  if (Object.keys(thinking).length) config.thinkingConfig = thinking;
  return config;
}

/** What stands beside the contents, in a request or in what the server keeps of one: the system instruction and the tools. */
export function aroundContents({ systemInstruction, tools }) {
  const body = {};
  if (systemInstruction) body.systemInstruction = { parts: [{ text: systemInstruction }] };
  if (tools?.length) body.tools = tools.map((name) => ({ [name]: {} }));
  return body;
}

/**
 * The body for turns that end with the user's. With a cache = {name, turns}, its first `turns` turns and what stands beside them
 * are on the server already. `part` makes the part of a medium; code.js puts the name of a file in place of its bytes.
 */
export async function requestBody(turns, settings, cache = null, part = sentPart) {
  const body = { contents: await contents(turns.slice(cache?.turns ?? 0), part) };
  if (cache) body.cachedContent = cache.name;
  else Object.assign(body, aroundContents(settings));
  const config = generationConfig(settings);
  if (Object.keys(config).length) body.generationConfig = config;
  return body;
}

/**
 * Turns as the API writes them. Thoughts are not given back. Left out are turns in which nothing was said, and questions that failed: what
 * the server refused once, such as a sound that is too long, it would refuse with every later question as well.
 */
export async function contents(turns, part = sentPart) {
  const made = [];
  for (const [i, { role, parts }] of turns.entries()) {
    const spoken = parts.filter((each) => !each.thought);
    if (!spoken.length || (turns[i + 1] && isUnanswered(turns[i + 1]))) continue;
    made.push({ role, parts: await Promise.all(spoken.map((each) => (each.medium ? part(each.medium) : each))) });
  }
  return made;
}

/** Whether a turn is an answer that failed before anything was said. */
export function isUnanswered(turn) {
  return turn.state === "failed" && turn.parts.length === 0;
}

async function sentPart(medium) {
  await upload(medium); // again, if it was long ago and the server has forgotten it
  return mediumPart(medium);
}
