// @ts-check
/**
 * Links that hold what a clip was made of: in the part of the address that browsers send to nobody.
 *
 * @import { Settings } from "./types.js"
 */

/**
 * Return a link that makes the same clip.
 * @param {Settings} settings
 * @param {string} bundle SHA-256
 */
export function linkOf(settings, bundle) {
  const { prompt, seconds, seed, candidates, model } = settings;
  const fields = { prompt, seconds, seed, ...(candidates > 1 ? { candidates } : {}), ...(model ? { model } : {}), bundle };
  const hash = new URLSearchParams(Object.entries(fields).map(([name, value]) => [name, String(value)]));
  return `${location.origin}${location.pathname}#${hash}`;
}

/**
 * Return what a link holds, null if it is none.
 * @param {string} hash of an address, with its #
 * @returns {{settings: Settings, bundle: string} | null}
 */
export function readLink(hash) {
  const fields = new URLSearchParams(hash.slice(1));
  if (!fields.has("prompt")) return null;
  const number = (/** @type {string} */ name, /** @type {number} */ otherwise) => {
    const value = Number(fields.get(name) ?? Number.NaN);
    return Number.isFinite(value) && value > 0 ? value : otherwise;
  };
  const settings = {
    prompt: fields.get("prompt") ?? "",
    seconds: number("seconds", 10),
    seed: Math.floor(number("seed", 0)),
    candidates: Math.floor(number("candidates", 1)),
    model: fields.get("model"),
  };
  return { settings, bundle: fields.get("bundle") ?? "" };
}
