// @ts-check
/**
 * When changes are heard: counts down to them, and marks when they are reached.
 */

import { announce, make, put } from "./dom.js";
import { words } from "./strings.js";

const SHOWN_S = 3; // for which a change that is heard is said to be

export class Changes {
  /** @type {{sample: number, asked: number}[]} that are not heard yet, and when they were asked for, by `performance.now` */
  #waiting = [];
  #shownUntil = 0; // sample
  element = make("span", { class: "change" });
  /** @type {() => void} */
  onheard = () => undefined;

  /** @param {number} sample from which on it sounds otherwise */
  add(sample) {
    this.#waiting.push({ sample, asked: performance.now() });
  }

  clear() {
    this.#waiting = [];
    this.element.textContent = "";
  }

  /**
   * Show how far away the next one is.
   * @param {number} now sample that is heard
   * @param {number} rate Hz
   */
  follow(now, rate) {
    const next = this.#waiting[0];
    if (!next) {
      if (now > this.#shownUntil) put(this.element, "");
      return;
    }
    const left = (next.sample - now) / rate;
    const text = left > 0 ? words.play.heardIn(left) : words.play.heard;
    put(this.element, text);
    if (left > 0) return;
    this.#waiting = this.#waiting.filter(({ sample }) => sample > now);
    this.#shownUntil = now + SHOWN_S * rate;
    announce(words.play.heard);
    const { dataset } = document.documentElement;
    dataset.changesHeard = String(Number(dataset.changesHeard ?? 0) + 1);
    dataset.changeWaitedS = ((performance.now() - next.asked) / 1000).toFixed(2);
    this.onheard();
  }
}
