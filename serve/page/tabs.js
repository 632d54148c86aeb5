// @ts-check
/**
 * Views of which one is shown: tabs with the keyboard's usual ways.
 */

import { make } from "./dom.js";
import { words } from "./strings.js";

export class Tabs {
  current = "";
  /** @type {(id: string) => void} */
  onchange = () => undefined;

  /** @param {{id: string, name: string, element: HTMLElement}[]} views the first of which is shown */
  constructor(views) {
    this.buttons = views.map(({ id, name }) =>
      make("button", { type: "button", role: "tab", id: `tab-${id}`, "aria-controls": `view-${id}`, click: () => this.show(id) }, name),
    );
    const keydown = (/** @type {KeyboardEvent} */ event) => this.#key(event);
    this.list = make("div", { role: "tablist", "aria-label": words.tabs.label, keydown }, ...this.buttons);
    this.panels = views.map(({ id, element }) =>
      make("div", { role: "tabpanel", id: `view-${id}`, "aria-labelledby": `tab-${id}` }, element),
    );
    this.show(views[0].id);
  }

  /** @param {string} id */
  show(id) {
    this.current = id;
    for (const one of this.buttons) {
      const on = one.id === `tab-${id}`;
      one.setAttribute("aria-selected", String(on));
      one.tabIndex = on ? 0 : -1;
    }
    for (const panel of this.panels) panel.hidden = panel.id !== `view-${id}`;
    this.onchange(id);
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    /** @type {Record<string, number>} */
    const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
    const step = steps[event.key];
    if (step === undefined) return;
    const now = this.buttons.findIndex((one) => one.getAttribute("aria-selected") === "true");
    const count = this.buttons.length;
    const next = Number.isFinite(step) ? (now + step + count) % count : step < 0 ? 0 : count - 1;
    this.buttons[next].click();
    this.buttons[next].focus();
    event.preventDefault();
  }
}
