// @ts-check
/**
 * Asks again: when the server says so, and, of what it is making already, when nobody answers.
 */

import { Refused } from "./api.js";
import { rest } from "./dom.js";
import { words } from "./strings.js";

const PATIENCE_S = [0.5, 1, 2, 4, 8]; // between attempts to reach a server that does not answer

export class Patience {
  /**
   * @param {AbortSignal} stop
   * @param {(message: string, seconds: number) => void} waits why, and until when; "" when the waiting is over
   */
  constructor(stop, waits) {
    this.stop = stop;
    this.waits = waits;
  }

  /**
   * Ask until there is an answer.
   * @template T
   * @param {() => Promise<T>} ask
   * @param {boolean} again whether it is asked again where nobody answers
   * @returns {Promise<T>}
   */
  async ask(ask, again) {
    for (let attempt = 0; ; attempt++) {
      try {
        return await ask();
      } catch (error) {
        if (this.stop.aborted) throw error;
        if (error instanceof Refused) {
          if (error.retryS === null) throw error;
          await this.#wait(error.message, error.retryS);
        } else if (again) await this.#wait(words.error.cut, PATIENCE_S[Math.min(attempt, PATIENCE_S.length - 1)] ?? 1);
        else throw error;
      }
    }
  }

  /**
   * Wait, counting down.
   * @param {string} message
   * @param {number} seconds
   */
  async #wait(message, seconds) {
    for (let left = seconds; left > 0; left--) {
      this.waits(message, Math.ceil(left));
      await rest(Math.min(1, left), this.stop);
    }
    this.waits("", 0);
  }
}
