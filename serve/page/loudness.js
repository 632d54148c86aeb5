// @ts-check
/**
 * Integrated loudness by ITU-R BS.1770 while samples come, in LUFS; the same filters and gates as runtime/loudness.py.
 */

const PARTS = 10; // in a second
const BLOCK = 4; // parts; the next block begins one part later
const ABSOLUTE = -70; // LUFS
const RELATIVE = -10; // LU, from the mean of the blocks above the first gate
const OFFSET = -0.691; // cancels the gain of the weighting at 997 Hz

export class Loudness {
  /** @type {number[]} sums of squares of the parts that are whole */
  #parts = [];
  #sum = 0;
  #count = 0;
  #state = new Float64Array(4);

  /** @param {number} rate Hz */
  constructor(rate) {
    this.rate = rate;
    this.filters = weighting(rate);
  }

  /** @param {Int16Array} samples */
  feed(samples) {
    const [shelf, pass] = this.filters;
    const state = this.#state;
    let [s1, s2, p1, p2] = state;
    for (let index = 0; index < samples.length; index++) {
      const x = samples[index] / 32768;
      const y = shelf.b0 * x + s1;
      s1 = shelf.b1 * x - shelf.a1 * y + s2;
      s2 = shelf.b2 * x - shelf.a2 * y;
      const z = pass.b0 * y + p1;
      p1 = pass.b1 * y - pass.a1 * z + p2;
      p2 = pass.b2 * y - pass.a2 * z;
      this.#sum += z * z;
      if (++this.#count >= Math.round(((this.#parts.length + 1) * this.rate) / PARTS)) {
        this.#parts.push(this.#sum);
        this.#sum = 0;
      }
    }
    state.set([s1, s2, p1, p2]);
  }

  /** Loudness of all that came, -Infinity for silence. Less than a block of 400 ms is measured without gates. */
  get integrated() {
    const parts = this.#parts;
    if (parts.length < BLOCK) {
      const sum = parts.reduce((total, one) => total + one, this.#sum);
      return lufs(this.#count ? sum / this.#count : 0);
    }
    let blocks = [];
    for (let first = 0; first + BLOCK <= parts.length; first++) {
      const sum = parts.slice(first, first + BLOCK).reduce((total, one) => total + one, 0);
      const span = Math.round(((first + BLOCK) * this.rate) / PARTS) - Math.round((first * this.rate) / PARTS);
      blocks.push(sum / span);
    }
    blocks = blocks.filter((block) => lufs(block) > ABSOLUTE);
    const gate = lufs(mean(blocks)) + RELATIVE;
    return lufs(mean(blocks.filter((block) => lufs(block) > gate)));
  }
}

/** @param {number[]} values */
function mean(values) {
  return values.length ? values.reduce((total, one) => total + one, 0) / values.length : 0;
}

/** @param {number} power */
function lufs(power) {
  return power > 0 ? OFFSET + 10 * Math.log10(power) : -Infinity;
}

/**
 * Return both filters at a rate: the high shelf for the head, and the high-pass.
 *
 * BS.1770 gives them for 48 kHz; they are bilinear transforms of analogue filters whose frequencies and qualities follow from its numbers
 * (as in libebur128, `ebur128_init_filter`).
 * @param {number} rate
 */
function weighting(rate) {
  let k = Math.tan((Math.PI * 1681.974450955533) / rate);
  let q = 0.7071752369554196;
  const high = 10 ** (3.999843853973347 / 20);
  const band = high ** 0.4996667741545416;
  let a0 = 1 + k / q + k * k;
  const shelf = {
    b0: (high + (band * k) / q + k * k) / a0,
    b1: (2 * (k * k - high)) / a0,
    b2: (high - (band * k) / q + k * k) / a0,
    a1: (2 * (k * k - 1)) / a0,
    a2: (1 - k / q + k * k) / a0,
  };
  k = Math.tan((Math.PI * 38.13547087602444) / rate);
  q = 0.5003270373238773;
  a0 = 1 + k / q + k * k;
  const pass = { b0: 1, b1: -2, b2: 1, a1: (2 * (k * k - 1)) / a0, a2: (1 - k / q + k * k) / a0 };
  return /** @type {const} */ ([shelf, pass]);
}

/**
 * Return loudness in words, with a real minus.
 * @param {number} value
 */
export function shownLoudness(value) {
  return Number.isFinite(value) ? `${value < 0 ? "−" : ""}${Math.abs(value).toFixed(1)} LUFS` : "−∞ LUFS";
}
