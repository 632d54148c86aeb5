// @ts-check
/**
 * The client of `/v1/live`, whose messages serve/live/messages.py defines: one session, over as many connections as it takes.
 *
 * @import { Fault, LiveEvents, Message, SavedSession } from "./types.js"
 */

import { key, readSamples, wantKey } from "./api.js";
import { randomSeed } from "./dom.js";

const SAVED = "musiclm-live";
export const LEAD_S = 1; // that the server sends before it is played
const FIRST_S = 0.25; // between attempts; doubled each time
const MOST_S = 8;

/** @returns {SavedSession | null} */
export function savedSession() {
  const text = sessionStorage.getItem(SAVED);
  return text ? JSON.parse(text) : null;
}

/** @param {SavedSession | null} saved */
export function saveSession(saved) {
  if (saved) sessionStorage.setItem(SAVED, JSON.stringify(saved));
  else sessionStorage.removeItem(SAVED);
}

export class Live {
  /** @type {WebSocket | null} */
  #socket = null;
  #ready = false;
  #closed = false;
  #attempt = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  /** @type {object[]} what is sent when there is a session */
  #queue = [];
  /** @type {string | null} */
  session = null;
  end = 0; // one past the last sample that came

  /** @param {LiveEvents} events */
  constructor(events) {
    this.events = events;
    addEventListener("online", this.#online);
  }

  #online = () => {
    if (!this.#socket && !this.#closed) this.connect();
  };

  /** Connect, or connect again. */
  connect() {
    clearTimeout(this.#timer);
    const url = new URL("v1/live", document.baseURI);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      const sent = key();
      const again = this.session ? { session: this.session, from_sample: this.end } : { seed: randomSeed() };
      const setup = { type: "setup", lead_s: LEAD_S, ...(sent ? { key: sent } : {}), ...again };
      socket.send(JSON.stringify(setup));
    };
    socket.onmessage = ({ data }) => (data instanceof ArrayBuffer ? this.#samples(data) : this.#message(JSON.parse(data)));
    socket.onclose = () => this.#cut(socket);
    this.#socket = socket;
  }

  /** @param {ArrayBuffer} data */
  #samples(data) {
    const start = Number(new DataView(data).getBigUint64(0, true));
    const samples = readSamples(data, 8, (data.byteLength - 8) >> 1);
    this.end = start + samples.length;
    this.events.samples(start, samples);
  }

  /** @param {Message} message */
  #message(message) {
    if (message.type === "ready") {
      this.session = message.session;
      this.#ready = true;
      this.#attempt = 0;
      this.events.message(message);
      for (const one of this.#queue.splice(0)) this.send(one);
      return;
    }
    if (message.type === "error" && message.final) {
      this.#refused(message.error);
      return;
    }
    this.events.message(message);
  }

  /** @param {Fault} fault */
  #refused(fault) {
    if (fault.code === "invalid_api_key") {
      this.#drop();
      wantKey().then(() => this.connect(), () => this.close());
    } else if (fault.retry_s !== null && fault.retry_s !== undefined) {
      this.#drop();
      this.#later(fault.retry_s, fault.message);
    } else {
      this.close();
      this.events.ended(fault);
    }
  }

  /** Let go of the connection without calling it cut. */
  #drop() {
    const socket = this.#socket;
    this.#socket = null;
    this.#ready = false;
    socket?.close();
  }

  /** @param {WebSocket} socket */
  #cut(socket) {
    if (this.#socket !== socket) return;
    this.#socket = null;
    this.#ready = false;
    const spread = 0.75 + Math.random() / 2; // so that not all clients come at once
    if (!this.#closed) this.#later(Math.min(MOST_S, FIRST_S * 2 ** this.#attempt++) * spread);
  }

  /**
   * @param {number} seconds
   * @param {string} [why]
   */
  #later(seconds, why = "") {
    this.#timer = setTimeout(() => this.connect(), seconds * 1000);
    this.events.cut(seconds, why);
  }

  /**
   * Send a message, once there is a session.
   * @param {object} message of serve/live/messages.py
   */
  send(message) {
    if (this.#ready) this.#socket?.send(JSON.stringify(message));
    else if (!this.#closed) this.#queue.push(message);
  }

  /**
   * Say how far the music was played; where nobody listens it is not kept for later.
   * @param {number} sample
   */
  played(sample) {
    if (this.#ready) this.send({ type: "played", sample });
  }

  /** End the connection. */
  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    removeEventListener("online", this.#online);
    this.#drop();
  }
}
