// @ts-check
/**
 * A clip's samples while they come: one growing array of 16 bits.
 */

export class Samples {
  length = 0;
  #data;

  /**
   * @param {number} rate Hz
   * @param {number} [expected] how many will come
   */
  constructor(rate, expected = 0) {
    this.rate = rate;
    this.#data = new Int16Array(Math.max(expected, 1 << 14));
  }

  /**
   * Return the samples of a clip that is whole.
   * @param {number} rate
   * @param {Int16Array} data
   */
  static of(rate, data) {
    const made = new Samples(rate, data.length);
    made.append(data);
    return made;
  }

  /** @param {Int16Array} more */
  append(more) {
    if (this.length + more.length > this.#data.length) {
      const larger = new Int16Array(Math.max(2 * this.#data.length, this.length + more.length));
      larger.set(this.#data.subarray(0, this.length));
      this.#data = larger;
    }
    this.#data.set(more, this.length);
    this.length += more.length;
  }

  /** All that is there, not copied. */
  get all() {
    return this.#data.subarray(0, this.length);
  }

  /**
   * Return the largest amplitude, from 0 to 1, in each of so many equal parts.
   * @param {number} parts
   */
  peaks(parts) {
    const data = this.all;
    return Array.from({ length: parts }, (_, part) => {
      const edge = (/** @type {number} */ number) => Math.floor((number * data.length) / parts);
      const most = data.subarray(edge(part), edge(part + 1)).reduce((peak, sample) => Math.max(peak, Math.abs(sample)), 0);
      return Math.round((most / 32768) * 1000) / 1000;
    });
  }
}
