// @ts-check
/**
 * The picture of a clip: its wave above its spectrum, over its whole length, growing while samples come.
 *
 * @import { Samples } from "./samples.js"
 * @import { Column } from "./types.js"
 */

import { Columns, coloursOf } from "./columns.js";

export const WAVE_SHARE = 0.28; // of the height

/**
 * Fit a canvas to its place. Returns whether that changed it.
 * @param {HTMLCanvasElement} canvas
 */
export function fit(canvas) {
  const ratio = Math.min(devicePixelRatio, 2); // more is not seen in a spectrum, and costs
  const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
  if (canvas.width === width && canvas.height === height) return false;
  canvas.width = width;
  canvas.height = height;
  return true;
}

/**
 * Draw columns, one beside another.
 * @param {CanvasRenderingContext2D} context
 * @param {Column[]} columns in order, without gaps
 * @param {string} wave colour
 * @param {(index: number) => number} place of a column, in pixels
 */
export function draw(context, columns, wave, place) {
  const { height } = context.canvas;
  const top = Math.round(height * WAVE_SHARE);
  context.fillStyle = wave;
  for (const { index, low, high, colours } of columns) {
    const x = place(index);
    context.putImageData(new ImageData(/** @type {Uint8ClampedArray<ArrayBuffer>} */ (colours), 1, colours.length / 4), x, top);
    context.clearRect(x, 0, 1, top);
    const middle = top / 2;
    const [up, down] = [high, -low].map((peak) => peak ** 0.7 * middle * 0.96); // quiet music is seen too
    context.fillRect(x, middle - up, 1, Math.max(1, up + down));
  }
}

export class Picture {
  /** @type {Samples | null} */
  #samples = null;
  #expected = 0; // samples
  #drawn = 0; // samples that were given to #columns
  #finished = false;
  /** @type {Columns | null} */
  #columns = null;
  #wave = "";

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    new ResizeObserver(() => this.redraw(false)).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw(true));
  }

  /**
   * Show another clip.
   * @param {Samples | null} samples null: none
   * @param {number} [expected] how many there will be
   */
  show(samples, expected = 0) {
    this.#samples = samples;
    this.#expected = Math.max(1, expected, samples?.length ?? 0);
    this.#finished = false;
    this.redraw(true);
  }

  /** Draw what came since the last call. */
  grow() {
    if (!this.#samples || !this.#columns) return;
    if (this.#samples.length > this.#expected) {
      this.#expected = this.#samples.length;
      this.redraw(true);
      return;
    }
    const more = this.#samples.all.subarray(this.#drawn);
    this.#drawn += more.length;
    draw(this.context, [...this.#columns.feed(more)], this.#wave, (index) => index);
  }

  /** Draw the last columns, as no more samples come. */
  finish() {
    if (!this.#samples || this.#finished) return;
    this.#finished = true;
    if (this.#samples.length < this.#expected) {
      this.#expected = Math.max(1, this.#samples.length);
      this.redraw(true);
    } else if (this.#columns) draw(this.context, [...this.#columns.finish()], this.#wave, (index) => index);
  }

  /** How many samples the picture's width stands for. */
  get span() {
    return this.#expected;
  }

  /**
   * Draw all of it again.
   * @param {boolean} always also where its size is the same
   */
  redraw(always) {
    const { canvas, context } = this;
    if (!fit(canvas) && !always) return;
    context.clearRect(0, 0, canvas.width, canvas.height);
    const { palette, wave } = coloursOf(canvas);
    this.#wave = wave;
    this.#drawn = 0;
    if (!this.#samples) return;
    const rows = canvas.height - Math.round(canvas.height * WAVE_SHARE);
    this.#columns = new Columns(this.#samples.rate, this.#expected / canvas.width, rows, palette);
    this.grow();
    if (this.#finished) draw(context, [...this.#columns.finish()], this.#wave, (index) => index);
  }
}
