// @ts-check
/**
 * How much sound must be there before it begins: little on a good line, more where chunks come late.
 *
 * In: when chunks came, and how much sound each brought. Out: seconds. Nothing is known here of audio.
 */

const LEAST_S = 0.1;
const MARGIN = 1.25;

/** Measures a line. One object lasts for all clips of a page: what was learned of the line holds for the next clip too. */
export class Lead {
  #last = Number.NaN; // when the last chunk came
  #brought = 0; // seconds of sound in it
  #debt = 0; // seconds by which the sound is behind the clock, since it was last ahead
  #worst = 0;

  /** @param {number} most seconds: where a server sends no more in advance, more would be waited for in vain */
  constructor(most = 8) {
    this.most = most;
  }

  /** Seconds that must be there. */
  get seconds() {
    return Math.min(this.most, Math.max(LEAST_S, this.#worst * MARGIN));
  }

  /** Begin another clip, whose first chunk is late after nothing. A bad line is half forgotten. */
  begin() {
    this.#last = Number.NaN;
    this.#debt = 0;
    this.#worst /= 2;
  }

  /**
   * Note a chunk.
   * @param {number} now seconds
   * @param {number} sound seconds
   */
  note(now, sound) {
    if (!Number.isNaN(this.#last)) {
      this.#debt = Math.max(0, this.#debt + (now - this.#last) - this.#brought);
      this.#worst = Math.max(this.#worst, this.#debt);
    }
    this.#last = now;
    this.#brought = sound;
  }
}
