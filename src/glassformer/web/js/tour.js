/** The guided tour: a short walk through the machine in which every step moves the real widgets. */

import { h } from "./dom.js";
import { onSpoken, said, say } from "./words.js";

/** @typedef {import("./store.js").Store} Store */
/** @typedef {{id: string, look: string, set?: Record<string, any>, live?: boolean}} Stop */

const TEXT = "The American shrew mole is a small";
const FRESH = { position: null, edits: [], query: null, key: null, token: null, against: null };

/** @type {Stop[]} */
export const STOPS = [
  { id: "words", look: ".panel.words", set: { tab: "attention", text: TEXT, chips: "tokens", ...FRESH } },
  { id: "vectors", look: "#room-meaning", set: { tab: "meaning", word: "mole", contexts: ["The American shrew mole", "One mole of carbon dioxide", "Take a biopsy of the mole"] } },
  { id: "attention", look: ".opened", set: { tab: "attention", text: TEXT, mode: "matrix", layer: 1, head: 2, ...FRESH } },
  { id: "cell", look: ".cell", set: { tab: "attention", mode: "matrix", layer: 1, head: 2, query: 3, key: 2 } },
  { id: "heads", look: ".field", set: { tab: "attention", sort: "role", query: null, key: null } },
  { id: "feed_forward", look: ".neurons", set: { tab: "why", sort: "layer", position: null } },
  { id: "layers", look: "#room-depth table, #room-depth .scroll-x", set: { tab: "depth" } },
  { id: "next", look: ".panel.left", set: { unit: "tokens", temperature: 0.7 } },
  { id: "why", look: ".why", set: { tab: "why", temperature: 1 } },
  { id: "training", look: "#room-learning", set: { tab: "learning" } },
  { id: "size", look: "#room-size", set: { tab: "size" } },
];

/** @param {Store} state @returns {{start: () => void, card: HTMLElement}} */
export function tour(state) {
  const title = h("h2", { id: "tour-title" });
  const text = h("p", {});
  const count = h("span", { class: "soft small num" });
  const back = h("button", { type: "button", onclick: () => go(at - 1) }, said("tour.back"));
  const next = h("button", { type: "button", class: "primary", onclick: () => (at + 1 < STOPS.length ? go(at + 1) : end()) });
  const card = h("aside", { class: "tour", role: "region", "aria-labelledby": "tour-title", hidden: true, tabindex: "-1" },
    h("div", { class: "row spread" }, title, count), h("div", { "aria-live": "polite" }, text),
    h("div", { class: "row spread" }, h("button", { type: "button", onclick: end }, said("tour.end")), h("div", { class: "row" }, back, next)));
  let at = 0;
  /** @type {any} */
  let watcher = null;
  /** @type {ResizeObserver|null} */
  let growing = null;

  /** @param {number} to */
  function go(to) {
    at = Math.max(0, Math.min(STOPS.length - 1, to));
    const stop = STOPS[at];
    unlight();
    /** @type {Record<string, any>} */
    const change = { ...(stop.set ?? {}), tour: at };
    // A small model has fewer layers, heads and tokens than the walk has in mind.
    for (const [field, all] of [["layer", "layers"], ["head", "heads"], ["query", "count"], ["key", "count"]]) {
      if (typeof change[field] === "number" && state.get(all)) change[field] = Math.min(change[field], state.get(all) - 1);
    }
    state.set(change);
    speak();
    back.disabled = at === 0;
    card.dataset.step = String(at);
    light(stop.look);
  }
  function speak() {
    title.textContent = say(`tour.${STOPS[at].id}`);
    text.textContent = say(`tour.${STOPS[at].id}.say`);
    count.textContent = say("tour.of", { n: at + 1, all: STOPS.length });
    next.textContent = say(at + 1 < STOPS.length ? "tour.on" : "tour.done");
  }
  onSpoken(speak);
  /** The part may only be there once its numbers are. @param {string} look */
  function light(look) {
    const found = /** @type {HTMLElement|null} */ (document.querySelector(look));
    clearTimeout(watcher);
    if (!found) {
      watcher = setTimeout(() => light(look), 200);
      return;
    }
    found.classList.add("lit");
    // The card keeps out of the way of what it speaks of.
    const box = found.getBoundingClientRect();
    card.classList.toggle("aside", innerWidth >= 1000 && box.left + box.width / 2 > innerWidth / 2);
    const show = () => found.scrollIntoView({ block: found.offsetHeight > innerHeight * 0.7 ? "start" : "center" });
    show();
    // What stands above it may still be computed, and pushes it out of sight when it comes: it is followed until the visitor scrolls.
    const mine = (growing = new ResizeObserver(show));
    for (const panel of document.querySelectorAll(".panel, [role='tabpanel']")) mine.observe(panel);
    for (const event of ["wheel", "touchmove", "pointerdown"]) addEventListener(event, () => mine.disconnect(), { once: true, passive: true });
  }
  function unlight() {
    clearTimeout(watcher);
    growing?.disconnect();
    for (const element of document.querySelectorAll(".lit")) element.classList.remove("lit");
  }
  function end() {
    unlight();
    card.hidden = true;
    state.set({ tour: null, sort: "layer" });
    /** @type {any} */ (document.getElementById("take-tour"))?.focus();
  }
  card.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const act = { ArrowRight: () => next.click(), ArrowLeft: () => go(at - 1), Escape: end }[event.key];
    if (!act) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  });
  return {
    card,
    start() {
      card.hidden = false;
      go(0);
      card.focus({ preventScroll: true });
    },
  };
}

