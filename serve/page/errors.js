// @ts-check
/**
 * What to say of an error.
 */

import { Refused } from "./api.js";
import { words } from "./strings.js";

/**
 * Return what to say of an error: the server's words say what to do.
 * @param {unknown} error
 */
export function messageOf(error) {
  if (error instanceof Refused) return error.message;
  if (error instanceof TypeError) return words.error.gone;
  return error instanceof Error ? error.message : String(error);
}
