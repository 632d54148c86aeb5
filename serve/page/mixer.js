// @ts-check
/**
 * Prompts with weights, which blend: two to four lines of words, each with a slider.
 *
 * @import { Prompt } from "./types.js"
 */

import { announce, button, make } from "./dom.js";
import { words } from "./strings.js";

const LEAST = 2;
const MOST = 4;
const SETTLE_MS = 150; // a slider that moves sends one message, not fifty

/**
 * @typedef {object} Line
 * @property {HTMLLIElement} element
 * @property {HTMLInputElement} text
 * @property {HTMLInputElement} weight
 */

export class Mixer {
  /** @type {Line[]} */
  #lines = [];
  #number = 0;
  #sent = "";
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  /** @type {(prompts: Prompt[]) => void} */
  onchange = () => undefined;

  constructor() {
    this.list = make("ol", { class: "mixer" });
    this.add = button(words.mixer.add, () => this.#more("", 0).text.focus(), { icon: "add", class: "quiet" });
    this.hint = make("p", { class: "note wrong", role: "alert" });
    this.element = make("div", { class: "panel" }, this.list, this.add, this.hint);
    this.fill([
      { text: words.mixer.first, weight: 1 },
      { text: words.mixer.second, weight: 0 },
    ]);
  }

  /** @param {Prompt[]} prompts */
  fill(prompts) {
    this.#lines = [];
    this.list.replaceChildren();
    for (const { text, weight } of prompts.slice(0, MOST)) this.#more(text, weight);
    while (this.#lines.length < LEAST) this.#more("", 0);
    this.#sent = JSON.stringify(this.prompts);
  }

  /** All that count, with their weights. */
  get prompts() {
    return this.#lines
      .map(({ text, weight }) => ({ text: text.value.trim(), weight: weight.valueAsNumber }))
      .filter(({ text, weight }) => text && weight > 0);
  }

  /** Return whether there is something to play; if not, say so. */
  complete() {
    const complete = this.prompts.length > 0;
    this.hint.textContent = complete ? "" : words.mixer.nothing;
    return complete;
  }

  /**
   * @param {string} text
   * @param {number} weight
   */
  #more(text, weight) {
    const number = ++this.#number;
    const changed = () => {
      shown.textContent = line.weight.valueAsNumber.toFixed(2);
      line.weight.setAttribute("aria-valuetext", shown.textContent);
      line.element.classList.toggle("off", !line.weight.valueAsNumber || !line.text.value.trim());
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#tell(), SETTLE_MS);
    };
    const remove = button(words.mixer.remove, () => this.#less(line), { icon: "close", class: "quiet", bare: true });
    const shown = make("output", { for: `weight-${number}` });
    const line = {
      text: make("input", { type: "text", maxlength: 1000, value: text, placeholder: words.mixer.example, change: changed }),
      weight: make("input", { id: `weight-${number}`, type: "range", min: 0, max: 2, step: 0.05, value: weight, input: changed }),
      element: make("li", {}),
    };
    line.text.setAttribute("aria-label", words.mixer.words);
    line.weight.setAttribute("aria-label", words.mixer.weight);
    line.element.append(line.text, make("div", { class: "weight" }, line.weight, shown), remove);
    this.#lines.push(line);
    this.list.append(line.element);
    changed();
    clearTimeout(this.#timer);
    this.#count();
    return line;
  }

  /** @param {Line} line */
  #less(line) {
    this.#lines = this.#lines.filter((one) => one !== line);
    line.element.remove();
    this.#count();
    this.#tell();
    announce(words.mixer.removed);
    this.#lines.at(-1)?.text.focus();
  }

  #count() {
    this.add.hidden = this.#lines.length >= MOST;
    for (const { element } of this.#lines) element.querySelector("button")?.toggleAttribute("hidden", this.#lines.length <= LEAST);
  }

  #tell() {
    const now = JSON.stringify(this.prompts);
    if (now === this.#sent || !this.complete()) return;
    this.#sent = now;
    this.onchange(this.prompts);
  }

  /** Mark all lines for a moment: what was changed is heard. */
  flash() {
    this.list.classList.remove("heard");
    void this.list.offsetWidth; // so that the animation begins again
    this.list.classList.add("heard");
  }
}
