// @ts-check
/**
 * The audio thread: plays samples by their numbers, from one of several tracks, and says how far it is.
 *
 * In: messages of player.js. Out: sound, and reports. It holds what it was sent in blocks, so that nothing large is ever copied between
 * two quanta; jumps and switches are crossfaded, and pauses faded, over 5 ms.
 */

/** @type {any} */
const scope = globalThis; // TypeScript's library has no names of this scope
const Processor = /** @type {new () => {port: MessagePort}} */ (scope.AudioWorkletProcessor);
const RATE = /** @type {number} */ (scope.sampleRate);
const BLOCK = 1 << 13;
const FADE = 1 / (0.005 * RATE); // of the level, per sample
const REPORT = Math.round(0.04 * RATE);
const SILENT = 1 / 4096; // what is quieter is not called sound

class Track {
  /** @type {Map<number, Float32Array>} */
  blocks = new Map();
  end = 0; // one past the last sample that is there
  whole = false; // whether nothing more will come
  gain = 1;

  /**
   * @param {number} start
   * @param {Float32Array} samples
   */
  put(start, samples) {
    for (let done = 0; done < samples.length; ) {
      const at = start + done;
      const index = Math.floor(at / BLOCK);
      let block = this.blocks.get(index);
      if (!block) this.blocks.set(index, (block = new Float32Array(BLOCK)));
      const part = samples.subarray(done, done + BLOCK - (at % BLOCK));
      block.set(part, at % BLOCK);
      done += part.length;
    }
    this.end = Math.max(this.end, start + samples.length);
  }

  /** @param {number} at */
  read(at) {
    const block = this.blocks.get(Math.floor(at / BLOCK));
    return block ? block[at % BLOCK] * this.gain : 0;
  }

  /**
   * Forget what lies before a sample.
   * @param {number} sample
   */
  forget(sample) {
    for (const index of this.blocks.keys()) if ((index + 1) * BLOCK < sample) this.blocks.delete(index);
  }
}

class Player extends Processor {
  /** @type {Track[]} */
  tracks = [new Track()];
  current = 0;
  at = 0;
  playing = false;
  waiting = true;
  lead = Math.round(0.1 * RATE); // samples that must be there before it begins
  keep = Infinity; // samples behind `at` that stay
  level = 1;
  underruns = 0;
  sounded = false;
  since = 0; // samples since the last report
  told = 0; // the end that it told
  seeks = 0; // that were done
  /** @type {{track: Track, at: number, level: number} | null} what was heard before a jump, until it has faded */
  tail = null;

  constructor() {
    super();
    this.port.onmessage = (event) => this.take(event.data);
  }

  get track() {
    return this.tracks[this.current];
  }

  /** @param {any} message */
  take(message) {
    if (message.type === "push") {
      const track = (this.tracks[message.track] ??= new Track());
      const endless = this.keep !== Infinity;
      if (endless && message.start > track.end) this.at = message.start; // music that begins anew
      track.put(message.start, message.samples);
      if (endless) track.forget(this.at - this.keep);
      return;
    }
    if (message.type === "whole") (this.tracks[message.track] ??= new Track()).whole = true;
    else if (message.type === "play") {
      this.playing = true;
      this.waiting ||= this.at >= this.track.end;
    } else if (message.type === "pause") this.playing = false;
    else if (message.type === "lead") this.lead = message.samples;
    else if (message.type === "keep") this.keep = message.samples;
    else if (message.type === "gain") (this.tracks[message.track] ??= new Track()).gain = message.gain;
    else if (message.type === "seek") {
      this.jump(this.current, message.sample);
      this.seeks = message.seeks;
    } else if (message.type === "choose") this.jump(message.track, this.at);
    else if (message.type === "clear") {
      this.tracks = [new Track()];
      this.current = this.at = this.underruns = 0;
      this.playing = this.sounded = false;
      this.waiting = true;
      this.level = 1;
      this.tail = null;
    }
    this.report();
  }

  /**
   * @param {number} track
   * @param {number} sample
   */
  jump(track, sample) {
    if (this.playing && !this.waiting) {
      this.tail = { track: this.track, at: this.at, level: this.level };
      this.level = 0;
    }
    this.current = track;
    this.tracks[track] ??= new Track();
    this.at = Math.max(0, Math.min(sample, this.track.end));
    this.waiting ||= this.at >= this.track.end && !this.track.whole;
  }

  report() {
    const { at, playing, waiting, underruns } = this;
    this.told = this.track.end;
    this.port.postMessage({ type: "at", at, end: this.told, playing, waiting, underruns, seeks: this.seeks });
    this.since = 0;
  }

  /**
   * @param {Float32Array[][]} _
   * @param {Float32Array[][]} outputs
   */
  process(_, outputs) {
    const out = outputs[0][0];
    const track = this.track;
    if (this.playing && this.waiting && (track.whole || track.end - this.at >= this.lead)) {
      this.waiting = false;
      this.report();
    }
    for (let index = 0; index < out.length; index++) {
      const runs = this.playing && !this.waiting;
      this.level = runs ? Math.min(1, this.level + FADE) : Math.max(0, this.level - FADE);
      if (!runs && (this.level === 0 || this.waiting || this.at >= track.end)) break;
      if (this.at >= track.end) {
        this.stopAtEnd(track);
        break;
      }
      let value = track.read(this.at++) * this.level;
      if (this.tail) value += this.fading();
      out[index] = value;
      if (!this.sounded && Math.abs(value) > SILENT) {
        this.sounded = true;
        this.port.postMessage({ type: "sound", at: this.at - 1 });
      }
    }
    this.since += out.length;
    if (this.since >= REPORT && (this.playing || this.told !== track.end)) this.report();
    return true;
  }

  /** @param {Track} track */
  stopAtEnd(track) {
    this.level = 0;
    if (track.whole) {
      this.playing = false;
      this.port.postMessage({ type: "ended" });
    } else {
      this.waiting = true;
      this.underruns++;
    }
    this.report();
  }

  /** Return the next sample of what was heard before a jump. */
  fading() {
    const tail = /** @type {NonNullable<typeof this.tail>} */ (this.tail);
    tail.level -= FADE;
    if (tail.level <= 0 || tail.at >= tail.track.end) {
      this.tail = null;
      return 0;
    }
    return tail.track.read(tail.at++) * tail.level;
  }
}

scope.registerProcessor("musiclm-player", Player);
