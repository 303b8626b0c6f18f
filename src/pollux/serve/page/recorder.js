// The microphone and the camera. A recorded sound becomes a WAV file of one channel at 16 kHz, the rate at which models hear: what browsers
// record (webm, mp4) differs between them, and not all of it is among the formats of the API. Clips stay as the browser records them.

import { byId, element, note } from "./elements.js";
import { medium, nameFor } from "./media.js";

const RATE = 16_000;
const BARS = 32;

let taken = 0; // recordings are numbered

/** attach(medium) is given what was recorded. */
export class SoundRecorder {
  constructor(attach) {
    this.attach = attach;
    this.levels = byId("recording").querySelector(".levels");
    this.levels.append(...Array.from({ length: BARS }, () => element("i")));
    byId("microphone").addEventListener("click", () => this.start());
    byId("keep").addEventListener("click", () => this.end(true));
    byId("discard").addEventListener("click", () => this.end(false));
    byId("recording").addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      this.end(false);
    });
  }

  async start() {
    if (!navigator.mediaDevices) return pickInstead("audio/*"); // under http, other than on localhost, a page may not listen
    const stream = await ask({ audio: true });
    if (!stream) return;
    this.stream = stream;
    this.recorder = new MediaRecorder(stream);
    this.chunks = [];
    this.recorder.ondataavailable = ({ data }) => this.chunks.push(data);
    this.recorder.start();
    this.started = performance.now();
    this.listen(stream);
    this.show(true);
    byId("keep").focus();
  }

  // The bars show how loud the last seconds were, so that one sees that something is heard.
  listen(stream) {
    this.context = new AudioContext();
    const analyser = this.context.createAnalyser();
    analyser.fftSize = 1024;
    this.context.createMediaStreamSource(stream).connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    const heard = new Array(BARS).fill(0);
    this.timer = setInterval(() => {
      analyser.getFloatTimeDomainData(samples);
      const loudness = Math.sqrt(samples.reduce((sum, x) => sum + x * x, 0) / samples.length);
      heard.shift();
      heard.push(Math.min(1, Math.sqrt(loudness) * 1.6)); // the root makes quiet speech visible
      heard.forEach((level, i) => this.levels.children[i].style.setProperty("--level", level.toFixed(2)));
      byId("recorded").textContent = clock(performance.now() - this.started);
    }, 80);
  }

  async end(keep) {
    clearInterval(this.timer);
    const stopped = new Promise((resolve) => (this.recorder.onstop = resolve));
    this.recorder.stop();
    await stopped;
    for (const track of this.stream.getTracks()) track.stop();
    this.show(false);
    byId("microphone").focus();
    if (keep) await this.keep(new Blob(this.chunks, { type: this.recorder.mimeType }));
    await this.context.close();
  }

  async keep(recorded) {
    try {
      this.attach(medium(await toWav(this.context, recorded), `recording-${++taken}.wav`));
    } catch (error) {
      note(`The recording is too short, or cannot be read: ${error.message}`);
    }
  }

  show(recording) {
    byId("recording").hidden = !recording;
    byId("recorded").textContent = "0:00";
    byId("composer").classList.toggle("records", recording);
  }
}

/** A window with the camera's picture, which can be taken or recorded. */
export class Camera {
  constructor(attach) {
    this.attach = attach;
    this.dialog = byId("camera-dialog");
    this.video = this.dialog.querySelector("video");
    this.says = byId("record-clip").querySelector(".says");
    this.clock = this.dialog.querySelector("output");
    byId("camera").addEventListener("click", () => this.open());
    byId("take-picture").addEventListener("click", () => this.take());
    byId("record-clip").addEventListener("click", () => (this.recorder ? this.endClip() : this.startClip()));
    this.dialog.addEventListener("close", () => this.leave());
  }

  async open() {
    if (!navigator.mediaDevices) return pickInstead("image/*,video/*");
    this.stream = await ask({ video: { facingMode: "environment" }, audio: true });
    if (!this.stream) return;
    this.video.srcObject = this.stream;
    this.dialog.showModal();
    await this.video.play();
    byId("take-picture").focus();
  }

