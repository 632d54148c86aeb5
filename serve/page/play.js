// @ts-check
/**
 * The view *Play*: music without end, whose prompts are blended while it plays.
 *
 * @import { Fault, Message, Prompt } from "./types.js"
 */

import { Changes } from "./changes.js";
import { button, clock, dress, make, randomSeed } from "./dom.js";
import { Lead } from "./lead.js";
import { LEAD_S, Live, saveSession, savedSession } from "./live.js";
import { Mixer } from "./mixer.js";
import { Player } from "./player.js";
import { Recordings } from "./recordings.js";
import { Rolling } from "./rolling.js";
import { words } from "./strings.js";

const TELL_MS = 250; // between two messages of how far it was played
const KEPT_S = 30; // of sound behind the playhead

export class Playing {
  /** @type {Live | null} */
  #live = null;
  /** @type {Player | null} */
  #player = null;
  /** @type {Rolling | null} */
  #rolling = null;
  #wanted = false; // whether it should play
  #began = false; // whether the session's first sample has come
  #cutUntil = 0; // when it connects again, by `performance.now`; 0: it is connected
  #cutWhy = "";
  /** @type {() => void} before it plays, so that nothing else does */
  onplay = () => undefined;

  /**
   * @param {import("./player.js").Outputs} outputs
   * @param {number} rate Hz, of the first model
   */
  constructor(outputs, rate) {
    this.outputs = outputs;
    this.rate = rate;
    this.mixer = new Mixer();
    this.mixer.onchange = (prompts) => this.#live?.send({ type: "prompts", prompts });
    this.canvas = make("canvas", { "aria-hidden": "true" });
    this.empty = make("p", { class: "empty" }, words.play.empty);
    this.display = make("div", { class: "display rolling" }, this.canvas, this.empty);
    this.switch = button("playpause", (event) => this.toggle(event.timeStamp), { class: "round" });
    this.stop = button(words.play.stop, () => this.#stop(), { icon: "stop" });
    this.reset = button(words.play.reset, () => this.#reset(), { icon: "reset", title: words.play.resetTitle });
    this.recordings = new Recordings((message) => this.#live?.send(message), () => this.#player?.state.at ?? 0);
    this.time = make("span", { class: "time" }, clock(0));
    this.changes = new Changes();
    this.changes.onheard = () => this.mixer.flash();
    this.note = make("p", { class: "note", role: "status" });
    this.anew = button(words.play.anew, (event) => this.#anew(event.timeStamp), { class: "main", hidden: true });
    const { controls } = this.recordings;
    const time = make("div", { class: "clock" }, this.time);
    const transport = make("div", { class: "transport" }, this.switch, time, this.changes.element, this.stop, this.reset, controls);
    const deck = make("section", { class: "deck", "aria-label": words.play.label }, this.display, transport, this.note, this.anew);
    this.element = make("div", {}, deck, this.mixer.element, this.recordings.element);
    const saved = savedSession();
    if (saved) {
      this.mixer.fill(saved.prompts);
      this.#say(words.play.resume);
    }
    setInterval(() => this.#tell(), TELL_MS);
    const frame = () => {
      this.#follow();
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
    this.#show();
  }

  /** Whether it plays, or is about to. */
  get on() {
    return this.#wanted;
  }

  /** @param {number} [pressed] when, by `performance.now` */
  toggle(pressed = performance.now()) {
    if (this.#wanted) this.pause();
    else this.#play(pressed);
  }

  /** @param {number} pressed */
  #play(pressed) {
    if (!this.mixer.complete()) return;
    this.onplay();
    this.#wanted = true;
    this.#player ??= this.#makePlayer();
    if (!this.#live) this.#open(pressed);
    else {
      if (!this.#began) this.#player.clear(pressed);
      this.#live.send({ type: "play" });
    }
    this.#player.play();
    this.#show();
  }

  #makePlayer() {
    this.#rolling = new Rolling(this.canvas, this.rate);
    return new Player(this.outputs.of(this.rate), new Lead(0.7 * LEAD_S), KEPT_S);
  }

  /** @param {number} pressed */
  #open(pressed) {
    const saved = savedSession();
    this.#player?.clear(pressed);
    this.#rolling?.clear();
    this.#began = false;
    this.#say(words.play.connects);
    const live = new Live({
      message: (message) => this.#take(message),
      samples: (start, samples) => this.#samples(start, samples),
      cut: (seconds, why) => {
        this.#cutUntil = performance.now() + 1000 * seconds;
        this.#cutWhy = why || words.play.cut;
      },
      ended: (fault) => this.#ended(fault),
    });
    this.#live = live;
    if (saved) {
      live.session = saved.session;
      live.end = saved.played;
    }
    live.send({ type: "play" });
    live.connect();
  }

  /** Pause; what comes next is kept. */
  pause() {
    if (!this.#wanted) return;
    this.#wanted = false;
    this.#player?.pause();
    this.#live?.send({ type: "pause" });
    this.#show();
  }

  #stop() {
    this.recordings.end();
    this.#wanted = this.#began = false;
    this.changes.clear();
    this.#player?.clear();
    this.#rolling?.clear();
    this.#live?.send({ type: "stop" });
    saveSession(null);
    this.#show();
  }

  /** Begin other music with the same prompts, without a pause. */
  #reset() {
    this.#live?.send({ type: "config", seed: randomSeed() });
    this.#live?.send({ type: "reset" });
  }

  /** @param {number} pressed */
  #anew(pressed) {
    this.#live?.close();
    this.#live = null;
    saveSession(null);
    this.anew.hidden = true;
    this.#play(pressed);
  }

  /**
   * @param {number} start
   * @param {Int16Array} samples
   */
  #samples(start, samples) {
    if (!this.#wanted && !this.#began) return; // of what was stopped: it was on its way
    this.#began = true;
    this.#player?.stream(start, samples);
    this.#rolling?.push(start, samples);
  }

  /** @param {Message} message */
  #take(message) {
    if (message.type === "ready") {
      this.#cutUntil = 0;
      this.#player?.lead.begin(); // how long it was cut says nothing of the line
      this.#say("");
      const { prompts } = this.mixer;
      const had = message.prompts.map((/** @type {Prompt} */ { text, weight }) => ({ text, weight }));
      if (JSON.stringify(prompts) !== JSON.stringify(had)) this.#live?.send({ type: "prompts", prompts });
      if (message.resumed && this.#wanted && message.state !== "playing") this.#live?.send({ type: "play" });
    } else if (message.type === "changed" && this.#began) {
      this.changes.add(message.sample);
      this.#rolling?.marks.push(message.sample);
    } else if (message.type === "recorded") this.recordings.add(message);
    else if (message.type === "warning") this.#say(message.message);
    else if (message.type === "error") this.#say(message.error.message, true);
    else if (message.type === "state" && message.reason) {
      this.#say(message.reason);
      if (message.state !== "playing" && this.#wanted) {
        this.#wanted = false;
        this.#player?.pause();
      }
    }
    this.#show();
  }

  /** @param {Fault} fault */
  #ended(fault) {
    this.#live = null;
    this.#wanted = this.#began = false;
    this.#cutUntil = 0;
    this.#player?.pause();
    saveSession(null);
    const lost = fault.code === "session_not_found";
    this.#say(lost ? words.play.lost : fault.message, true);
    this.anew.hidden = !lost;
    this.recordings.lost();
    this.#show();
  }

  /** Tell the server how far it was played, and keep it over a reload. */
  #tell() {
    const { session } = this.#live ?? {};
    if (!this.#live || !session || !this.#began || !this.#wanted) return;
    const played = this.#player?.state.at ?? 0;
    this.#live.played(played);
    saveSession({ session, played, prompts: this.mixer.prompts });
  }

  /**
   * @param {string} text
   * @param {boolean} [wrong]
   */
  #say(text, wrong = false) {
    this.note.textContent = text;
    this.note.classList.toggle("wrong", wrong);
  }

  #show() {
    const wanted = this.#wanted;
    dress(this.switch, wanted ? words.play.pause : words.play.play, wanted ? "pause" : "play", true);
    this.stop.disabled = this.reset.disabled = !this.#began;
    this.recordings.disabled = !this.#began;
    this.empty.hidden = this.#began;
  }

  /** Show where the music is, and what is about to change. */
  #follow() {
    const player = this.#player;
    if (!player) return;
    if (this.#began) {
      this.#rolling?.frame(player.now);
      this.time.textContent = clock(player.now / this.rate);
    }
    if (this.#cutUntil) {
      const left = Math.max(0, Math.ceil((this.#cutUntil - performance.now()) / 1000));
      const text = `${this.#cutWhy} ${words.play.again(left)}`;
      if (this.note.textContent !== text) this.#say(text, true);
    }
    this.changes.follow(player.now, this.rate);
  }
}
