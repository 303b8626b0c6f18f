// The routes of the Gemini API that the page uses, one function each. Everything that goes over the network is in this file, so it also
// shows how to call the API from JavaScript; nothing here knows of the page.

const ROOT = new URL("../", import.meta.url); // where the server is, also when a proxy puts it under a path
const VERSION = "v1beta/";
const CHUNK = 8 << 20; // bytes of a file in one request

let apiKey = localStorage.getItem("pollux.key") ?? "";

export const serverAddress = () => ROOT.href.replace(/\/$/, "");
export const hasKey = () => apiKey !== "";

/** Use a key from now on and in this browser; "" forgets it. */
export function setKey(key) {
  apiKey = key.trim();
  if (apiKey) localStorage.setItem("pollux.key", apiKey);
  else localStorage.removeItem("pollux.key");
}

/** What the server answered instead of what was asked. code: of HTTP, 0 if no answer came. */
export class ApiError extends Error {
  constructor(code, message, reason = "") {
    super(message);
    this.code = code;
    this.reason = reason;
  }

  static of({ code, message, details = [] }) {
    return new ApiError(code, message, details.find((detail) => detail.reason)?.reason);
  }
}

/** All models, as the server describes them. */
export async function listModels() {
  const models = [];
  let pageToken = "";
  do {
    const page = await json("GET", `models?pageSize=200${pageToken && `&pageToken=${encodeURIComponent(pageToken)}`}`);
    models.push(...(page.models ?? []));
    pageToken = page.nextPageToken ?? "";
  } while (pageToken);
  return models.filter((model) => model.supportedGenerationMethods?.includes("streamGenerateContent") ?? true);
}

/** The responses of streamGenerateContent, as they come. Raises ApiError, also in the middle. */
export async function* streamGenerateContent(model, request, signal) {
  const response = await call("POST", `${model}:streamGenerateContent?alt=sse`, { body: JSON.stringify(request), signal });
  for await (const event of events(response.body)) {
    const chunk = JSON.parse(event);
    if (chunk.error) throw ApiError.of(chunk.error);
    yield chunk;
  }
}

/** {totalTokens, promptTokensDetails} of contents. */
export function countTokens(model, contents, signal) {
  return json("POST", `${model}:countTokens`, { contents }, signal);
}

/** Keep contents on the server -> {name, expireTime, usageMetadata}. */
export function createCachedContent(cachedContent) {
  return json("POST", "cachedContents", cachedContent);
}

export function deleteCachedContent(name) {
  return json("DELETE", name);
}

/** Send a file in pieces (the resumable protocol) -> {name, uri, mimeType, expirationTime}. progress(share) is told how far it is. */
export async function uploadFile(blob, displayName, mimeType, progress, signal) {
  const start = await call("POST", `../upload/${VERSION}files`, {
    body: JSON.stringify({ file: { displayName } }),
    headers: {
      "X-Goog-Upload-Protocol": "resumable",
      "X-Goog-Upload-Command": "start",
      "X-Goog-Upload-Header-Content-Length": String(blob.size),
      "X-Goog-Upload-Header-Content-Type": mimeType,
    },
    signal,
  });
  // The address names the host as the server knows it; seen through a proxy it is another, so only the path counts.
  const address = new URL(start.headers.get("X-Goog-Upload-URL"), ROOT);
  const target = new URL(address.pathname + address.search, ROOT);

  for (let offset = 0; ; offset += CHUNK) {
    const last = offset + CHUNK >= blob.size;
    const response = await call("POST", target, {
      body: blob.slice(offset, offset + CHUNK),
      headers: { "X-Goog-Upload-Command": last ? "upload, finalize" : "upload", "X-Goog-Upload-Offset": String(offset) },
      signal,
    });
    progress(Math.min(1, (offset + CHUNK) / blob.size));
    if (last) return active((await response.json()).file, signal);
  }
}

// A video may be looked at by the server before it can be used.
async function active(file, signal) {
  while (file.state === "PROCESSING") {
    await new Promise((wake) => setTimeout(wake, 500));
    file = await json("GET", file.name, undefined, signal);
  }
  if (file.state === "FAILED") throw new ApiError(400, file.error?.message ?? "The server could not read the file.");
  return file;
}

async function json(method, path, body, signal) {
  const response = await call(method, path, { body: body && JSON.stringify(body), signal });
  return response.json();
}

async function call(method, path, { body, headers = {}, signal } = {}) {
  const all = {
    ...(apiKey && { "x-goog-api-key": apiKey }),
    ...(typeof body === "string" && { "Content-Type": "application/json" }),
    ...headers,
  };
  let response;
  try {
    response = await fetch(new URL(path, new URL(VERSION, ROOT)), { method, body, headers: all, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, error.message);
  }
  if (response.ok) return response;
  const text = await response.text();
  throw ApiError.of(errorIn(text) ?? { code: response.status, message: text.slice(0, 500) || response.statusText });
}

// A proxy in front of the server answers errors in its own words, which need not be JSON.
function errorIn(text) {
  try {
    const parsed = JSON.parse(text);
    return (Array.isArray(parsed) ? parsed[0] : parsed).error;
  } catch {
    return null;
  }
}

// Server-sent events: what follows "data: ", until an empty line.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const blocks = (waiting + value).split(/\r?\n\r?\n/);
      waiting = blocks.pop();
      for (const block of blocks) if (block.startsWith("data:")) yield block.slice(5);
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, error.message);
  }
  if (waiting.trim()) throw new ApiError(0, "the answer broke off");
}