  async take() {
    const canvas = element("canvas", { width: this.video.videoWidth, height: this.video.videoHeight });
    canvas.getContext("2d").drawImage(this.video, 0, 0);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
    this.attach(medium(blob, `photo-${++taken}.jpg`));
    this.dialog.close();
  }

  startClip() {
    const chunks = [];
    const mimeType = ["video/webm", "video/mp4"].find((type) => MediaRecorder.isTypeSupported(type)); // formats of the API
    this.recorder = new MediaRecorder(this.stream, { mimeType });
    this.recorder.ondataavailable = ({ data }) => chunks.push(data);
    this.recorder.onstop = () => {
      const blob = new Blob(chunks, { type: this.recorder.mimeType });
      const made = medium(blob, "");
      made.name = nameFor(`clip-${++taken}`, made.mimeType);
      this.attach(made);
      this.dialog.close();
    };
    this.recorder.start();
    this.dialog.classList.add("records");
    this.says.textContent = "End and attach";
    byId("take-picture").hidden = true;
    const started = performance.now();
    this.timer = setInterval(() => (this.clock.textContent = clock(performance.now() - started)), 250);
  }

  endClip() {
    this.recorder.stop();
  }

  leave() {
    clearInterval(this.timer);
    if (this.recorder?.state === "recording") {
      this.recorder.onstop = null; // closed without keeping it
      this.recorder.stop();
    }
    for (const track of this.stream.getTracks()) track.stop();
    this.recorder = null;
    this.video.srcObject = null;
    this.dialog.classList.remove("records");
    this.says.textContent = "Record a clip";
    this.clock.textContent = "";
    byId("take-picture").hidden = false;
    byId("message").focus();
  }
}

async function ask(wanted) {
  try {
    return await navigator.mediaDevices.getUserMedia(wanted);
  } catch (error) {
    const what = wanted.video ? "camera" : "microphone";
    // A camera without a microphone beside it still takes pictures.
    if (wanted.video && wanted.audio && error.name === "NotFoundError") return ask({ video: wanted.video });
    if (error.name === "NotFoundError") note(`There is no ${what} here.`);
    else if (error.name === "NotAllowedError") note(`The browser does not let this page use the ${what}; its settings for this page can.`);
    else note(`The ${what} does not work: ${error.message}`);
    return null;
  }
}

// On a phone this opens the recorder or the camera of the system; elsewhere a choice of files.
function pickInstead(accept) {
  const files = byId("files");
  const usual = files.accept;
  files.accept = accept;
  files.setAttribute("capture", "environment");
  files.click();
  files.accept = usual;
  files.removeAttribute("capture");
}

async function toWav(context, blob) {
  const recorded = await context.decodeAudioData(await blob.arrayBuffer());
  const offline = new OfflineAudioContext(1, Math.max(1, Math.ceil(recorded.duration * RATE)), RATE); // one channel: mixes and resamples
  const source = offline.createBufferSource();
  source.buffer = recorded;
  source.connect(offline.destination);
  source.start();
  const samples = (await offline.startRendering()).getChannelData(0);
  return new Blob([wavHeader(samples.length), Int16Array.from(samples, (x) => Math.max(-1, Math.min(1, x)) * 32767)], {
    type: "audio/wav",
  });
}

// RIFF header of 16-bit samples, one channel.
function wavHeader(numSamples) {
  const view = new DataView(new ArrayBuffer(44));
  const text = (at, letters) => [...letters].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * numSamples, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // bytes of this block
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // channels
  view.setUint32(24, RATE, true);
  view.setUint32(28, 2 * RATE, true); // bytes a second
  view.setUint16(32, 2, true); // bytes a frame
  view.setUint16(34, 16, true); // bits a sample
  text(36, "data");
  view.setUint32(40, 2 * numSamples, true);
  return view.buffer;
}

function clock(milliseconds) {
  const seconds = Math.floor(milliseconds / 1000);
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}
