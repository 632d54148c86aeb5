// @ts-check
/**
 * The view *History*: the clips of this browser, and what can be done with them.
 *
 * @import { Clip, Sound } from "./types.js"
 */

import { Refused, jobAudio } from "./api.js";
import { announce, button, clock, fileName, make, save } from "./dom.js";
import { messageOf } from "./errors.js";
import { linkOf } from "./link.js";
import { MOST_S } from "./reference.js";
import { Samples } from "./samples.js";
import { clips, forget, keep, samplesFrom } from "./store.js";
import { words } from "./strings.js";
import { titleOf } from "./titles.js";
import { base64, wav } from "./wav.js";

const MORE_S = 10; // that a clip goes on for

export class Shelf {
  /** @type {Clip[]} */
  #clips = [];
  /** @type {(Clip | null)[]} the two that are compared */
  #pair = [null, null];
  /** @type {(clip: Clip, sound: Sound, seconds: number) => void} */
  onprime = () => undefined;
  /** @type {(clip: Clip) => void} */
  onvary = () => undefined;

  /** @param {import("./deck.js").Deck} deck */
  constructor(deck) {
    this.deck = deck;
    this.note = make("p", { class: "note", role: "status" });
    this.compare = button(words.history.compare, () => this.#compare(), { class: "main", hidden: true });
    this.list = make("ol", { class: "clips" });
    this.empty = make("p", { class: "hint" }, words.history.empty);
    const hint = make("p", { class: "hint" }, words.history.hint);
    this.element = make("div", { class: "panel" }, hint, this.compare, this.note, this.empty, this.list);
  }

  /** Show what is kept. */
  async refresh() {
    this.#clips = await clips().catch(() => {
      this.#say(words.history.closed);
      return [];
    });
    this.#pair = this.#pair.map((one) => this.#clips.find((clip) => clip.id === one?.id) ?? null);
    this.#show();
  }

  /**
   * Keep a clip.
   * @param {Clip} clip
   * @param {Int16Array<ArrayBuffer>} samples
   */
  async add(clip, samples) {
    try {
      const gone = await keep(clip, samples);
      if (gone) this.#say(words.history.gone(gone));
    } catch {
      this.#say(words.history.full);
    }
    await this.refresh();
  }

  /** @param {string} text */
  #say(text) {
    this.note.textContent = text;
  }

  #show() {
    this.empty.hidden = this.#clips.length > 0;
    this.compare.hidden = this.#pair.includes(null);
    this.list.replaceChildren(...this.#clips.map((clip) => this.#card(clip)));
  }

  /** @param {Clip} clip */
  #card(clip) {
    const title = titleOf(clip.settings, clip);
    const act = (/** @type {() => Promise<void>} */ work) => () => work().catch((error) => this.#say(messageOf(error)));
    const sides = ["A", "B"].map((name, side) => {
      const made = button(name, () => this.#pick(clip, side), { class: "side", title: words.history.side(name) });
      made.setAttribute("aria-label", words.history.sideOf(name, title));
      made.setAttribute("aria-pressed", String(this.#pair[side]?.id === clip.id));
      return made;
    });
    const fetched = act(() => this.#download(clip, formats));
    /** @type {HTMLSelectElement} */
    const formats = make(
      "select",
      { "aria-label": words.history.downloadOf(title), change: fetched },
      make("option", { value: "" }, words.history.download),
      ...["wav", "flac", "opus"].map((format) => make("option", { value: format }, format)),
    );
    const play = button(words.history.play(title), act(() => this.#play(clip)), { icon: "play", class: "round", bare: true });
    const facts = [clock(clip.samples / clip.rate), words.history.seed(clip.settings.seed), new Date(clip.created).toLocaleString()];
    return make(
      "li",
      { class: "clip", "data-id": clip.id },
      play,
      thumbnail(clip.peaks),
      make("div", { class: "about" }, make("p", { class: "title" }, title), make("p", { class: "facts" }, facts.join(" · "))),
      make(
        "div",
        { class: "actions" },
        ...sides,
        button(words.history.goOn, act(() => this.#goOn(clip)), { title: words.history.goOnTitle }),
        button(words.history.vary, () => this.onvary(clip), { title: words.history.varyTitle }),
        formats,
        button(words.history.link, act(() => this.#share(clip)), { title: words.history.linkTitle }),
        button(words.history.remove, act(() => this.#remove(clip)), { class: "quiet" }),
      ),
    );
  }

  /** @param {Clip} clip */
  async #side(clip) {
    return { title: titleOf(clip.settings, clip), samples: Samples.of(clip.rate, await samplesFrom(clip.id)), lufs: clip.lufs };
  }

  /** @param {Clip} clip */
  async #play(clip) {
    this.deck.load([await this.#side(clip)]);
  }

  /**
   * @param {Clip} clip
   * @param {number} side
   */
  #pick(clip, side) {
    this.#pair[side] = this.#pair[side]?.id === clip.id ? null : clip;
    this.#show();
    /** @type {HTMLElement | null} */ (this.list.querySelector(`[data-id="${clip.id}"] .side:nth-child(${side + 1})`))?.focus();
  }

  async #compare() {
    const [a, b] = this.#pair;
    if (!a || !b) return;
    if (a.rate !== b.rate) {
      this.#say(words.history.rates);
      return;
    }
    this.deck.load([await this.#side(a), await this.#side(b)]);
    this.#say(words.history.compares);
  }

  /** @param {Clip} clip */
  async #goOn(clip) {
    const samples = (await samplesFrom(clip.id)).slice(-MOST_S * clip.rate);
    const sound = { name: titleOf(clip.settings, clip), data: await base64(wav(samples, clip.rate)) };
    this.onprime(clip, sound, Math.round(samples.length / clip.rate) + MORE_S);
  }

  /**
   * @param {Clip} clip
   * @param {HTMLSelectElement} formats
   */
  async #download(clip, formats) {
    const format = formats.value;
    formats.value = "";
    if (!format) return;
    const title = titleOf(clip.settings, clip);
    const name = `${fileName(title)}-${clip.settings.seed}.${format}`;
    if (format === "wav") {
      const comment = words.history.comment(title, clip.settings.seed, clip.settings.seconds, clip.bundle);
      save(wav(await samplesFrom(clip.id), clip.rate, { INAM: title, ICMT: comment }), name);
      return;
    }
    try {
      const response = await jobAudio(clip.job, { response_format: format, candidate: clip.candidate });
      save(await response.blob(), name);
    } catch (error) {
      this.#say(error instanceof Refused && error.status === 404 ? words.history.wavOnly : messageOf(error));
    }
  }

  /** @param {Clip} clip */
  async #share(clip) {
    const link = linkOf(clip.settings, clip.bundle);
    const partial = clip.reference || clip.prime ? ` ${words.history.without}` : "";
    try {
      await navigator.clipboard.writeText(link);
      this.#say(words.history.copied + partial);
    } catch {
      this.note.replaceChildren(words.history.thisLink, make("a", { href: link }, link), partial);
    }
  }

  /** @param {Clip} clip */
  async #remove(clip) {
    await forget(clip.id);
    await this.refresh();
    announce(words.history.removed);
    (this.list.querySelector("button") ?? this.note).focus();
  }
}

/**
 * Return the small picture of a clip.
 * @param {number[]} peaks
 */
function thumbnail(peaks) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 -1 ${peaks.length} 2`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", "thumbnail");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  const most = Math.max(0.05, ...peaks);
  path.setAttribute("d", peaks.map((peak, x) => `M${x + 0.5} ${-Math.max(peak / most, 0.02)}V${Math.max(peak / most, 0.02)}`).join(""));
  svg.append(path);
  return svg;
}
