// @ts-check
/**
 * The deck: what a clip looks like, and what plays it. Both a clip that is being made and one of the history lie on it.
 *
 * @typedef {import("./types.js").Job} Job
 */

import { announce, button, clock, dress, make } from "./dom.js";
import { Loudness, shownLoudness } from "./loudness.js";
import { Picture } from "./picture.js";
import { Output, Player } from "./player.js";
import { Samples } from "./samples.js";
import { words } from "./strings.js";

const JUMP_S = 1;
const FAR_S = 5;

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

/**
 * A clip that can be put on the deck.
 * @typedef {object} Side
 * @property {string} title
 * @property {Samples} samples
 * @property {number} lufs
 */

export class Deck {
  /** @type {Player | null} */
  #player = null;
  /** @type {Side[]} one clip, or two that are compared */
  #sides = [];
  #side = 0;
  #meter = new Loudness(48_000);
  #making = false;
  #measured = 0;
  /** @type {() => void} what the button to cancel does */
  oncancel = () => undefined;
  /** @type {() => void} before it plays, so that nothing else does */
  onplay = () => undefined;

  /** @param {Outputs} outputs */
  constructor(outputs) {
    this.outputs = outputs;
    const canvas = make("canvas", { "aria-hidden": "true" });
    this.head = make("div", { class: "head" });
    this.empty = make("p", { class: "empty" }, words.deck.empty);
    this.display = make(
      "div",
      {
        class: "display",
        role: "slider",
        tabindex: 0,
        "aria-label": words.deck.position,
        "aria-valuemin": 0,
        "aria-valuemax": 0,
        "aria-valuenow": 0,
        "aria-valuetext": words.deck.nothing,
        pointerdown: (/** @type {PointerEvent} */ event) => this.#drag(event),
        pointermove: (/** @type {PointerEvent} */ event) => event.buttons && this.#drag(event),
        keydown: (/** @type {KeyboardEvent} */ event) => this.#key(event),
      },
      canvas,
      this.head,
      this.empty,
    );
    this.picture = new Picture(canvas);
    this.title = make("p", { class: "title" });
    this.time = make("span", { class: "time" }, clock(0));
    this.total = make("span", { class: "total" });
    this.loudness = make("span", { class: "loudness", title: words.deck.loudness });
    this.switch = button("playpause", () => this.toggle(), { class: "round" });
    this.compareSwitch = button(words.deck.switch, () => this.switchSide(), { class: "sides", hidden: true });
    this.cancel = button(words.deck.cancel, () => this.oncancel(), { icon: "close", class: "quiet", hidden: true });
    this.stages = make("div", { class: "stages", hidden: true });
    this.note = make("p", { class: "note", role: "status" });
    this.element = make(
      "section",
      { class: "deck", "aria-label": words.deck.label },
      this.display,
      make(
        "div",
        { class: "transport" },
        this.switch,
        make("div", { class: "clock" }, this.time, this.total),
        this.compareSwitch,
        this.title,
        this.loudness,
        this.cancel,
      ),
      this.stages,
      this.note,
    );
    this.#show();
    const frame = () => {
      this.#follow();
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }

  /** What is on it and heard, null if nothing is. */
  get side() {
    return this.#sides[this.#side] ?? null;
  }

  /**
   * Take a clip that will be streamed, and play it as soon as it sounds.
   * @param {string} title
   * @param {number} rate Hz
   * @param {number} expected samples
   * @param {number} pressed when its button was pressed, by `performance.now`; NaN: it waits for a press
   */
  begin(title, rate, expected, pressed) {
    const player = this.#playerOf(rate);
    const samples = new Samples(rate, expected);
    this.#sides = [{ title, samples, lufs: -Infinity }];
    this.#side = 0;
    this.#meter = new Loudness(rate);
    this.#measured = 0;
    player.clear(pressed);
    this.picture.show(samples, expected);
    if (!Number.isNaN(pressed)) player.play();
    this.#show();
    return samples;
  }

  /** @param {Int16Array} samples */
  add(samples) {
    const side = this.side;
    if (!side) return;
    this.#player?.stream(side.samples.length, samples);
    side.samples.append(samples);
    this.#meter.feed(samples);
    this.picture.grow();
  }

  /** Note that all of the clip is there. */
  end() {
    this.#player?.whole();
    this.picture.finish();
    if (this.side) this.side.lufs = this.#meter.integrated;
    this.#show();
  }

  /**
   * Put a clip on, or two to compare: these play at the loudness of the quieter one.
   * @param {Side[]} sides of one rate
   */
  load(sides) {
    const player = this.#playerOf(/** @type {Side} */ (sides[0]).samples.rate);
    player.clear();
    const quietest = Math.min(...sides.map((side) => side.lufs));
    sides.forEach(({ samples, lufs }, track) => {
      player.push(0, samples.all, track);
      player.setGain(track, sides.length > 1 && Number.isFinite(quietest) ? 10 ** ((quietest - lufs) / 20) : 1);
      player.whole(track);
    });
    this.#sides = sides;
    this.#side = 0;
    this.#paint();
    this.play();
  }

  /** Hear the other of two clips, from the same place on. */
  switchSide() {
    if (this.#sides.length < 2) return;
    this.#side = 1 - this.#side;
    this.#player?.choose(this.#side);
    this.#paint();
    announce(words.deck.hears(this.#side ? "B" : "A", this.side?.title ?? ""));
  }

  #paint() {
    this.picture.show(this.side?.samples ?? null);
    this.picture.finish();
    this.#show();
  }

  /** @param {number} rate */
  #playerOf(rate) {
    if (this.#player?.output.rate === rate) return this.#player;
    this.#player?.clear();
    this.#player = new Player(this.outputs.of(rate));
    this.#player.onchange = () => this.#show();
    this.#player.onended = () => this.#show();
    return this.#player;
  }

  /** Take off what is on it. */
  clear() {
    this.#player?.clear();
    this.#sides = [];
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
    const player = this.#player;
    if (player && this.side) player.seek(Math.max(0, Math.min(player.now + seconds * player.output.rate, this.side.samples.length)));
  }

  /** @param {PointerEvent} event */
  #drag(event) {
    const { left, width } = this.display.getBoundingClientRect();
    if (this.side) this.#player?.seek(Math.min(this.side.samples.length, Math.max(0, ((event.clientX - left) / width) * this.picture.span)));
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    /** @type {Record<string, number>} */
    const seconds = { ArrowLeft: -JUMP_S, ArrowDown: -JUMP_S, ArrowRight: JUMP_S, ArrowUp: JUMP_S, PageUp: FAR_S, PageDown: -FAR_S, Home: -1e6, End: 1e6 };
    const jump = seconds[event.key];
    if (jump === undefined) return;
    event.preventDefault();
    this.skip(jump);
  }

  /** @param {boolean} making */
  set making(making) {
    this.#making = making;
    this.cancel.hidden = !making;
    this.stages.hidden = true;
    this.stages.replaceChildren();
    this.element.classList.toggle("making", making);
  }

  /**
   * Say how far a job is.
   * @param {Job} job
   */
  progress(job) {
    if (!this.#making) return;
    if (job.position) this.say(words.deck.queued(job.position));
    else if (this.note.dataset.queued) this.say("");
    this.note.dataset.queued = job.position ? "true" : "";
    for (const [stage, { done, total }] of Object.entries(job.progress)) {
      let bar = this.stages.querySelector(`[data-stage="${stage}"]`);
      if (!bar) {
        const name = words.stages[stage] ?? stage;
        bar = make("progress", { "data-stage": stage, max: 1, "aria-label": name });
        this.stages.append(make("span", { class: "stage" }, make("span", {}, name), bar));
      }
      /** @type {HTMLProgressElement} */ (bar).value = total ? done / total : 0;
    }
    this.stages.hidden = !this.stages.childElementCount;
  }

  /**
   * Say something below the clip.
   * @param {string} text
   * @param {"calm" | "wrong"} [tone]
   */
  say(text, tone = "calm") {
    this.note.textContent = text;
    this.note.classList.toggle("wrong", tone === "wrong");
  }

  /** Show what plays, and how. */
  #show() {
    const side = this.side;
    const state = this.#player?.state;
    const playing = Boolean(side && state?.playing);
    dress(this.switch, playing ? words.deck.pause : words.deck.play, playing ? "pause" : "play", true);
    this.switch.title = playing ? words.deck.pause : words.deck.play;
    this.switch.disabled = !side;
    this.empty.hidden = Boolean(side);
    this.title.textContent = side?.title ?? "";
    this.title.title = side?.title ?? "";
    this.compareSwitch.hidden = this.#sides.length < 2;
    this.compareSwitch.replaceChildren(...["A", "B"].map((name, index) => make("span", { class: index === this.#side ? "on" : null }, name)));
    this.compareSwitch.setAttribute("aria-label", words.deck.switchFrom(this.#side ? "B" : "A"));
    this.#measure();
    document.documentElement.dataset.playing = String(playing && !state?.waiting);
  }

  /** Show the loudness of what is there, but not at every chunk: its gates look at all blocks again. */
  #measure() {
    const side = this.side;
    if (side && this.#making && side.samples.length - this.#measured > side.samples.rate / 2) {
      this.#measured = side.samples.length;
      side.lufs = this.#meter.integrated;
    }
    this.loudness.textContent = side && side.lufs > -Infinity ? shownLoudness(side.lufs) : "";
  }

  /** Show where it is. */
  #follow() {
    const side = this.side;
    const player = this.#player;
    this.head.hidden = !side;
    if (!side || !player) return;
    const { rate } = side.samples;
    const at = player.now;
    this.head.style.transform = `translateX(${((at / this.picture.span) * this.display.clientWidth).toFixed(2)}px)`;
    const [now, total] = [clock(at / rate), clock(this.picture.span / rate)];
    if (this.time.textContent === now && this.total.textContent === `/ ${total}`) return;
    this.time.textContent = now;
    this.total.textContent = `/ ${total}`;
    this.display.setAttribute("aria-valuemax", (this.picture.span / rate).toFixed(1));
    this.display.setAttribute("aria-valuenow", (at / rate).toFixed(1));
    this.display.setAttribute("aria-valuetext", words.deck.of(now, total));
  }
}
