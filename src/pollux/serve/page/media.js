// Pictures, sounds and videos: what may be attached, how each is shown, and in which of two ways it goes to the server. Small ones travel
// inside each request (inlineData); large ones are sent once to the Files API and then only named (fileData).
//
// A medium is {blob, mimeType, name, file}; file = {name, uri, expires} once the server has it. Blobs and all fit into IndexedDB.

import { element } from "./elements.js";
import { uploadFile } from "./gemini.js";

const INLINE_LIMIT = 1 << 20; // bytes
const KINDS = { image: "picture", audio: "sound", video: "video" };
const MARGIN = 60_000; // ms before it expires, a file counts as gone

/** "image", "audio", "video" or "" for anything else. */
export function kindOf(mimeType) {
  const kind = mimeType.split("/")[0];
  return kind in KINDS ? kind : "";
}

/** In words: "picture", "sound", "video". */
export const kindInWords = (mimeType) => KINDS[kindOf(mimeType)] ?? "file";

/** A medium of a file or a recording; null for files that are neither picture nor sound nor video. */
export function medium(blob, name) {
  const mimeType = (blob.type || typeByName(name)).split(";")[0]; // recordings append their codecs, which the API does not know
  return kindOf(mimeType) ? { blob, mimeType, name, file: null } : null;
}

// Some systems know no type for these.
function typeByName(name) {
  const types = {
    flac: "audio/flac",
    opus: "audio/ogg",
    mkv: "video/x-matroska",
    m4a: "audio/mp4",
    heic: "image/heic",
    avif: "image/avif",
  };
  return types[name.split(".").pop().toLowerCase()] ?? "";
}

export const isLarge = (medium) => medium.blob.size > INLINE_LIMIT;

/** Send a large medium to the Files API, unless the server still has it. Raises ApiError. */
export async function upload(medium, progress = () => {}, signal = undefined) {
  if (!isLarge(medium) || (medium.file && medium.file.expires > Date.now() + MARGIN)) return;
  const { name, uri, expirationTime } = await uploadFile(medium.blob, medium.name, medium.mimeType, progress, signal);
  medium.file = { name, uri, expires: expirationTime ? Date.parse(expirationTime) : Infinity };
}

/** The part of a request that holds the medium. */
export async function mediumPart(medium) {
  if (isLarge(medium)) return { fileData: { mimeType: medium.mimeType, fileUri: medium.file.uri } };
  return { inlineData: { mimeType: medium.mimeType, data: await base64(medium.blob) } };
}

const encoded = new WeakMap(); // each request carries the whole conversation; a blob is encoded once

function base64(blob) {
  if (!encoded.has(blob)) {
    const reading = new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result.slice(reader.result.lastIndexOf(",") + 1));
      reader.onerror = () => reject(reader.error);
      reader.readAsDataURL(blob);
    });
    encoded.set(blob, reading);
  }
  return encoded.get(blob);
}

/** A blob of base64, as answers bring pictures. */
export function blobOf(data, mimeType) {
  return new Blob([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], { type: mimeType });
}

const addresses = new WeakMap();

/** An address of the blob within this page. */
export function addressOf(blob) {
  if (!addresses.has(blob)) addresses.set(blob, URL.createObjectURL(blob));
  return addresses.get(blob);
}

/** The medium as it is seen or heard; a picture calls `enlarge` when it is pressed. */
export function show(medium, label, enlarge) {
  const src = addressOf(medium.blob);
  if (kindOf(medium.mimeType) === "audio") return element("audio", { src, controls: true, preload: "metadata", "aria-label": label });
  if (kindOf(medium.mimeType) === "video")
    return element("video", { src, controls: true, playsinline: true, preload: "metadata", "aria-label": label });
  const picture = element("img", { src, alt: label, decoding: "async" });
  // What small models draw has few pixels; they are shown larger, with their edges.
  picture.addEventListener("load", () => picture.classList.toggle("small", picture.naturalWidth <= 128));
  return element(
    "button",
    { type: "button", class: "picture", title: "Enlarge", "aria-label": `Enlarge ${label}`, onclick: () => enlarge(medium, label) },
    picture,
  );
}

/** "picture.png" of "image/png": a name for what has none. */
export function nameFor(base, mimeType) {
  const endings = { "audio/mpeg": "mp3", "audio/mp4": "m4a", "image/jpeg": "jpg", "video/quicktime": "mov", "video/x-matroska": "mkv" };
  return `${base}.${endings[mimeType] ?? mimeType.split("/")[1].replace(/^x-/, "").split("+")[0]}`;
}
