// @ts-check
/**
 * What clips are called.
 *
 * @typedef {import("./types.js").Settings} Settings
 * @typedef {import("./types.js").Sources} Sources
 */

import { words } from "./strings.js";

/**
 * Return what a clip is called.
 * @param {Settings} settings
 * @param {Sources} names
 */
export function titleOf(settings, names) {
  return settings.prompt || (names.reference ? words.make.like(names.reference) : words.make.after(names.prime ?? ""));
}
