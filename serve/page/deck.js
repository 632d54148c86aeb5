// @ts-check
/**
 * The deck: a clip that plays. Both a clip that is being made and one of the history lie on it, or two that are compared.
 *
 * @import { Outputs } from "./player.js"
 * @import { Side } from "./types.js"
 */

import { DeckLook } from "./decklook.js";
import { announce } from "./dom.js";
import { Loudness } from "./loudness.js";
import { Picture } from "./picture.js";
import { Player } from "./player.js";
import { Samples } from "./samples.js";
import { words } from "./strings.js";

const MEASURE_S = 0.5; // of new sound between two measurements: their gates look at all blocks again

/** @typedef {Side & {meter: Loudness, measured: number}} Streamed measured: after how many samples its loudness was */

export class Deck {
  /** @type {Player | null} */
  #player = null;
  /** @type {Side[]} one clip, or two that are compared */
  #sides = [];
  #heard = 0;
  #making = false;
  /** @type {() => void} what the button to cancel does */
  oncancel = () => undefined;
  /** @type {() => void} before it plays, so that nothing else does */
  onplay = () => undefined;

  /** @param {Outputs} outputs */
  constructor(outputs) {
    this.outputs = outputs;
    this.look = new DeckLook({
      toggle: () => this.toggle(),
      choose: (side) => this.choose(side),
      cancel: () => this.oncancel(),
      seek: (share) => this.#seek(share * this.picture.span),
      skip: (seconds) => this.skip(seconds),
    });
    this.element = this.look.element;
    this.picture = new Picture(this.look.canvas);
    this.#show();
    const frame = () => {
      const { side } = this;
      if (side && this.#player) this.look.follow(this.#player.now / side.samples.rate, this.picture.span / side.samples.rate);
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }

  /** What is on it and heard, null if nothing is. */
  get side() {
    return this.#sides[this.#heard] ?? null;
  }

  /**
   * Have a player of a rate ready, so that the first press need not wait for it.
   * @param {number} rate Hz
   */
  prepare(rate) {
    if (this.#player?.output.rate === rate) return this.#player;
    this.#player?.clear();
    this.#player = new Player(this.outputs.of(rate));
    this.#player.onchange = this.#player.onended = () => this.#show();
    return this.#player;
  }

  /**
   * Take a clip that will be streamed, and play it as soon as it sounds.
   * @param {string} title
   * @param {number} rate Hz
   * @param {number} expected samples
   * @param {number} pressed when its button was pressed, by `performance.now`; NaN: it waits for a press
   */
  begin(title, rate, expected, pressed) {
    const player = this.prepare(rate);
    const side = { title, samples: new Samples(rate, expected), lufs: -Infinity, meter: new Loudness(rate), measured: 0 };
    this.#sides = [side];
    this.#heard = 0;
    player.clear(pressed);
    this.picture.show(side.samples, expected);
    if (!Number.isNaN(pressed)) player.play();
    this.#show();
    return side;
  }

  /**
   * Add to a clip that is streamed, whether it is still on the deck or not.
   * @param {Streamed} side
   * @param {Int16Array} more
   */
  add(side, more) {
    const { samples } = side;
    if (side === this.side) this.#player?.stream(samples.length, more);
    samples.append(more);
    side.meter.feed(more);
    if (side === this.side) this.picture.grow();
    if (samples.length - side.measured < MEASURE_S * samples.rate) return;
    side.measured = samples.length;
    side.lufs = side.meter.integrated;
  }

  /** @param {Streamed} side of which no more comes */
  end(side) {
    side.lufs = side.meter.integrated;
    if (side !== this.side) return;
    this.#player?.whole();
    this.picture.finish();
    this.#show();
  }

  /**
   * Put a clip on, or two to compare: these play at the loudness of the quieter one.
   * @param {Side[]} sides of one rate
   */
  load(sides) {
    const player = this.prepare(sides[0].samples.rate);
    player.clear();
    const quietest = Math.min(...sides.map((side) => side.lufs));
    sides.forEach(({ samples, lufs }, track) => {
      player.setGain(track, sides.length > 1 && Number.isFinite(quietest) ? 10 ** ((quietest - lufs) / 20) : 1);
      player.push(0, samples.all, track);
      player.whole(track);
    });
    this.#sides = sides;
    this.#heard = 0;
    this.#paint();
    this.play();
  }

  /** @param {number} side of two that are compared, to hear from the same place on */
  choose(side) {
    if (side === this.#heard) return;
    this.#heard = side;
    this.#player?.choose(side);
    this.#paint();
    announce(words.deck.hears(this.side?.title ?? ""));
  }

  /** Take off what is on it. */
  clear() {
    this.#player?.clear();
    this.#sides = [];
    this.#heard = 0;
    this.picture.show(null);
    this.#show();
  }

  toggle() {
    if (this.#player?.state.playing) this.pause();
    else this.play();
  }

  play() {
    const player = this.#player;
    if (!player || !this.side) return;
    this.onplay();
    if (!this.#making && player.state.at >= player.state.end && player.state.end > 0) player.seek(0);
    player.play();
  }

  pause() {
    this.#player?.pause();
  }

  /** @param {number} seconds from where it is */
  skip(seconds) {
    if (this.#player) this.#seek(this.#player.now + seconds * this.#player.output.rate);
  }

  /** @param {number} sample moves there, as far as it is made */
  #seek(sample) {
    if (this.side) this.#player?.seek(Math.min(this.side.samples.length, Math.max(0, sample)));
  }

  /** @param {boolean} making whether a clip is being made */
  set making(making) {
    this.#making = making;
    this.look.making = making;
  }

  /**
   * Say something below the clip.
   * @param {string} text
   * @param {boolean} [wrong]
   */
  say(text, wrong = false) {
    this.look.say(text, wrong);
  }

  #paint() {
    this.picture.show(this.side?.samples ?? null);
    this.picture.finish();
    this.#show();
  }

  #show() {
    const state = this.#player?.state;
    const playing = Boolean(this.side && state?.playing);
    this.look.show(this.#sides, this.#heard, playing);
    document.documentElement.dataset.playing = String(playing && !state?.waiting);
  }
}
