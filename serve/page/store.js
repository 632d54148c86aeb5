// @ts-check
/**
 * The clips of this browser, in IndexedDB: what they are in one table, their samples in another, so that a list reads no sound.
 *
 * @import { Clip } from "./types.js"
 */

export const MOST_CLIPS = 50;
export const MOST_BYTES = 200e6;
const CLIPS = "clips";
const SOUNDS = "sounds";

/** @type {Promise<IDBDatabase> | null} */
let opening = null;

function open() {
  opening ??= new Promise((done, fail) => {
    const request = indexedDB.open("musiclm", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore(CLIPS, { keyPath: "id" });
      request.result.createObjectStore(SOUNDS);
    };
    request.onsuccess = () => done(request.result);
    request.onerror = () => fail(request.error);
  });
  return opening;
}

/**
 * @template T
 * @param {IDBRequest<T>} request
 * @returns {Promise<T>}
 */
function result(request) {
  return new Promise((done, fail) => {
    request.onsuccess = () => done(request.result);
    request.onerror = () => fail(request.error);
  });
}

/** @param {IDBTransactionMode} mode */
async function tables(mode) {
  const transaction = (await open()).transaction([CLIPS, SOUNDS], mode);
  const ended = new Promise((done, fail) => {
    transaction.oncomplete = () => done(null);
    transaction.onerror = transaction.onabort = () => fail(transaction.error);
  });
  return { clips: transaction.objectStore(CLIPS), sounds: transaction.objectStore(SOUNDS), ended };
}

/**
 * Return all clips, the newest first.
 * @returns {Promise<Clip[]>}
 */
export async function clips() {
  const { clips: table } = await tables("readonly");
  /** @type {Clip[]} */
  const all = await result(table.getAll());
  return all.sort((a, b) => b.created - a.created);
}

/**
 * Keep a clip. The oldest ones go if there are too many.
 * @param {Clip} clip
 * @param {Int16Array<ArrayBuffer>} samples
 * @returns {Promise<number>} how many went
 */
export async function keep(clip, samples) {
  const before = await clips();
  const { clips: table, sounds, ended } = await tables("readwrite");
  table.put(clip);
  sounds.put(new Blob([samples]), clip.id);
  const gone = beyond([clip, ...before.filter((one) => one.id !== clip.id)]);
  for (const one of gone) {
    table.delete(one.id);
    sounds.delete(one.id);
  }
  await ended;
  return gone.length;
}

/**
 * Return the clips that there is no room for.
 * @param {Clip[]} all the newest first
 */
export function beyond(all) {
  let bytes = 0;
  return all.filter((clip, index) => {
    bytes += 2 * clip.samples;
    return index > 0 && (index >= MOST_CLIPS || bytes > MOST_BYTES);
  });
}

/**
 * Return the samples of a clip.
 * @param {string} id
 * @returns {Promise<Int16Array<ArrayBuffer>>}
 */
export async function samplesFrom(id) {
  const { sounds } = await tables("readonly");
  /** @type {Blob} */
  const blob = await result(sounds.get(id));
  return new Int16Array(await blob.arrayBuffer());
}

/** @param {string} id */
export async function forget(id) {
  const { clips: table, sounds, ended } = await tables("readwrite");
  table.delete(id);
  sounds.delete(id);
  await ended;
}
