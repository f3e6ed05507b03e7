/** What the page is looking at: one flat observable state, restored from and written to the address. */

import { SHAPES, isBare } from "./shapes.js";

export class Store {
  /** @param {Record<string, any>} initial */
  constructor(initial) {
    this.values = { ...initial };
    /** @type {Set<{keys: Set<string>|null, call: (changed: Set<string>) => void}>} */
    this.listeners = new Set();
    /** What was shown before, and what was taken back. @type {Record<string, any>[]} */
    this.past = [];
    /** @type {Record<string, any>[]} */
    this.future = [];
    this.moved = 0;
  }

  /** What a link restores. */
  #shown() {
    return Object.fromEntries(Object.keys(SHAPES).map((key) => [key, this.values[key]]));
  }

  undo() {
    const to = this.past.pop();
    if (!to) return;
    this.future.push(this.#shown());
    this.set(to, false);
  }

  redo() {
    const to = this.future.pop();
    if (!to) return;
    this.past.push(this.#shown());
    this.set(to, false);
  }

  /** @param {string} key */
  get(key) {
    return this.values[key];
  }

  /** Set several fields; listeners hear once, only of what changed. @param {Record<string, any>} change @param {boolean} [remembered] whether it can be undone */
  set(change, remembered = true) {
    const changed = new Set();
    const before = this.#shown();
    for (const [key, value] of Object.entries(change)) {
      if (JSON.stringify(this.values[key]) !== JSON.stringify(value)) {
        this.values[key] = value;
        changed.add(key);
      }
    }
    if (!changed.size) return;
    // What follows at once (typing, a slider) is one step back; what the page itself settles is none.
    if (remembered && [...changed].some((key) => key in SHAPES && before[key] !== undefined)) {
      const now = Date.now();
      if (now - this.moved > 800) this.past = [...this.past.slice(-199), before];
      this.moved = now;
      this.future = [];
    }
    for (const { keys, call } of [...this.listeners]) {
      if (!keys || [...changed].some((k) => keys.has(k))) call(changed);
    }
  }

  /** @param {string[]|null} keys @param {(changed: Set<string>) => void} call @returns {() => void} */
  on(keys, call) {
    const entry = { keys: keys ? new Set(keys) : null, call };
    this.listeners.add(entry);
    return () => this.listeners.delete(entry);
  }

  /** Listeners that begin in `work` end together. @param {() => void} work @returns {() => void} ends them */
  together(work) {
    const before = new Set(this.listeners);
    work();
    const mine = [...this.listeners].filter((entry) => !before.has(entry));
    return () => { for (const entry of mine) this.listeners.delete(entry); };
  }

  /** The address fragment that restores this state. */
  fragment() {
    const parts = Object.keys(SHAPES).filter((k) => this.values[k] !== null && this.values[k] !== undefined && this.values[k] !== "")
      .filter((k) => !(Array.isArray(this.values[k]) && this.values[k].length === 0))
      .map((k) => `${k}=${encodeURIComponent(typeof this.values[k] === "string" ? this.values[k] : JSON.stringify(this.values[k]))}`);
    return "#" + parts.join("&");
  }
}

/** Fields from an address fragment; what cannot be read, or is not what the field must be, is left out. @param {string} fragment */
export function fromFragment(fragment) {
  /** @type {Record<string, any>} */
  const found = {};
  for (const part of fragment.replace(/^#/, "").split("&")) {
    const at = part.indexOf("=");
    const key = part.slice(0, at);
    if (at < 0 || !Object.hasOwn(SHAPES, key)) continue;
    try {
      const text = decodeURIComponent(part.slice(at + 1));
      const value = isBare(key) ? text : JSON.parse(text);
      if (SHAPES[key](value)) found[key] = value;
    } catch {
      continue;
    }
  }
  return found;
}
