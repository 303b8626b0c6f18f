// Google's client for JavaScript against a server: answers, streams, chats, files, schemas, functions, caches, embeddings.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { FunctionCallingConfigMode, GoogleGenAI, Type, createPartFromUri, createUserContent } from "@google/genai";

const model = "gemini-2.5-flash";
const ai = new GoogleGenAI({ apiKey: "key", httpOptions: { baseUrl: process.env.PROGRAMS_SERVER } });
const asked = { model, contents: "what is the number after 1?", config: { temperature: 0, maxOutputTokens: 40 } };
const png = `${process.env.PROGRAMS_FILES}/disc.png`;
const weather = {
  name: "weather",
  description: "Weather of a city.",
  parameters: { type: Type.OBJECT, properties: { city: { type: Type.STRING, enum: ["Oslo", "Rome"] } }, required: ["city"] },
};

async function texts(stream) {
  let text = "";
  for await (const chunk of stream) text += chunk.text ?? "";
  return text;
}

const checks = {
  async generate() {
    const answer = await ai.models.generateContent(asked);
    const used = answer.usageMetadata;
    assert(answer.text && used.totalTokenCount === used.promptTokenCount + used.candidatesTokenCount);
  },
  async "stream is the answer"() {
    const whole = await ai.models.generateContent(asked);
    assert.equal(await texts(await ai.models.generateContentStream(asked)), whole.text);
  },
  async chats() {
    const chat = ai.chats.create({ model, config: { temperature: 0, maxOutputTokens: 40, systemInstruction: "Be brief." } });
    await chat.sendMessage({ message: "hello" });
    await texts(await chat.sendMessageStream({ message: "what is the number after 1?" }));
    const roles = chat.getHistory().map((turn) => turn.role); // a streamed answer is a turn for each of its chunks there
    assert.deepEqual(roles.filter((role, i) => role !== roles[i - 1]), ["user", "model", "user", "model"]);
    assert((await chat.sendMessage({ message: "and then?" })).candidates.length === 1);
  },
  async files() {
    const file = await ai.files.upload({ file: png, config: { mimeType: "image/png", displayName: "disc" } });
    const contents = createUserContent([createPartFromUri(file.uri, file.mimeType), "caption"]);
    const answer = await ai.models.generateContent({ model, contents, config: { maxOutputTokens: 20 } });
    assert(answer.usageMetadata.promptTokensDetails.some((detail) => detail.modality === "IMAGE" && detail.tokenCount > 0));
    assert.equal((await ai.files.get({ name: file.name })).displayName, "disc");
    const names = [];
    for await (const one of await ai.files.list()) names.push(one.name);
    assert(names.includes(file.name));
    await ai.files.delete({ name: file.name });
    await assert.rejects(ai.files.get({ name: file.name }), /PERMISSION_DENIED|NOT_FOUND/);
  },
  async "picture in a message"() {
    const data = readFileSync(png).toString("base64");
    const contents = createUserContent(["caption", { inlineData: { mimeType: "image/png", data } }]);
    assert((await ai.models.generateContent({ model, contents, config: { maxOutputTokens: 20 } })).text);
  },
  async "count tokens"() {
    const { totalTokens } = await ai.models.countTokens({ model, contents: asked.contents });
    assert.equal(totalTokens, (await ai.models.generateContent(asked)).usageMetadata.promptTokenCount);
  },
  async "json by a schema"() {
    const responseSchema = { type: Type.OBJECT, properties: { number: { type: Type.INTEGER } }, required: ["number"] };
    const config = { responseMimeType: "application/json", responseSchema };
    const answer = await ai.models.generateContent({ model, contents: "how many?", config });
    assert(Number.isInteger(JSON.parse(answer.text).number));
  },
  async "function is called and answered"() {
    const mode = FunctionCallingConfigMode.ANY;
    const config = { tools: [{ functionDeclarations: [weather] }], toolConfig: { functionCallingConfig: { mode } } };
    const answer = await ai.models.generateContent({ model, contents: "Does it rain in Oslo?", config });
    const [call] = answer.functionCalls;
    assert(call.name === "weather" && ["Oslo", "Rome"].includes(call.args.city));
    const said = { functionResponse: { name: "weather", id: call.id, response: { output: "rain" } } };
    const contents = ["Does it rain in Oslo?", answer.candidates[0].content, createUserContent([said])];
    const turns = [createUserContent(contents[0]), contents[1], contents[2]];
    assert((await ai.models.generateContent({ model, contents: turns, config: { maxOutputTokens: 20 } })).candidates.length === 1);
  },
  async caches() {
    const cache = await ai.caches.create({ model, config: { contents: "a big red circle. ".repeat(20), ttl: "60s" } });
    const config = { cachedContent: cache.name, maxOutputTokens: 10 };
    const answer = await ai.models.generateContent({ model, contents: "what is it?", config });
    const { cachedContentTokenCount } = answer.usageMetadata; // only whole pages are taken from the cache
    assert(cachedContentTokenCount > 0 && cachedContentTokenCount <= cache.usageMetadata.totalTokenCount);
    await ai.caches.delete({ name: cache.name });
  },
  async embeddings() {
    const { embeddings } = await ai.models.embedContent({ model: "gemini-embedding-001", contents: ["a red circle", "a blue star"] });
    assert.equal(embeddings.length, 2);
    for (const { values } of embeddings) assert(Math.abs(Math.hypot(...values) - 1) < 1e-4);
  },
  async models() {
    const names = [];
    for await (const one of await ai.models.list()) names.push(one.name);
    assert(names.length > 0 && (await ai.models.get({ model })).inputTokenLimit > 0);
  },
  async errors() {
    await assert.rejects(ai.models.generateContent({ model: "no-such-model", contents: "hello" }), (error) => error.status === 404);
  },
};

for (const [check, run] of Object.entries(checks)) {
  let reason = "";
  try {
    await run();
  } catch (error) {
    console.error(error);
    reason = `${error.name}: ${error.message}`;
  }
  console.log(JSON.stringify({ check, reason }));
}
