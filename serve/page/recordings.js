// @ts-check
/**
 * What is recorded of music without end: from what is heard at one press to what is heard at the next, as a file of the server.
 *
 * @import { Message } from "./types.js"
 */

import { ask } from "./api.js";
import { announce, button, clock, dress, make, save } from "./dom.js";
import { messageOf } from "./errors.js";
import { words } from "./strings.js";

export class Recordings {
  #on = false;

  /**
   * @param {(message: object) => void} send
   * @param {() => number} heard the sample that is heard now
   */
  constructor(send, heard) {
    this.send = send;
    this.heard = heard;
    this.format = make(
      "select",
      { "aria-label": words.record.format },
      ...["flac", "wav", "opus"].map((format) => make("option", { value: format }, format)),
    );
    this.switch = button(words.record.begin, () => this.#press(), { icon: "record", class: "record" });
    this.controls = make("div", { class: "recorder" }, this.switch, this.format);
    this.list = make("ul", { class: "recordings" });
    this.note = make("p", { class: "note", role: "status" });
    this.element = make("div", { class: "panel", hidden: true }, make("h2", {}, words.record.title), this.list, this.note);
  }

  /** @param {boolean} disabled */
  set disabled(disabled) {
    this.switch.disabled = disabled && !this.#on;
  }

  #press() {
    if (this.#on) this.send({ type: "end_record", to_sample: this.heard() });
    else this.send({ type: "record", format: this.format.value, from_sample: this.heard() });
    this.#set(!this.#on);
    announce(this.#on ? words.record.records : words.record.ends);
  }

  /** @param {boolean} on */
  #set(on) {
    this.#on = on;
    this.format.disabled = on;
    this.switch.setAttribute("aria-pressed", String(on));
    dress(this.switch, on ? words.record.end : words.record.begin, on ? "stop" : "record");
  }

  /** End what is recorded, as the music ends. */
  end() {
    if (this.#on) this.#press();
  }

  /** Note that the session is over, and what it recorded with it. */
  lost() {
    if (this.#on) this.#set(false);
  }

  /** @param {Message} message `recorded` */
  add(message) {
    this.#set(false);
    const { url, format, seconds } = message;
    const label = words.record.download(format, clock(seconds));
    const fetched = () =>
      ask(url)
        .then((response) => response.blob())
        .then((blob) => save(blob, `musiclm-${new Date().toISOString().slice(0, 19).replace(/:/g, "-")}.${format}`))
        .catch((error) => (this.note.textContent = messageOf(error)));
    this.list.prepend(make("li", { "data-sha256": message.pcm_sha256 }, button(label, fetched)));
    this.element.hidden = false;
    announce(words.record.ready);
  }
}
