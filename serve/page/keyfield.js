// @ts-check
/**
 * The field for the server's key, which appears when the server asks for one.
 */

import { make } from "./dom.js";
import { words } from "./strings.js";

/** Return the field, and what asks for a key with it. */
export function keyField() {
  /** @type {(key: string) => void} */
  let given = () => undefined;
  const input = make("input", { id: "key", type: "password", autocomplete: "current-password", required: true, spellcheck: "false" });
  const note = make("p", { class: "note", role: "alert" });
  const submit = (/** @type {Event} */ event) => {
    event.preventDefault();
    element.hidden = true;
    given(input.value.trim());
    input.value = "";
  };
  const label = make("label", { for: "key" }, words.key.label);
  const enter = make("button", { type: "submit", class: "main" }, words.key.enter);
  const element = make("form", { class: "panel key", hidden: true, submit }, make("div", { class: "row" }, label, input, enter), note);
  /**
   * @param {string} message
   * @param {boolean} wrong
   * @returns {Promise<string>}
   */
  function ask(message, wrong) {
    element.hidden = false;
    note.textContent = message;
    note.classList.toggle("wrong", wrong);
    input.focus();
    return new Promise((done) => (given = done));
  }
  return { element, ask };
}
