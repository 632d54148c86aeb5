// @ts-check
/**
 * The view *Make*: what a clip should be like, and the clip on the deck while it is made.
 *
 * @import { Streamed } from "./deck.js"
 * @import { Clip, Job, Origin, Settings, Sources } from "./types.js"
 */

import { announce, button, make } from "./dom.js";
import { messageOf } from "./errors.js";
import { Form } from "./form.js";
import { Take, interrupted, readCandidate } from "./request.js";
import { words } from "./strings.js";
import { titleOf } from "./titles.js";

export class Making {
  /** @type {Take | null} */
  #take = null;
  #candidate = new AbortController(); // that is being fetched
  /** @type {() => boolean} whether something else plays, which a clip that is ready later does not interrupt */
  elsewhere = () => false;
  /** @type {(clip: Clip, samples: Int16Array<ArrayBuffer>) => void} */
  onclip = () => undefined;

  /**
   * @param {import("./deck.js").Deck} deck
   * @param {number} rate Hz, of the first model
   */
  constructor(deck, rate) {
    this.deck = deck;
    this.rate = rate;
    this.form = new Form((settings, pressed) => this.begin(settings, pressed));
    this.candidates = make("div", { class: "candidates", role: "group", "aria-label": words.make.candidates, hidden: true });
    this.element = make("div", {}, this.candidates, this.form.element);
    deck.oncancel = () => this.cancel();
  }

  cancel() {
    this.#take?.cancel();
  }

  /**
   * Have a clip made.
   * @param {Settings} settings
   * @param {number} pressed when, by `performance.now`
   */
  begin(settings, pressed) {
    const { audio, prime } = this.form.sounds;
    const names = { reference: audio?.name ?? null, prime: prime?.name ?? null };
    const like = audio && { data: audio.data };
    const both = like && settings.prompt ? { prompt: [{ text: settings.prompt, weight: 0.5 }, { audio: like, weight: 0.5 }] } : {};
    const alone = like && !settings.prompt ? { audio: like } : {};
    const sounds = { ...both, ...alone, ...(prime ? { prime: { data: prime.data } } : {}) };
    this.deck.outputs.of(this.rate).wake(); // while the press that allows it is new
    this.#run(settings, sounds, names, pressed, (take) => take.run());
  }

  /** Go on with what a reload interrupted. Returns whether there was something. */
  resume() {
    const saved = interrupted();
    if (!saved) return false;
    this.form.fill(saved.settings);
    this.#run(saved.settings, {}, saved, Number.NaN, (take) => take.resume(saved.job), words.make.resumed);
    return true;
  }

  /**
   * @param {Settings} settings
   * @param {object} sounds
   * @param {Sources} names
   * @param {number} pressed
   * @param {(take: Take) => Promise<void>} work
   * @param {string} [said]
   */
  async #run(settings, sounds, names, pressed, work, said = "") {
    this.cancel();
    this.#candidate.abort();
    const { deck } = this;
    const title = titleOf(settings, names);
    let made = /** @type {{origin: Origin, side: Streamed} | null} */ (null);
    const take = new Take(settings, sounds, names, {
      begun: (origin) => {
        const at = this.elsewhere() ? Number.NaN : pressed;
        made = { origin, side: deck.begin(title, origin.rate, Math.round(settings.seconds * origin.rate), at) };
        deck.say(said);
      },
      samples: (more) => made && deck.add(made.side, more),
      progress: (job) => deck.look.progress(job),
      waits: (message, seconds) => deck.say(message && words.make.again(message, seconds)),
      candidates: (job) => this.#choose(job, settings, names),
    });
    this.#take = take;
    this.candidates.hidden = true;
    this.form.busy = deck.making = true;
    deck.onplay();
    deck.clear();
    deck.element.scrollIntoView({ block: "nearest" }); // in a small window the button is far below
    deck.say(settings.candidates > 1 ? words.make.waits : words.make.begins);
    try {
      await work(take);
      if (made) await this.#keep(made, settings, names, 0);
      announce(words.make.done);
    } catch (error) {
      if (this.#take !== take) return; // another one has begun
      if (made) deck.end(made.side);
      if (take.cancelled) deck.say(words.make.cancelled);
      else deck.say(messageOf(error), true);
    } finally {
      if (this.#take === take) this.form.busy = deck.making = false;
    }
  }

  /**
   * Show the candidates of a job, the best first, and play that one.
   * @param {Job} job
   * @param {Settings} settings
   * @param {Sources} names
   */
  #choose(job, settings, names) {
    const scores = job.scores ?? [];
    const order = scores.map((_, index) => index).sort((a, b) => (scores[b] ?? 0) - (scores[a] ?? 0));
    const buttons = order.map((candidate, place) => {
      const score = scores[candidate];
      const press = (/** @type {MouseEvent} */ { isTrusted }) => {
        for (const one of buttons) one.setAttribute("aria-pressed", String(one === made));
        if (isTrusted) this.deck.onplay(); // pressed by a person
        this.#fetch(job.id, candidate, settings, names);
      };
      const made = button(words.make.candidate(place + 1), press, { class: "candidate" });
      made.setAttribute("aria-pressed", "false");
      if (score !== null && score !== undefined) made.append(make("span", { class: "score", title: words.make.score }, score.toFixed(3)));
      return made;
    });
    this.candidates.replaceChildren(...buttons);
    this.candidates.hidden = false;
    this.deck.say("");
    buttons[0]?.click();
  }

  /**
   * @param {string} job
   * @param {number} candidate
   * @param {Settings} settings
   * @param {Sources} names
   */
  async #fetch(job, candidate, settings, names) {
    this.#candidate.abort();
    this.#candidate = new AbortController();
    const { signal } = this.#candidate;
    let made = /** @type {{origin: Origin, side: Streamed} | null} */ (null);
    /** @param {Origin} origin */
    const begun = (origin) => {
      const at = this.elsewhere() ? Number.NaN : performance.now();
      const side = this.deck.begin(titleOf(settings, names), origin.rate, Math.round(settings.seconds * origin.rate), at);
      made = { origin, side };
    };
    try {
      await readCandidate(job, candidate, signal, begun, (more) => made && this.deck.add(made.side, more));
      if (made) await this.#keep(made, settings, names, candidate);
    } catch (error) {
      if (!signal.aborted) this.deck.say(messageOf(error), true);
    }
  }

  /**
   * Put a whole clip into the history.
   * @param {{origin: Origin, side: Streamed}} made
   * @param {Settings} settings
   * @param {Sources} names
   * @param {number} candidate
   */
  async #keep({ origin, side }, settings, names, candidate) {
    this.deck.end(side);
    const { samples, lufs } = side;
    const clip = {
      id: `${origin.job}.${candidate}`,
      created: Date.now(),
      settings: { ...settings, seed: origin.seed },
      rate: origin.rate,
      samples: samples.length,
      job: origin.job,
      candidate,
      bundle: origin.bundle,
      lufs,
      peaks: samples.peaks(96),
      reference: names.reference,
      prime: names.prime,
    };
    this.onclip(clip, samples.all.slice());
  }
}
