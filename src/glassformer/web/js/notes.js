/** Notes pinned to views: written where something is seen, the way back to it, and how long the browser keeps them. */

import { h, put } from "./dom.js";
import { inQuotes, say } from "./words.js";

/** @typedef {import("./store.js").Store} Store */

/** What of the state a note belongs to. */
const PLACE = ["text", "model", "tab", "layer", "head", "query", "key", "position", "scene", "zoom", "token", "against", "edits"];

/** Where one is now. @param {Store} state */
export const here = (state) => Object.fromEntries(PLACE.map((key) => [key, state.get(key) ?? null]));

/** Whether a note's view is the one that is seen: same text, model, room and part. @param {any} at @param {any} now */
export const same = (at, now) => ["text", "model", "tab", "layer", "head", "query", "key"].every((key) => (at[key] ?? null) === (now[key] ?? null));

/** @param {any} at */
const placeName = (at) => [say(`room.${at.tab}`), at.tab === "attention" ? say(at.head === null ? "zoom.layer" : "at.head", at) : "", inQuotes(at.text.length > 30 ? `${at.text.slice(0, 29)}…` : at.text)].filter(Boolean).join(" · ");

/** @param {Store} state @returns {{button: HTMLElement, list: HTMLElement}} */
export function notes(state) {
  const list = h("section", { class: "notes", "aria-label": say("notes.title"), hidden: true });
  const button = h("button", { type: "button", class: "small", title: say("notes.pin"), onclick: () => {
    state.set({ notes: [...(state.get("notes") ?? []), { at: here(state), says: "" }] });
    /** @type {any} */ (list.querySelector("textarea:last-of-type"))?.focus();
    const all = list.querySelectorAll("textarea");
    if (all.length) all[all.length - 1].focus();
  } }, say("notes.note"));
  const change = (/** @type {number} */ i, /** @type {string|null} */ says) => state.set({ notes: says === null ? state.get("notes").filter((/** @type {any} */ _, /** @type {number} */ j) => j !== i) : state.get("notes").map((/** @type {any} */ n, /** @type {number} */ j) => (j === i ? { ...n, says } : n)) });
  let known = "";
  const draw = () => {
    const all = state.get("notes") ?? [];
    const now = here(state);
    const key = JSON.stringify([state.get("kept"), all.map((/** @type {any} */ n) => [n.at, same(n.at, now)])]);
    list.hidden = !all.length;
    if (key === known) return; // typing in one does not draw it anew
    known = key;
    put(list, all.map((/** @type {any} */ note, /** @type {number} */ i) => {
      const mine = same(note.at, now);
      return h("div", { class: mine ? "note mine" : "note" },
        mine ? h("textarea", { class: "boxed", rows: "2", "aria-label": say("notes.on", { place: placeName(note.at) }), value: note.says, oninput: (/** @type {any} */ event) => change(i, event.target.value) })
          : h("button", { type: "button", class: "note-open", onclick: () => state.set(note.at) }, note.says || say("notes.empty"), h("span", { class: "soft small" }, placeName(note.at))),
        h("button", { type: "button", class: "bare", "aria-label": say("notes.remove"), onclick: () => change(i, null) }, "✕"));
    }), h("p", { class: "soft small" }, say(state.get("kept") ? "notes.kept" : "notes.lost")));
  };
  state.on(["notes", "kept", ...PLACE], draw);
  draw();
  return { button, list };
}
