// @ts-check
/**
 * The form of *Make*: words, sounds, length, seed, candidates, model. It asks nobody; it says what was chosen.
 *
 * @import { Model, Settings, Sound } from "./types.js"
 */

import { button, make, randomSeed } from "./dom.js";
import { Reference } from "./reference.js";
import { words } from "./strings.js";

export class Form {
  /** @type {Sound | null} a clip that the music goes on from */
  #prime = null;

  /** @param {(settings: Settings, pressed: number) => void} begin */
  constructor(begin) {
    const submit = (/** @type {Event} */ event) => {
      event.preventDefault();
      if (this.#complete()) begin(this.settings, event.timeStamp);
    };
    this.prompt = make("textarea", {
      id: "prompt",
      rows: 2,
      maxlength: 4096,
      placeholder: words.form.example,
      enterkeyhint: "go",
      keydown: (/** @type {KeyboardEvent} */ event) => event.key === "Enter" && !event.shiftKey && !event.isComposing && submit(event),
      input: () => this.prompt.setCustomValidity(""),
    });
    this.reference = new Reference();
    this.reference.onchange = () => this.prompt.setCustomValidity("");
    this.primeName = make("span", { class: "name" });
    const removePrime = button(words.form.removePrime, () => (this.prime = null), { icon: "close", class: "quiet", bare: true });
    this.primeRow = make("p", { class: "prime", hidden: true }, this.primeName, removePrime);
    const number = { type: "number", required: true, step: 1 };
    this.seconds = make("input", { ...number, id: "seconds", min: 0.1, max: 3600, step: "any", value: 10 });
    this.seed = make("input", { ...number, id: "seed", min: 0, max: Number.MAX_SAFE_INTEGER });
    this.candidates = make("input", { ...number, id: "candidates", min: 1, max: 64, value: 1 });
    this.model = make("select", { id: "model" });
    this.modelField = field(words.form.model, this.model);
    this.go = make("button", { type: "submit", class: "main" }, words.form.go);
    const dice = button(words.form.dice, () => this.roll(), { icon: "dice", class: "quiet", bare: true });
    this.element = make(
      "form",
      { class: "panel", novalidate: true, submit },
      field(words.form.prompt, this.prompt),
      this.reference.element,
      this.primeRow,
      make(
        "div",
        { class: "row" },
        field(words.form.seconds, this.seconds),
        field(words.form.seed, this.seed, dice),
        field(words.form.candidates, this.candidates),
        this.modelField,
        this.go,
      ),
    );
    this.roll();
  }

  /** Draw another seed. */
  roll() {
    this.seed.value = String(randomSeed());
  }

  /** @param {boolean} busy */
  set busy(busy) {
    this.go.textContent = busy ? words.form.anew : words.form.go;
  }

  /** @param {Model[]} models */
  set models(models) {
    this.model.replaceChildren(...models.map((model) => make("option", { value: model.id }, model.id)));
    this.modelField.hidden = models.length < 2;
  }

  /** @param {Sound | null} sound */
  set prime(sound) {
    this.#prime = sound;
    this.primeName.textContent = sound ? words.form.goesOn(sound.name) : "";
    this.primeRow.hidden = !sound;
    this.prompt.setCustomValidity("");
  }

  /** The sounds of the request. */
  get sounds() {
    return { audio: this.reference.sound, prime: this.#prime };
  }

  /** @returns {Settings} */
  get settings() {
    return {
      prompt: this.prompt.value.trim(),
      seconds: this.seconds.valueAsNumber,
      seed: this.seed.valueAsNumber,
      candidates: this.candidates.valueAsNumber,
      model: this.modelField.hidden ? null : this.model.value,
    };
  }

  /** @param {Settings} settings */
  fill(settings) {
    this.prompt.value = settings.prompt;
    this.seconds.value = String(settings.seconds);
    this.seed.value = String(settings.seed);
    this.candidates.value = String(settings.candidates);
    if (settings.model) this.model.value = settings.model;
  }

  /** Return whether all is there that a request needs; if not, the field at fault says so. */
  #complete() {
    const { audio, prime } = this.sounds;
    this.prompt.setCustomValidity(this.prompt.value.trim() || audio || prime ? "" : words.form.nothing);
    const faulty = [this.prompt, this.seconds, this.seed, this.candidates].find((one) => !one.checkValidity());
    if (!faulty) return true;
    faulty.reportValidity();
    faulty.focus();
    return false;
  }
}

/**
 * @param {string} label
 * @param {HTMLInputElement | HTMLTextAreaElement | HTMLSelectElement} control
 * @param {...Node} more
 */
function field(label, control, ...more) {
  const named = make("label", { for: control.id }, label);
  return make("div", { class: `field field-${control.id}` }, named, make("div", { class: "control" }, control, ...more));
}
