// @ts-check
/**
 * Samples as columns of a picture: the range of the wave, and a spectrum in colours.
 *
 * In: samples in order. Out: columns in order, each as soon as the samples are there that it shows. Frequencies are spaced as pitches are.
 *
 * @import { Column } from "./types.js"
 */

import { Spectrum } from "./fft.js";

const LOWEST_HZ = 55;
const FLOOR_DB = -80;
const TOP_DB = -12;

export class Columns {
  #size; // of the transform
  #spectrum;
  #bins; // of each row: the lowest bin, the highest
  #kept = new Float32Array(1 << 13); // samples that later columns need
  #start = 0; // number of the first of them
  #count = 0;
  #next = 0;

  /**
   * @param {number} rate Hz
   * @param {number} perColumn samples, any number above 0
   * @param {number} rows
   * @param {Uint8ClampedArray} palette RGBA of 256 levels
   * @param {number} [first] number of the first sample
   */
  constructor(rate, perColumn, rows, palette, first = 0) {
    this.perColumn = perColumn;
    this.rows = rows;
    this.palette = palette;
    this.#size = rate > 32_000 ? 2048 : 1024;
    this.#spectrum = new Spectrum(this.#size);
    this.#start = first;
    this.#next = Math.ceil(first / perColumn);
    const octaves = Math.log2(rate / 2 / LOWEST_HZ);
    const edge = (/** @type {number} */ row) => (LOWEST_HZ * 2 ** (octaves * (1 - row / rows)) * this.#size) / rate;
    this.#bins = Array.from({ length: rows }, (_, row) => /** @type {const} */ ([edge(row + 1), edge(row)]));
  }

  /**
   * Give the columns that the next samples complete.
   * @param {Int16Array} samples
   * @returns {Generator<Column, void, void>}
   */
  *feed(samples) {
    for (let done = 0; done < samples.length; ) {
      const room = this.#room();
      const part = samples.subarray(done, done + room);
      for (let index = 0; index < part.length; index++) this.#kept[this.#count + index] = part[index] / 32768;
      this.#count += part.length;
      done += part.length;
      yield* this.#complete(this.#start + this.#count);
    }
  }

  /**
   * Give the columns that lack samples which will not come.
   * @returns {Generator<Column, void, void>}
   */
  *finish() {
    const end = this.#start + this.#count;
    while (Math.floor(this.#next * this.perColumn) < end) yield this.#column(this.#next++);
  }

  /** Forget what no later column needs, and return how many samples there is room for. */
  #room() {
    const needed = Math.min(Math.floor(this.#next * this.perColumn), Math.floor((this.#next + 0.5) * this.perColumn) - this.#size / 2);
    const gone = Math.min(Math.max(0, needed - this.#start), this.#count);
    this.#kept.copyWithin(0, gone, this.#count);
    this.#start += gone;
    this.#count -= gone;
    if (this.#count === this.#kept.length) {
      const larger = new Float32Array(2 * this.#kept.length);
      larger.set(this.#kept);
      this.#kept = larger;
    }
    return this.#kept.length - this.#count;
  }

  /** @param {number} end one past the last sample that is there */
  *#complete(end) {
    const reach = Math.max(this.perColumn, this.perColumn / 2 + this.#size / 2);
    while (Math.ceil(this.#next * this.perColumn + reach) <= end) yield this.#column(this.#next++);
  }

  /**
   * @param {number} index
   * @returns {Column}
   */
  #column(index) {
    const first = Math.floor(index * this.perColumn) - this.#start;
    const last = Math.min(Math.max(first + 1, Math.floor((index + 1) * this.perColumn) - this.#start), this.#count);
    const [low, high] = this.#extremes(Math.max(first, 0), last);
    const middle = Math.floor((index + 0.5) * this.perColumn) - this.#start - this.#size / 2;
    this.#spectrum.measure((n) => (middle + n >= 0 && middle + n < this.#count ? this.#kept[middle + n] : 0));
    return { index, low, high, colours: this.#colours() };
  }

  /**
   * @param {number} first
   * @param {number} end
   */
  #extremes(first, end) {
    let [low, high] = [0, 0];
    for (let at = first; at < end; at++) {
      low = Math.min(low, this.#kept[at]);
      high = Math.max(high, this.#kept[at]);
    }
    return [low, high];
  }

  #colours() {
    const { powers } = this.#spectrum;
    const colours = new Uint8ClampedArray(4 * this.rows);
    this.#bins.forEach(([from, to], row) => {
      const low = Math.floor(from);
      let power = powers[low] * (1 - (from - low)) + (powers[low + 1] ?? 0) * (from - low);
      for (let bin = low + 1; bin <= to && bin < powers.length; bin++) power = Math.max(power, powers[bin]);
      const level = Math.round((255 * (10 * Math.log10(power + 1e-12) - FLOOR_DB)) / (TOP_DB - FLOOR_DB));
      const from4 = 4 * Math.min(255, Math.max(0, level));
      colours.set(this.palette.subarray(from4, from4 + 4), 4 * row);
    });
    return colours;
  }
}

/**
 * Return 256 colours between those that the style sheet names `--level-0` to `--level-4`, RGBA.
 * @param {CSSStyleDeclaration} style
 */
export function paletteOf(style) {
  const stops = [0, 1, 2, 3, 4].map((level) => {
    const hex = style.getPropertyValue(`--level-${level}`).trim().replace("#", "");
    return [0, 2, 4].map((at) => Number.parseInt(hex.slice(at, at + 2), 16));
  });
  const palette = new Uint8ClampedArray(4 * 256);
  for (let level = 0; level < 256; level++) {
    const at = (level / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    for (let part = 0; part < 3; part++) {
      palette[4 * level + part] = stops[low][part] + (stops[low + 1][part] - stops[low][part]) * (at - low);
    }
    palette[4 * level + 3] = 255;
  }
  return palette;
}

/**
 * Return the colours of the spectrum and of the wave, as the style sheet has them now.
 * @param {Element} element
 */
export function coloursOf(element) {
  const style = getComputedStyle(element);
  return { palette: paletteOf(style), wave: style.getPropertyValue("--wave").trim() };
}
