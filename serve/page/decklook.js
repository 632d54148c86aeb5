// @ts-check
/**
 * What the deck looks like: its elements, and what they show. deck.js decides what plays.
 *
 * @import { Job } from "./types.js"
 */

import { button, clock, dress, make, put } from "./dom.js";
import { shownLoudness } from "./loudness.js";
import { words } from "./strings.js";

/** @type {Record<string, number>} seconds by which a key moves */
const JUMPS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageUp: 5, PageDown: -5, Home: -1e6, End: 1e6 };

export class DeckLook {
  #span = ""; // what is shown as its length

  /** @param {import("./types.js").DeckActions} actions */
  constructor(actions) {
    const drag = (/** @type {PointerEvent} */ event) => {
      const { left, width } = this.display.getBoundingClientRect();
      actions.seek(Math.min(1, Math.max(0, (event.clientX - left) / width)));
    };
    const keydown = (/** @type {KeyboardEvent} */ event) => {
      const jump = JUMPS[event.key];
      if (jump === undefined) return;
      event.preventDefault();
      actions.skip(jump);
    };
    const pointermove = (/** @type {PointerEvent} */ event) => event.buttons && drag(event);
    this.canvas = make("canvas", { "aria-hidden": "true" });
    this.head = make("div", { class: "head", hidden: true });
    this.empty = make("p", { class: "empty" }, words.deck.empty);
    const range = { "aria-valuemin": 0, "aria-valuemax": 0, "aria-valuenow": 0, "aria-valuetext": words.deck.nothing };
    const slider = { class: "display", role: "slider", tabindex: 0, "aria-label": words.deck.position, ...range };
    this.display = make("div", { ...slider, pointerdown: drag, pointermove, keydown }, this.canvas, this.head, this.empty);
    this.title = make("p", { class: "title" });
    this.time = make("span", { class: "time" }, clock(0));
    this.total = make("span", { class: "total" });
    this.loudness = make("span", { class: "loudness", title: words.deck.loudness });
    this.switch = button(words.deck.play, actions.toggle, { icon: "play", class: "round", bare: true });
    const sides = ["A", "B"].map((name, index) => button(name, () => actions.choose(index)));
    this.sides = make("div", { class: "sides", role: "group", "aria-label": words.deck.sides, hidden: true }, ...sides);
    this.cancel = button(words.deck.cancel, actions.cancel, { icon: "close", class: "quiet", hidden: true });
    this.stages = make("div", { class: "stages", hidden: true });
    this.note = make("p", { class: "note", role: "status" });
    const clocks = make("div", { class: "clock" }, this.time, this.total);
    const transport = make("div", { class: "transport" }, this.switch, clocks, this.sides, this.title, this.loudness, this.cancel);
    this.element = make("section", { class: "deck", "aria-label": words.deck.label }, this.display, transport, this.stages, this.note);
  }

  /**
   * Show what is on the deck.
   * @param {{title: string, lufs: number}[]} sides
   * @param {number} heard which of them
   * @param {boolean} playing
   */
  show(sides, heard, playing) {
    const side = sides[heard];
    const label = playing ? words.deck.pause : words.deck.play;
    if (this.switch.title !== label) dress(this.switch, label, playing ? "pause" : "play", true);
    this.switch.disabled = !side;
    this.head.hidden = !side;
    this.empty.hidden = Boolean(side);
    put(this.title, side?.title ?? "");
    put(this.loudness, side && side.lufs > -Infinity ? shownLoudness(side.lufs) : "");
    this.sides.hidden = sides.length < 2;
    [...this.sides.children].forEach((one, index) => one.setAttribute("aria-pressed", String(index === heard)));
  }

  /**
   * Show where it is.
   * @param {number} at seconds
   * @param {number} span seconds that the picture's width stands for
   */
  follow(at, span) {
    this.head.style.transform = `translateX(${((at / span) * this.display.clientWidth).toFixed(2)}px)`;
    const [now, total] = [clock(at), clock(span)];
    if (this.time.textContent === now && this.#span === total) return;
    this.#span = total;
    this.time.textContent = now;
    this.total.textContent = `/ ${total}`;
    this.display.setAttribute("aria-valuemax", span.toFixed(1));
    this.display.setAttribute("aria-valuenow", at.toFixed(1));
    this.display.setAttribute("aria-valuetext", words.deck.of(now, total));
  }

  /** @param {boolean} making whether a clip is being made */
  set making(making) {
    this.cancel.hidden = !making;
    this.stages.hidden = true;
    this.stages.replaceChildren();
  }

  /**
   * Say how far a job is.
   * @param {Job} job
   */
  progress(job) {
    if (this.cancel.hidden) return; // it has ended meanwhile
    if (job.position) this.say(words.deck.queued(job.position));
    else if (this.note.dataset.queued) this.say("");
    this.note.dataset.queued = job.position ? "true" : "";
    for (const [stage, { done, total }] of Object.entries(job.progress)) {
      let bar = /** @type {HTMLProgressElement | null} */ (this.stages.querySelector(`[data-stage="${stage}"]`));
      if (!bar) {
        const name = words.stages[stage] ?? stage;
        bar = make("progress", { "data-stage": stage, max: 1, "aria-label": name });
        this.stages.append(make("span", {}, name, bar));
      }
      bar.value = total ? done / total : 0;
    }
    this.stages.hidden = !this.stages.childElementCount;
  }

  /**
   * Say something below the clip.
   * @param {string} text
   * @param {boolean} [wrong]
   */
  say(text, wrong = false) {
    this.note.textContent = text;
    this.note.classList.toggle("wrong", wrong);
  }
}
