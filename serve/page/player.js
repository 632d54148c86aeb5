// @ts-check
/**
 * The page's side of the audio thread: one context at the model's rate, and players on it.
 *
 * @import { Transport } from "./types.js"
 */

import { rest } from "./dom.js";
import { Lead } from "./lead.js";

/** Where sound comes out: a context and a volume, which all players share. */
export class Output {
  /** @param {number} rate Hz */
  constructor(rate) {
    this.rate = rate;
    this.context = new AudioContext({ sampleRate: rate, latencyHint: "interactive" });
    this.gain = this.context.createGain();
    this.gain.connect(this.context.destination);
    this.ready = this.#load();
  }

  /** Load the audio thread's module, again where the network was away. */
  async #load() {
    for (;;) {
      try {
        return await this.context.audioWorklet.addModule(new URL("worklet.js", import.meta.url));
      } catch {
        await rest(1);
      }
    }
  }

  /** Let it sound; browsers allow that after a press alone. */
  wake() {
    return this.context.resume();
  }

  /** @param {number} volume from 0 to 1; heard as loudness, so its square is the amplitude */
  set volume(volume) {
    this.gain.gain.setTargetAtTime(volume * volume, this.context.currentTime, 0.01);
  }
}

/** Outputs by rate: the models of a server, and clips of older ones, may have several. */
export class Outputs {
  /** @type {Map<number, Output>} */
  #outputs = new Map();
  #volume = 0.9;

  /** @param {number} rate Hz */
  of(rate) {
    let output = this.#outputs.get(rate);
    if (!output) {
      output = new Output(rate);
      output.volume = this.#volume;
      this.#outputs.set(rate, output);
    }
    return output;
  }

  /** @param {number} volume from 0 to 1 */
  set volume(volume) {
    this.#volume = volume;
    for (const output of this.#outputs.values()) output.volume = volume;
  }
}

/** One thing that plays: tracks of samples with a place in them. */
export class Player {
  /** @type {Transport} */
  state = { at: 0, end: 0, playing: false, waiting: true, underruns: 0 };
  /** @type {() => void} */
  onchange = () => undefined;
  /** @type {() => void} */
  onended = () => undefined;
  /** @type {AudioWorkletNode | null} */
  #node = null;
  /** @type {[object, Transferable[]][]} what is sent before the audio thread is there */
  #early = [];
  #reported = 0;
  #seeks = 0;
  #pressed = Number.NaN;

  /**
   * @param {Output} output
   * @param {Lead} [lead]
   * @param {number} [keepS] seconds of sound behind the playhead that are kept; by default all
   */
  constructor(output, lead = new Lead(), keepS) {
    this.output = output;
    this.lead = lead;
    if (keepS !== undefined) this.#send({ type: "keep", samples: Math.round(keepS * output.rate) });
    output.ready.then(() => this.#open());
  }

  #open() {
    const { context, gain } = this.output;
    const node = new AudioWorkletNode(context, "musiclm-player", { numberOfInputs: 0, outputChannelCount: [1] });
    node.port.onmessage = (event) => this.#take(event.data);
    node.connect(gain);
    this.#node = node;
    for (const [message, moved] of this.#early.splice(0)) node.port.postMessage(message, moved);
  }

  /** @param {any} message */
  #take(message) {
    if (message.type === "at") {
      const { at, end, playing, waiting, underruns } = message;
      const { dataset } = document.documentElement;
      dataset.underruns = String(Number(dataset.underruns ?? 0) + Math.max(0, underruns - this.state.underruns)); // of all players
      const here = message.seeks === this.#seeks ? at : this.state.at; // else it was on its way when somebody moved
      this.state = { at: here, end, playing, waiting, underruns };
      this.#reported = performance.now();
      this.onchange();
    } else if (message.type === "sound" && !Number.isNaN(this.#pressed)) {
      // for tests, and for the curious
      document.documentElement.dataset.firstSoundMs = (performance.now() - this.#pressed).toFixed(0);
      this.#pressed = Number.NaN;
    } else if (message.type === "ended") this.onended();
  }

  /**
   * @param {object} message
   * @param {Transferable[]} [moved]
   */
  #send(message, moved = []) {
    if (this.#node) this.#node.port.postMessage(message, moved);
    else this.#early.push([message, moved]);
  }

  /**
   * Forget all that is there.
   * @param {number} [pressed] when the press came for which sound is to follow, by `performance.now`
   */
  clear(pressed = Number.NaN) {
    this.#pressed = pressed;
    this.state = { at: 0, end: 0, playing: false, waiting: true, underruns: 0 };
    this.lead.begin();
    this.#send({ type: "clear" });
  }

  /**
   * Add samples.
   * @param {number} start number of the first
   * @param {Int16Array} samples
   * @param {number} [track]
   */
  push(start, samples, track = 0) {
    const floats = new Float32Array(samples.length);
    for (let index = 0; index < samples.length; index++) floats[index] = samples[index] / 32768;
    this.#send({ type: "push", track, start, samples: floats }, [floats.buffer]);
  }

  /**
   * Add samples that came over a line: when they came says how much must be there before sound begins.
   * @param {number} start
   * @param {Int16Array} samples
   */
  stream(start, samples) {
    this.lead.note(performance.now() / 1000, samples.length / this.output.rate);
    this.#send({ type: "lead", samples: Math.round(this.lead.seconds * this.output.rate) });
    this.push(start, samples);
  }

  /**
   * Say that nothing more will come.
   * @param {number} [track]
   */
  whole(track = 0) {
    this.#send({ type: "whole", track });
  }

  play() {
    this.output.wake();
    this.#send({ type: "play" });
  }

  pause() {
    this.#send({ type: "pause" });
  }

  /** @param {number} sample */
  seek(sample) {
    this.state = { ...this.state, at: Math.round(sample) };
    this.#send({ type: "seek", sample: this.state.at, seeks: ++this.#seeks });
  }

  /** @param {number} track */
  choose(track) {
    this.#send({ type: "choose", track });
  }

  /**
   * @param {number} track
   * @param {number} gain amplitude
   */
  setGain(track, gain) {
    this.#send({ type: "gain", track, gain });
  }

  /** The sample that is heard now, also between two reports. */
  get now() {
    const { at, end, playing, waiting } = this.state;
    const since = playing && !waiting && this.output.context.state === "running" ? (performance.now() - this.#reported) / 1000 : 0;
    return Math.min(end, at + Math.min(since, 0.2) * this.output.rate);
  }
}
