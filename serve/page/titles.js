// @ts-check
/**
 * What clips are called.
 *
 * @import { Settings, Sources } from "./types.js"
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
