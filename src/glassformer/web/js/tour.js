/** The guided tour: a short walk through the machine in which every step moves the real widgets. */

import { h } from "./dom.js";

/** @typedef {import("./store.js").Store} Store */
/** @typedef {{name: string, say: string, look: string, set?: Record<string, any>, live?: boolean}} Stop */

const TEXT = "The American shrew mole is a small";
const FRESH = { position: null, edits: [], query: null, key: null, token: null, against: null };

/** @type {Stop[]} */
export const STOPS = [
  { name: "Words", look: ".panel.words", set: { tab: "attention", text: TEXT, chips: "tokens", ...FRESH },
    say: "The model reads no letters. Your text is cut into tokens, pieces that were frequent in what it learned from. Each is a number in a list; hover one to see its number and its bytes." },
  { name: "Vectors", look: "#room-meaning", set: { tab: "meaning", word: "mole", contexts: ["The American shrew mole", "One mole of carbon dioxide", "Take a biopsy of the mole"] },
    say: "Each token stands for a long row of numbers, a vector. “mole” begins as the same vector in all three texts: the lines start at cosine 1. As they run to the right, layer by layer, the animal, the amount and the skin part." },
  { name: "Attention", look: ".opened", set: { tab: "attention", text: TEXT, mode: "matrix", layer: 1, head: 2, ...FRESH },
    say: "What makes them part is attention. Each row is one token, and its shades say how much it takes from each token before it; a row sums to 1. Later tokens are out of sight, so the upper half is empty." },
  { name: "One cell", look: ".cell", set: { tab: "attention", mode: "matrix", layer: 1, head: 2, query: 3, key: 2 },
    say: "A cell opened: the query of one token times the key of another, scaled, turned into a share by softmax, multiplied with a value, and handed on. Every number here was computed just now." },
  { name: "Many heads", look: ".field", set: { tab: "attention", sort: "role", query: null, key: null },
    say: "There are many such patterns side by side, each a head with its own way of looking. Some always take the token before, some rest on the first token, some find what followed last time. They are sorted here by what they measurably do." },
  { name: "Feed-forward", look: ".neurons", set: { tab: "why", sort: "layer", position: null },
    say: "After the heads have gathered, feed-forward layers work on each token alone. Their neurons each recognise something and add something. Here are those that pushed this prediction most, and which tokens each raises." },
  { name: "Layers", look: "#room-depth table, #room-depth .scroll-x", set: { tab: "depth" },
    say: "Layer upon layer adds to the stream. Read out after each half-step, as if it were the last, it says this table: nonsense below, and the answer taking shape on the way up. The stronger its colour, the surer it is." },
  { name: "Next word", look: ".panel.left", set: { unit: "tokens", temperature: 0.7 },
    say: "At the top, the last vector becomes a score for every token there is, and the scores become probabilities. Temperature sharpens or flattens them; top-k, top-p and min-p cut the tail. Move a slider: nothing is computed anew." },
  { name: "Why", look: ".why", set: { tab: "why", temperature: 1 },
    say: "Why this word? The score is a sum, and here are its parts, with a receipt: what each claims, and what changes when it is truly taken away. Click one to switch it off and see the prediction without it." },
  { name: "Training", look: "#room-learning", set: { tab: "learning" },
    say: "Nobody wrote these weights. They were learned by guessing the next token and moving each weight a little, over and over. A run of your own appears here while it learns; below, take one such step on the sentence above." },
  { name: "Size", look: "#room-size", set: { tab: "size" },
    say: "And this is all of it: where the parameters are, in this model and in GPT-3. The big one is the same machine, made wider and deeper. That ends the walk; the text is yours." },
];

/** @param {Store} state @returns {{start: () => void, card: HTMLElement}} */
export function tour(state) {
  const title = h("h2", { id: "tour-title" });
  const say = h("p", {});
  const count = h("span", { class: "soft small num" });
  const back = h("button", { type: "button", onclick: () => go(at - 1) }, "Back");
  const next = h("button", { type: "button", class: "primary", onclick: () => (at + 1 < STOPS.length ? go(at + 1) : end()) }, "Next");
  const card = h("aside", { class: "tour", role: "region", "aria-labelledby": "tour-title", hidden: true, tabindex: "-1" },
    h("div", { class: "row spread" }, title, count), h("div", { "aria-live": "polite" }, say),
    h("div", { class: "row spread" }, h("button", { type: "button", onclick: end }, "End"), h("div", { class: "row" }, back, next)));
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
    title.textContent = stop.name;
    say.textContent = stop.say;
    count.textContent = `${at + 1} of ${STOPS.length}`;
    back.disabled = at === 0;
    next.textContent = at + 1 < STOPS.length ? "Next" : "Done";
    card.dataset.step = String(at);
    light(stop.look);
  }
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

