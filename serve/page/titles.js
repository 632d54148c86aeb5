// @ts-check
/**
 * What clips are called.
 *
 * @typedef {import("./types.js").Settings} Settings
 */

import { words } from "./strings.js";

/**
 * Return what a clip is called.
 * @param {Settings} settings
 * @param {{reference: string | null, prime: string | null}} names
 */
export function titleOf(settings, names) {
  return settings.prompt || (names.reference ? words.make.like(names.reference) : words.make.after(names.prime ?? ""));
}
