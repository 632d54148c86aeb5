// @ts-check
/**
 * A sound from a person: dropped, chosen as a file, or recorded by the microphone.
 *
 * @import { Sound } from "./types.js"
 */

import { announce, button, clock, dress, make } from "./dom.js";
import { words } from "./strings.js";
import { base64, sixteenBits, wav } from "./wav.js";

const READ_BY_SERVER = /\.(wav|flac|ogg|opus|mp3)$/i;
const MOST_BYTES = 12e6; // of a file that is sent as it is
export const MOST_S = 60; // of a sound, by the server's default
const RECORD_S = 30;

/** A place for one sound. */
export class Reference {
  /** @type {Sound | null} */
  sound = null;
  /** @type {MediaRecorder | null} */
  #recorder = null;
  /** @type {() => void} */
  onchange = () => undefined;

  constructor() {
    this.input = make("input", { type: "file", id: "reference-file", class: "unseen", accept: "audio/*", change: () => this.#chosen() });
    this.label = make("label", { for: "reference-file", class: "button" }, words.reference.choose);
    this.microphone = button(words.reference.record, () => this.#record(), { icon: "mic" });
    this.name = make("span", { class: "name" }, words.reference.hint);
    this.remove = button(words.reference.remove, () => this.set(null), { icon: "close", class: "quiet", bare: true, hidden: true });
    this.note = make("p", { class: "note wrong", role: "alert" });
    this.element = make(
      "div",
      {
        class: "reference",
        role: "group",
        "aria-label": words.reference.label,
        dragover: (/** @type {DragEvent} */ event) => {
          event.preventDefault();
          this.element.classList.add("over");
        },
        dragleave: () => this.element.classList.remove("over"),
        drop: (/** @type {DragEvent} */ event) => {
          event.preventDefault();
          this.element.classList.remove("over");
          const file = event.dataTransfer?.files[0];
          if (file) this.take(file);
        },
      },
      this.input,
      this.label,
      this.microphone,
      this.name,
      this.remove,
      this.note,
    );
    this.microphone.hidden = !navigator.mediaDevices; // which only pages of https and of this machine have
  }

  /** @param {Sound | null} sound */
  set(sound) {
    this.sound = sound;
    this.note.textContent = "";
    this.name.textContent = sound?.name ?? words.reference.hint;
    this.remove.hidden = !sound;
    this.input.value = "";
    this.onchange();
  }

  #chosen() {
    const file = this.input.files?.[0];
    if (file) this.take(file);
  }

  /**
   * Take a file. What the server does not read is decoded here.
   * @param {File} file
   */
  async take(file) {
    try {
      if (READ_BY_SERVER.test(file.name) && file.size <= MOST_BYTES) this.set({ name: file.name, data: await base64(file) });
      else await this.#decode(file, file.name);
    } catch {
      this.#fail(words.reference.unreadable(file.name));
    }
  }

  /**
   * @param {Blob} blob
   * @param {string} name
   */
  async #decode(blob, name) {
    const context = new OfflineAudioContext(1, 1, 44_100);
    const sound = await context.decodeAudioData(await blob.arrayBuffer());
    const mono = new Float32Array(Math.min(sound.length, MOST_S * sound.sampleRate));
    for (let channel = 0; channel < sound.numberOfChannels; channel++) {
      const data = sound.getChannelData(channel);
      for (let at = 0; at < mono.length; at++) mono[at] = mono[at] + data[at] / sound.numberOfChannels;
    }
    this.set({ name, data: await base64(wav(sixteenBits(mono), sound.sampleRate)) });
    if (mono.length < sound.length) this.#fail(words.reference.shortened(MOST_S));
  }

  async #record() {
    if (this.#recorder) {
      this.#recorder.stop();
      return;
    }
    try {
      const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false }; // they are made for speech
      const stream = await navigator.mediaDevices.getUserMedia({ audio });
      const recorder = new MediaRecorder(stream);
      /** @type {Blob[]} */
      const parts = [];
      const began = performance.now();
      const timer = setInterval(() => {
        const seconds = (performance.now() - began) / 1000;
        this.name.textContent = words.reference.recording(clock(seconds));
        if (seconds >= RECORD_S) recorder.stop();
      }, 100);
      recorder.ondataavailable = (event) => parts.push(event.data);
      recorder.onstop = () => {
        clearInterval(timer);
        for (const track of stream.getTracks()) track.stop();
        this.#recorder = null;
        dress(this.microphone, words.reference.record, "mic");
        const name = words.reference.recorded(clock((performance.now() - began) / 1000));
        this.#decode(new Blob(parts, { type: recorder.mimeType }), name).catch(() => this.#fail(words.reference.unreadable(name)));
      };
      this.#recorder = recorder;
      recorder.start();
      dress(this.microphone, words.reference.stop, "stop");
      announce(words.reference.records);
    } catch {
      this.#fail(words.reference.noMicrophone);
    }
  }

  /** @param {string} message */
  #fail(message) {
    this.note.textContent = message;
  }
}
