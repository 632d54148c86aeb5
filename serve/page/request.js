// @ts-check
/**
 * One clip on its way: asked for, waited for, read while it is made, and gone on with when the connection was cut.
 *
 * It draws and plays nothing: whoever has it made listens to its events.
 *
 * @import { Origin, Settings, Sources, TakeEvents } from "./types.js"
 */

import { Refused, createJob, deleteJob, generate, job, jobAudio, samplesOf } from "./api.js";
import { rest } from "./dom.js";
import { Patience } from "./patience.js";
import { words } from "./strings.js";

const SAVED = "musiclm-take";
const LOOK_S = 0.5;
const SILENT_S = 3; // after which a line is taken for dead, if the server has made all that it was to send

/**
 * Return the request that a reload interrupted, if there was one.
 * @returns {import("./types.js").SavedTake | null}
 */
export function interrupted() {
  const text = sessionStorage.getItem(SAVED);
  return text ? JSON.parse(text) : null;
}

export class Take {
  #stop = new AbortController();
  #patience;
  #line = new AbortController(); // of the answer that is read now
  #received = 0; // samples
  #heard = 0; // when the last of them came
  #over = false;
  /** @type {string | null} */
  #job = null;

  /**
   * @param {Settings} settings
   * @param {object} sounds the fields `audio` and `prime`, where there are such sounds
   * @param {Sources} names of these sounds
   * @param {TakeEvents} events
   */
  constructor(settings, sounds, names, events) {
    this.settings = settings;
    this.names = names;
    this.events = events;
    this.#patience = new Patience(this.#stop.signal, events.waits);
    const { prompt, seconds, seed, candidates, model } = settings;
    this.body = { seconds, seed, num_samples: candidates, ...(prompt ? { prompt } : {}), ...(model ? { model } : {}), ...sounds };
  }

  get batch() {
    return this.settings.candidates > 1;
  }

  /** Cancel it, if it is not whole: the rows of the server are free at once. */
  cancel() {
    if (this.#over) return;
    this.#stop.abort(new DOMException("cancelled", "AbortError"));
    sessionStorage.removeItem(SAVED);
    if (this.#job) deleteJob(this.#job).catch(() => undefined); // a server that is gone makes nothing either
  }

  get cancelled() {
    return this.#stop.signal.aborted;
  }

  /**
   * Have the clip made. Resolves when it is whole.
   * @throws {Refused} for a refusal that is not worth asking again
   */
  async run() {
    try {
      if (this.batch) {
        const made = await this.#patience.ask(() => createJob(this.body, this.#stop.signal), false);
        this.#know(made.id);
        await this.#follow(made.id);
      } else await this.#read(await this.#patience.ask(() => generate(this.body, this.#newLine()), false));
    } finally {
      this.#end();
    }
  }

  /**
   * Go on with a job that a reload interrupted, from its first sample.
   * @param {string} id
   */
  async resume(id) {
    this.#know(id);
    try {
      await (this.batch ? this.#follow(id) : this.#read(await this.#rest()));
    } finally {
      this.#end();
    }
  }

  #end() {
    this.#over = true;
    if (!this.cancelled) sessionStorage.removeItem(SAVED);
  }

  /** @param {string} id */
  #know(id) {
    this.#job = id;
    sessionStorage.setItem(SAVED, JSON.stringify({ settings: this.settings, job: id, ...this.names }));
  }

  /**
   * Read all samples, from as many answers as it takes.
   * @param {Response | null} response
   */
  async #read(response) {
    while (response) {
      const { headers } = response;
      this.#know(/** @type {string} */ (headers.get("X-Job-Id")));
      if (this.#received === 0) this.events.begun(originOf(headers));
      this.#look();
      try {
        for await (const samples of samplesOf(response)) {
          this.#received += samples.length;
          this.#heard = performance.now();
          this.events.samples(samples);
        }
        return;
      } catch (error) {
        if (this.cancelled || error instanceof Refused) throw error;
      }
      response = await this.#rest(); // the connection was cut: what the job lacks is made now
    }
  }

  /**
   * Ask for the samples that have not come. Returns null if there are none.
   * @returns {Promise<Response | null>}
   */
  async #rest() {
    try {
      return await this.#patience.ask(() => this.#reopen(), true);
    } catch (error) {
      if (error instanceof Refused && error.status === 416) return null;
      if (error instanceof Refused && error.status === 404) throw new Refused(404, words.error.forgotten, error.code, null);
      throw error;
    }
  }

  /** Ask for the rest once; a server that says nothing is asked over another connection. */
  async #reopen() {
    const signal = this.#newLine();
    const line = this.#line;
    const timer = setTimeout(() => line.abort(), 1000 * SILENT_S);
    try {
      return await jobAudio(/** @type {string} */ (this.#job), { response_format: "pcm", start_sample: this.#received }, signal);
    } finally {
      clearTimeout(timer);
    }
  }

  /** Return the signal of the next answer: it ends with the request, or when the server has let go of it. */
  #newLine() {
    this.#line = new AbortController();
    return AbortSignal.any([this.#stop.signal, this.#line.signal]);
  }

  /** Look at the job now and then, while this answer is read, and say how far each stage is. */
  async #look() {
    const line = this.#line;
    this.#heard = performance.now();
    while (line === this.#line && !this.#over && !this.cancelled) {
      try {
        const patience = AbortSignal.any([this.#stop.signal, AbortSignal.timeout(1000 * SILENT_S)]);
        const state = await job(/** @type {string} */ (this.#job), patience);
        if (line === this.#line && !this.#over) this.events.progress(state);
        const silent = performance.now() - this.#heard > 1000 * SILENT_S;
        if (state.state !== "running" && silent) line.abort(); // it is dead, as after a sleep, and has not noticed
        await rest(LOOK_S, this.#stop.signal);
      } catch {
        if (!this.cancelled) await rest(2 * LOOK_S); // the samples themselves will say what is wrong
      }
    }
  }

  /**
   * Wait until a job of the background is made.
   * @param {string} id
   */
  async #follow(id) {
    for (;;) {
      const state = await this.#patience.ask(() => job(id, this.#stop.signal), true);
      this.events.progress(state);
      if (state.state === "done") {
        this.events.candidates(state);
        return;
      }
      if (state.state !== "queued" && state.state !== "running") {
        throw new Refused(503, state.error?.message ?? words.error.ended(state.state), state.error?.code ?? null, null);
      }
      await rest(LOOK_S, this.#stop.signal);
    }
  }
}

/**
 * Return what the headers of an answer say of its sound.
 * @param {Headers} headers
 * @returns {Origin}
 */
export function originOf(headers) {
  return {
    job: headers.get("X-Job-Id") ?? "",
    rate: Number(headers.get("X-Sample-Rate")),
    seed: Number(headers.get("X-Seed")),
    bundle: headers.get("X-Bundle-SHA256") ?? "",
  };
}

/**
 * Fetch one candidate of a job that is done.
 * @param {string} id
 * @param {number} candidate
 * @param {AbortSignal} signal
 * @param {(origin: Origin) => void} begun
 * @param {(samples: Int16Array<ArrayBuffer>) => void} more
 */
export async function readCandidate(id, candidate, signal, begun, more) {
  const response = await jobAudio(id, { response_format: "pcm", candidate }, signal);
  begun(originOf(response.headers));
  for await (const samples of samplesOf(response)) more(samples);
}
