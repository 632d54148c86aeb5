// @ts-check
/**
 * A small Fourier transform, enough for a spectrogram: powers of a Hann-windowed frame of real samples.
 */

export class Spectrum {
  /** @param {number} size a power of two */
  constructor(size) {
    this.size = size;
    this.powers = new Float32Array(size / 2 + 1);
    this.re = new Float32Array(size);
    this.im = new Float32Array(size);
    this.window = Float32Array.from({ length: size }, (_, n) => 0.5 - 0.5 * Math.cos((2 * Math.PI * n) / size));
    this.cos = Float32Array.from({ length: size / 2 }, (_, n) => Math.cos((2 * Math.PI * n) / size));
    this.sin = Float32Array.from({ length: size / 2 }, (_, n) => Math.sin((2 * Math.PI * n) / size));
    const bits = Math.log2(size);
    this.reversed = Uint16Array.from({ length: size }, (_, n) => {
      let mirrored = 0;
      for (let bit = 0; bit < bits; bit++) mirrored |= ((n >> bit) & 1) << (bits - 1 - bit);
      return mirrored;
    });
  }

  /**
   * Fill `powers`: 1 is a sine of full scale.
   * @param {(index: number) => number} sample of the frame, by its number from 0
   */
  measure(sample) {
    const { size, re, im, window, cos, sin, reversed, powers } = this;
    for (let n = 0; n < size; n++) {
      re[reversed[n]] = sample(n) * window[n];
    }
    im.fill(0);
    for (let span = 1; span < size; span *= 2) {
      const step = size / (2 * span);
      for (let start = 0; start < size; start += 2 * span) {
        for (let n = 0; n < span; n++) {
          const c = cos[n * step];
          const s = sin[n * step];
          const a = start + n;
          const b = a + span;
          const reA = re[a];
          const imA = im[a];
          const reB = re[b];
          const imB = im[b];
          const real = reB * c + imB * s;
          const imaginary = imB * c - reB * s;
          re[a] = reA + real;
          im[a] = imA + imaginary;
          re[b] = reA - real;
          im[b] = imA - imaginary;
        }
      }
    }
    const scale = (4 / size) ** 2; // a Hann window halves a sine, and half of it lies among the negative frequencies
    for (let n = 0; n < powers.length; n++) powers[n] = (re[n] ** 2 + im[n] ** 2) * scale;
  }
}
