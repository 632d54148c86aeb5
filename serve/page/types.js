// @ts-check
/**
 * Shapes of the data that several modules share. Types alone: nothing here runs.
 */

/**
 * What a person asked for.
 * @typedef {object} Settings
 * @property {string} prompt
 * @property {number} seconds
 * @property {number} seed
 * @property {number} candidates
 * @property {string | null} model null: the server's first one
 */

/**
 * A sound file for a request, in base64.
 * @typedef {object} Sound
 * @property {string} name what the page calls it
 * @property {string} data base64
 */

/**
 * A clip as the history keeps it, without its samples.
 * @typedef {object} Clip
 * @property {string} id of the history's own
 * @property {number} created milliseconds since 1970
 * @property {Settings} settings
 * @property {number} rate Hz
 * @property {number} samples
 * @property {string} job of the server, which forgets it after a while
 * @property {number} candidate
 * @property {string} bundle SHA-256
 * @property {number} lufs integrated loudness
 * @property {number[]} peaks of equal parts of the clip, from 0 to 1, for its small picture
 * @property {string | null} reference name of the sound that it should be like
 * @property {string | null} prime name of the sound that it goes on from
 */

/**
 * How a job stands, as `GET /v1/jobs/ID` says it.
 * @typedef {object} Job
 * @property {string} id
 * @property {"queued" | "running" | "done" | "failed" | "cancelled" | "cut"} state
 * @property {string} model
 * @property {number} seed
 * @property {number | null} position
 * @property {Record<string, {done: number, total: number}>} progress
 * @property {number} [best]
 * @property {(number | null)[]} [scores]
 * @property {{message: string, code: string | null}} [error]
 */

/**
 * A model, as `GET /v1/models` describes it.
 * @typedef {object} Model
 * @property {string} id
 * @property {number} sample_rate
 * @property {string} bundle_sha256
 */

/**
 * What the audio thread reports.
 * @typedef {object} Transport
 * @property {number} at sample that is heard next
 * @property {number} end one past the last sample that is there
 * @property {boolean} playing
 * @property {boolean} waiting whether it plays as soon as enough is there
 * @property {number} underruns
 */

export {};
