// @ts-check
/**
 * Builds elements, and says things to people: small helpers that know nothing of music.
 */

/**
 * Return a new element.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, any>} [attributes] functions listen to the event of their name; true: without a value; false, null: none
 * @param {...(Node | string | null)} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, String(value));
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const PATHS = {
  play: "M7 4.5v15l12-7.5z",
  pause: "M6.5 5h3.5v14H6.5zM14 5h3.5v14H14z",
  stop: "M6 6h12v12H6z",
  reset: "M12 5a7 7 0 1 1-6.6 4.7l1.9.6A5 5 0 1 0 12 7v3L7.5 6 12 2z",
  record: "M12 6a6 6 0 1 1 0 12 6 6 0 0 1 0-12z",
  dice: "M4 4h16v16H4zm3 3v3h3V7zm3.5 3.5v3h3v-3zM14 14v3h3v-3z",
  mic: "M12 3a3 3 0 0 1 3 3v5a3 3 0 0 1-6 0V6a3 3 0 0 1 3-3zM6 11h2a4 4 0 0 0 8 0h2a6 6 0 0 1-5 5.9V20h-2v-3.1A6 6 0 0 1 6 11z",
  close: "M6.4 5 12 10.6 17.6 5 19 6.4 13.4 12l5.6 5.6-1.4 1.4-5.6-5.6L6.4 19 5 17.6l5.6-5.6L5 6.4z",
  add: "M11 5h2v6h6v2h-6v6h-2v-6H5v-2h6z",
};

/**
 * Return a picture for a button, which says nothing to screen readers.
 * @param {keyof typeof PATHS} name
 */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", PATHS[name]);
  path.setAttribute("fill-rule", "evenodd");
  svg.append(path);
  return svg;
}

/**
 * Return a button.
 * @param {string} label
 * @param {(event: MouseEvent) => void} press
 * @param {{icon?: keyof typeof PATHS, class?: string, hidden?: boolean, bare?: boolean, title?: string}} [look] bare: the picture alone
 */
export function button(label, press, look = {}) {
  const made = make("button", { type: "button", class: look.class, hidden: look.hidden, title: look.title, click: press });
  dress(made, label, look.icon, look.bare ?? false);
  return made;
}

/**
 * Give a button its picture and its words.
 * @param {HTMLButtonElement} element
 * @param {string} label
 * @param {keyof typeof PATHS} [picture]
 * @param {boolean} [bare]
 */
export function dress(element, label, picture, bare = false) {
  element.replaceChildren(...(picture ? [icon(picture)] : []), ...(bare ? [] : [label]));
  if (!bare) return;
  element.setAttribute("aria-label", label);
  element.title = label;
}

/**
 * Change the text of an element, if it is another one.
 * @param {Element} element
 * @param {string} text
 */
export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** @type {HTMLElement | null} */
let voice = null;

/** Return the region in which screen readers hear `announce`. */
export function voiceRegion() {
  voice = make("div", { class: "unseen", role: "status", "aria-live": "polite" });
  return voice;
}

/**
 * Say something to whoever listens to a screen reader.
 * @param {string} text
 */
export function announce(text) {
  if (voice) voice.textContent = text;
}

/**
 * Return seconds as minutes, seconds and tenths.
 * @param {number} seconds
 */
export function clock(seconds) {
  const tenths = Math.max(0, Math.floor(seconds * 10 + 1e-6));
  return `${Math.floor(tenths / 600)}:${String(Math.floor(tenths / 10) % 60).padStart(2, "0")}.${tenths % 10}`;
}

/**
 * Have the browser save a file.
 * @param {Blob} blob
 * @param {string} name
 */
export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // the download has begun by then
}

/**
 * Return a name for a file that is made of a text.
 * @param {string} text
 */
export function fileName(text) {
  const plain = text.normalize("NFKD").replace(/\p{M}/gu, "").replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "");
  return plain.slice(0, 48).toLowerCase() || "music";
}

/** Return a seed that nobody chose. */
export function randomSeed() {
  return Number(crypto.getRandomValues(new Uint32Array(1))[0]);
}

/** Return whether a person wants little to move. */
export function calm() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}

/**
 * Wait. Rejects when the signal says so.
 * @param {number} seconds
 * @param {AbortSignal} [signal]
 * @returns {Promise<void>}
 */
export function rest(seconds, signal) {
  return new Promise((done, fail) => {
    const stop = () => {
      clearTimeout(timer);
      fail(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      done();
    }, seconds * 1000);
    if (signal?.aborted) stop();
    else signal?.addEventListener("abort", stop, { once: true });
  });
}
