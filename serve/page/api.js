// @ts-check
/**
 * Asks the server: adds the key, turns refusals into errors with the server's own words, reads samples as they come.
 *
 * @import { Job, Model } from "./types.js"
 */

import { words } from "./strings.js";

const KEY = "musiclm-key";

/** A refusal of the server. */
export class Refused extends Error {
  /**
   * @param {number} status of HTTP
   * @param {string} message
   * @param {string | null} code
   * @param {number | null} retryS after which the same may be asked again; null: never as it is
   */
  constructor(status, message, code, retryS) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryS = retryS;
  }
}

/** @type {(message: string, wrong: boolean) => Promise<string>} */
let askForKey = () => Promise.reject(new Error(words.key.needed));
/** @type {Promise<string> | null} */
let asking = null;

/**
 * Say how a person is asked for a key.
 * @param {(message: string, wrong: boolean) => Promise<string>} ask
 */
export function onKeyWanted(ask) {
  askForKey = ask;
}

/** Return the key of this tab, "" without one. */
export function key() {
  return sessionStorage.getItem(KEY) ?? "";
}

/**
 * Have a person give a key, of which all calls that wait for one make use.
 * @returns {Promise<void>}
 */
export async function wantKey() {
  asking ??= askForKey(key() ? words.key.unknown : words.key.needed, Boolean(key())).finally(() => (asking = null));
  sessionStorage.setItem(KEY, await asking);
}

/**
 * Ask the server; a missing key is asked for, and the request made again.
 * @param {string} path below the page's own folder
 * @param {RequestInit} [options]
 * @returns {Promise<Response>} with a status below 300
 * @throws {Refused} for a refusal; TypeError when nobody answers
 */
export async function ask(path, options = {}) {
  for (;;) {
    const sent = key();
    const headers = { ...options.headers, ...(sent ? { Authorization: `Bearer ${sent}` } : {}) };
    const response = await fetch(new URL(path, document.baseURI), { ...options, headers, cache: "no-store" });
    if (response.ok) return response;
    if (response.status !== 401) throw await refusalOf(response);
    if (sent === key()) await unless(wantKey(), options.signal);
  }
}

/**
 * @param {Response} response
 */
async function refusalOf(response) {
  const retry = Number(response.headers.get("Retry-After") ?? Number.NaN);
  /** @type {any} */
  const body = await response.json().catch(() => ({}));
  const fault = body?.error ?? {};
  const message = fault.message ?? words.error.status(response.status);
  return new Refused(response.status, message, fault.code ?? null, Number.isFinite(retry) ? retry : null);
}

/**
 * @template T
 * @param {Promise<T>} work
 * @param {AbortSignal | null} [signal]
 * @returns {Promise<T>}
 */
function unless(work, signal) {
  if (!signal) return work;
  return new Promise((done, fail) => {
    const stop = () => fail(signal.reason);
    if (signal.aborted) stop();
    signal.addEventListener("abort", stop, { once: true });
    work.then(done, fail);
  });
}

/**
 * @param {string} path
 * @param {unknown} body
 * @param {AbortSignal} [signal]
 */
function post(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  return ask(path, { method: "POST", headers, body: JSON.stringify(body), signal: signal ?? null });
}

/** @returns {Promise<Model[]>} */
export async function models() {
  return (await (await ask("v1/models")).json()).data;
}

/**
 * Have a clip made, and get its samples while it is.
 *
 * The answer is raw samples, and progress is asked for beside it: as events, each chunk would come in base64, a third larger, and be
 * parsed on the thread that draws; and after a cut connection the same few lines read the rest of the job.
 * @param {object} body
 * @param {AbortSignal} signal
 */
export function generate(body, signal) {
  return post("v1/audio/generations", { ...body, response_format: "pcm" }, signal);
}

/**
 * Have a job made in the background.
 * @param {object} body
 * @param {AbortSignal} signal
 * @returns {Promise<Job>}
 */
export async function createJob(body, signal) {
  return (await post("v1/jobs", body, signal)).json();
}

/**
 * @param {string} id
 * @param {AbortSignal} [signal]
 * @returns {Promise<Job>}
 */
export async function job(id, signal) {
  return (await ask(`v1/jobs/${id}`, { signal: signal ?? null })).json();
}

/**
 * @param {string} id
 * @param {Record<string, string | number>} query
 * @param {AbortSignal} [signal]
 */
export function jobAudio(id, query, signal) {
  const search = new URLSearchParams(Object.entries(query).map(([name, value]) => [name, String(value)]));
  return ask(`v1/jobs/${id}/audio?${search}`, { signal: signal ?? null });
}

/**
 * Cancel a job, and have it forgotten. Goes out even while the page is being closed.
 * @param {string} id
 */
export async function deleteJob(id) {
  await ask(`v1/jobs/${id}`, { method: "DELETE", keepalive: true });
}

/**
 * Give the samples of an answer of raw 16 bits as they come.
 * @param {Response} response
 * @returns {AsyncGenerator<Int16Array<ArrayBuffer>, void, void>}
 */
export async function* samplesOf(response) {
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  let whole = false;
  let odd = new Uint8Array(0); // a chunk may end in the middle of a sample
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) {
        whole = true;
        return;
      }
      const bytes = new Uint8Array(odd.length + value.length);
      bytes.set(odd);
      bytes.set(value, odd.length);
      const count = bytes.length >> 1;
      odd = bytes.slice(2 * count);
      if (count) yield readSamples(bytes.buffer, 0, count);
    }
  } finally {
    if (!whole) reader.cancel().catch(() => undefined);
  }
}

/**
 * Return little-endian 16 bits as samples, whatever the machine's own order.
 * @param {ArrayBuffer} buffer
 * @param {number} start in bytes
 * @param {number} count
 */
export function readSamples(buffer, start, count) {
  const view = new DataView(buffer, start, 2 * count);
  const samples = new Int16Array(count);
  for (let index = 0; index < count; index++) samples[index] = view.getInt16(2 * index, true);
  return samples;
}
