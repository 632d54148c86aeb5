// @ts-check
/**
 * The picture of music without end: the last seconds, moving past a playhead, with marks where something changes.
 *
 * Columns are drawn once, into a ring; each frame copies the ring's two parts to where they are now.
 */

import { Columns, coloursOf } from "./columns.js";
import { WAVE_SHARE, draw, fit } from "./picture.js";
import { calm } from "./dom.js";

export const SHOWN_S = 20;
const HEAD = 0.8; // where the playhead stands, of the width

export class Rolling {
  #ring = document.createElement("canvas");
  /** @type {Columns | null} */
  #columns = null;
  #next = 0; // sample that is drawn next
  #first = 0; // column from which on the ring is this music's
  #last = -1; // column drawn last
  #wave = "";
  #mark = "";
  /** @type {number[]} samples from which on it sounds otherwise */
  marks = [];

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {number} rate Hz
   */
  constructor(canvas, rate) {
    this.canvas = canvas;
    this.rate = rate;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => (this.#columns = null));
  }

  /** Forget all. */
  clear() {
    this.#columns = null;
    this.marks = [];
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  /**
   * Add samples.
   * @param {number} start number of the first
   * @param {Int16Array} samples
   */
  push(start, samples) {
    if (!this.#columns || start !== this.#next || fit(this.canvas)) this.#begin(start);
    this.#next = start + samples.length;
    const columns = [.../** @type {Columns} */ (/** @type {unknown} */ (this.#columns)).feed(samples)];
    const context = /** @type {CanvasRenderingContext2D} */ (this.#ring.getContext("2d"));
    draw(context, columns, this.#wave, (index) => index % this.#ring.width);
    this.#last = columns.at(-1)?.index ?? this.#last;
  }

  /** @param {number} start */
  #begin(start) {
    fit(this.canvas);
    this.#ring.width = this.canvas.width;
    this.#ring.height = this.canvas.height;
    const { palette, wave } = coloursOf(this.canvas);
    this.#wave = wave;
    this.#mark = getComputedStyle(this.canvas).getPropertyValue("--accent").trim();
    const rows = this.canvas.height - Math.round(this.canvas.height * WAVE_SHARE);
    this.#columns = new Columns(this.rate, (SHOWN_S * this.rate) / this.canvas.width, rows, palette, start);
    this.#first = Math.ceil(start / this.#columns.perColumn);
    this.#last = this.#first - 1;
  }

  /**
   * Show the music around a sample.
   * @param {number} at sample that is heard now
   */
  frame(at) {
    const { canvas, context } = this;
    const columns = this.#columns;
    if (!columns) return;
    const width = canvas.width;
    const still = calm();
    const head = still ? Math.floor(at / columns.perColumn) % width : Math.round(width * HEAD);
    const left = Math.floor(at / columns.perColumn) - head; // column at the left edge
    context.clearRect(0, 0, width, canvas.height);
    const from = Math.max(this.#first, left, this.#last - width + 1, 0);
    const to = Math.min(this.#last + 1, left + width);
    for (let column = from; column < to; ) {
      const x = column % width;
      const count = Math.min(width - x, to - column);
      context.drawImage(this.#ring, x, 0, count, canvas.height, column - left, 0, count, canvas.height);
      column += count;
    }
    context.fillStyle = this.#mark;
    for (const mark of this.marks) {
      const x = Math.round(mark / columns.perColumn) - left;
      if (x >= 0 && x < width) for (let y = 0; y < canvas.height; y += 10) context.fillRect(x, y, 2, 5);
    }
    context.fillRect(head, 0, 2, canvas.height);
  }
}
