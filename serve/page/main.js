// @ts-check
/**
 * Puts the page together: views, volume, the field for a key, what a link or a reload left, and keys of the keyboard.
 */

import { models, onKeyWanted } from "./api.js";
import { Deck } from "./deck.js";
import { make, voiceRegion } from "./dom.js";
import { messageOf } from "./errors.js";
import { keyField } from "./keyfield.js";
import { readLink } from "./link.js";
import { Making } from "./make.js";
import { Playing } from "./play.js";
import { Outputs } from "./player.js";
import { Shelf } from "./shelf.js";
import { words } from "./strings.js";
import { Tabs } from "./tabs.js";

const VOLUME = "musiclm-volume";
const TAB = "musiclm-tab";

const outputs = new Outputs();
const asks = keyField();
onKeyWanted(asks.ask);
const notice = make("p", { class: "notice", role: "alert", hidden: true });
document.title = words.title;
const header = make("header", {}, make("h1", {}, words.title));
const main = make("main", {}, asks.element, notice);
document.body.append(voiceRegion(), header, main);

/** @param {string} text */
function tell(text) {
  notice.textContent = text;
  notice.hidden = !text;
}

/** Ask for the models until there is an answer, then show the page. */
async function begin() {
  for (;;) {
    try {
      const found = await models();
      tell("");
      show(found);
      return;
    } catch (error) {
      tell(messageOf(error));
      await new Promise((done) => setTimeout(done, 2000));
    }
  }
}

/** @param {import("./types.js").Model[]} found at least one */
function show(found) {
  const rate = found[0]?.sample_rate ?? 24_000;
  const deck = new Deck(outputs);
  deck.prepare(rate);
  const making = new Making(deck, rate);
  const playing = new Playing(outputs, rate);
  const shelf = new Shelf(deck);
  making.form.models = found;
  deck.onplay = () => playing.pause();
  playing.onplay = () => deck.pause();
  making.elsewhere = () => playing.on;
  making.onclip = (clip, samples) => shelf.add(clip, samples);
  const tabs = new Tabs([
    { id: "make", name: words.tabs.make, element: making.element },
    { id: "play", name: words.tabs.play, element: playing.element },
    { id: "history", name: words.tabs.history, element: shelf.element },
  ]);
  tabs.onchange = (id) => {
    deck.element.hidden = id === "play";
    sessionStorage.setItem(TAB, id);
  };
  shelf.onprime = (clip, sound, seconds) => {
    making.form.fill({ ...clip.settings, seconds, candidates: 1 });
    making.form.prime = sound;
    tabs.show("make");
    making.form.go.focus();
  };
  shelf.onvary = (clip) => {
    making.form.fill(clip.settings);
    tabs.show("make");
    making.form.prompt.select();
    making.form.prompt.focus();
  };
  header.append(tabs.list, volume());
  main.append(deck.element, ...tabs.panels);
  document.body.append(make("footer", {}, words.footer));
  shelf.refresh();
  keyboard(() => (tabs.current === "play" ? playing.toggle() : deck.toggle()), (seconds) => tabs.current === "play" || deck.skip(seconds));
  tabs.show(readLink(location.hash) ? "make" : sessionStorage.getItem(TAB) ?? "make");
  if (!making.resume()) follow(making, found);
  addEventListener("hashchange", () => follow(making, found));
  document.documentElement.dataset.ready = "true";
}

/**
 * Fill the form from a link.
 * @param {Making} making
 * @param {import("./types.js").Model[]} found
 */
function follow(making, found) {
  const link = readLink(location.hash);
  if (!link) return;
  making.form.fill(link.settings);
  const model = found.find((one) => one.id === link.settings.model) ?? found[0];
  tell(link.bundle && model?.bundle_sha256 !== link.bundle ? words.link.other : "");
  making.deck.say(words.link.here);
}

function volume() {
  const slider = make("input", { id: "volume", type: "range", min: 0, max: 1, step: 0.01, value: localStorage.getItem(VOLUME) ?? 0.9 });
  const set = () => {
    outputs.volume = slider.valueAsNumber;
    localStorage.setItem(VOLUME, slider.value);
  };
  slider.addEventListener("input", set);
  set();
  return make("div", { class: "volume" }, make("label", { for: "volume" }, words.volume), slider);
}

/**
 * Listen for keys where nobody writes: space plays and pauses, arrows move in the clip.
 * @param {() => void} toggle
 * @param {(seconds: number) => void} skip
 */
function keyboard(toggle, skip) {
  addEventListener("keydown", (event) => {
    const target = /** @type {HTMLElement} */ (event.target);
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (target.closest("input, textarea, select, button, a, [role=tab]")) return;
    if (event.key === " ") toggle();
    else if (event.key === "ArrowLeft") skip(-1);
    else if (event.key === "ArrowRight") skip(1);
    else return;
    event.preventDefault();
  });
}

if (window.isSecureContext) begin();
else tell(words.insecure);
