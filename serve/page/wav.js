// @ts-check
/**
 * Sound files that the page writes: wav with 16 bits and one channel, which says in LIST/INFO how it was made.
 */

/**
 * Return a wav.
 * @param {Int16Array} samples
 * @param {number} rate Hz
 * @param {Record<string, string>} [info] texts by the four letters of RIFF: INAM a title, ICMT a comment
 */
export function wav(samples, rate, info = {}) {
  const texts = Object.entries(info).map(([name, text]) => {
    const bytes = new TextEncoder().encode(`${text}\0`);
    const even = new Uint8Array(bytes.length + (bytes.length % 2));
    even.set(bytes);
    return chunk(name, even);
  });
  const format = new DataView(new ArrayBuffer(16));
  format.setUint16(0, 1, true); // PCM
  format.setUint16(2, 1, true); // channels
  format.setUint32(4, rate, true);
  format.setUint32(8, 2 * rate, true);
  format.setUint16(12, 2, true);
  format.setUint16(14, 16, true);
  const data = new DataView(new ArrayBuffer(2 * samples.length));
  samples.forEach((sample, index) => data.setInt16(2 * index, sample, true));
  const parts = [chunk("fmt ", new Uint8Array(format.buffer)), ...(texts.length ? [chunk("LIST", joined([ascii("INFO"), ...texts]))] : [])];
  const whole = joined([ascii("WAVE"), ...parts, chunk("data", new Uint8Array(data.buffer))]);
  return new Blob([chunk("RIFF", whole)], { type: "audio/wav" });
}

/** @param {string} text */
function ascii(text) {
  return new TextEncoder().encode(text);
}

/** @param {Uint8Array[]} parts */
function joined(parts) {
  const all = new Uint8Array(parts.reduce((total, part) => total + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/**
 * @param {string} name
 * @param {Uint8Array} data
 */
function chunk(name, data) {
  const size = new Uint8Array(4);
  new DataView(size.buffer).setUint32(0, data.length, true);
  return joined([ascii(name), size, data]);
}

/**
 * Return samples of floats.
 * @param {Float32Array} floats
 */
export function sixteenBits(floats) {
  return Int16Array.from(floats, (value) => Math.round(Math.min(1, Math.max(-1, value)) * 32767));
}

/**
 * Return a file in base64.
 * @param {Blob} blob
 * @returns {Promise<string>}
 */
export async function base64(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let text = "";
  for (let at = 0; at < bytes.length; at += 1 << 15) text += String.fromCharCode(...bytes.subarray(at, at + (1 << 15)));
  return btoa(text);
}
