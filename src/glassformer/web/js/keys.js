/** The keyboard: one table of keys, which the help shows and the listener obeys. */

import { h } from "./dom.js";
import { said } from "./words.js";

/** @param {import("./store.js").Store} state @param {string[]} rooms @returns {HTMLDialogElement} */
export function keys(state, rooms) {
  const table = [
    ["/", "keys.write", () => document.getElementById("composer")?.focus()],
    [`1–${rooms.length}`, "keys.room", null],
    ["[ ]", "keys.layer", null],
    ["{ }", "keys.head", null],
    [", .", "keys.token", null],
    ["g", "keys.on", () => /** @type {any} */ (document.getElementById("write-on"))?.click()],
    ["f", "keys.find", () => /** @type {any} */ (document.getElementById("find"))?.click()],
    ["l", "keys.large", () => state.set({ large: !state.get("large") })],
    ["t", "keys.tour", () => /** @type {any} */ (document.getElementById("take-tour"))?.click()],
    ["c", "keys.chips", () => state.set({ chips: state.get("chips") === "words" ? "tokens" : "words" })],
    ["s", "keys.sort", () => state.set({ sort: state.get("sort") === "role" ? "layer" : "role" })],
    ["m", "keys.mode", () => state.set({ mode: state.get("mode") === "matrix" ? "arcs" : "matrix" })],
    ["w", "keys.unit", () => state.set({ unit: state.get("unit") === "words" ? "tokens" : "words" })],
    ["u", "keys.edit", () => state.set({ edits: state.get("edits").slice(0, -1) })],
    ["z", "keys.undo", () => state.undo()],
    ["Z", "keys.redo", () => state.redo()],
    ["Tab", "keys.tab", null],
    ["?", "keys.keys", () => dialog.showModal()],
  ];
  const dialog = h("dialog", { "aria-label": said("keys.title") }, h("h2", {}, said("keys.title")),
    h("table", {}, h("tbody", {}, table.map(([key, what]) => h("tr", {}, h("th", { scope: "row" }, h("kbd", {}, key)), h("td", {}, said(String(what))))))),
    h("form", { method: "dialog" }, h("button", {}, said("close"))));
  addEventListener("keydown", (event) => {
    const at = /** @type {HTMLElement} */ (event.target);
    if (event.ctrlKey || event.metaKey || event.altKey || ["TEXTAREA", "INPUT", "SELECT"].includes(at.tagName)) return;
    const clamp = (/** @type {number} */ v, /** @type {number} */ n) => Math.max(0, Math.min(n - 1, v));
    const act = {
      "[": () => state.set({ layer: clamp(state.get("layer") - 1, state.get("layers")), query: null, key: null }),
      "]": () => state.set({ layer: clamp(state.get("layer") + 1, state.get("layers")), query: null, key: null }),
      "{": () => state.set({ head: clamp((state.get("head") ?? 0) - 1, state.get("heads")), query: null, key: null }),
      "}": () => state.set({ head: clamp((state.get("head") ?? 0) + 1, state.get("heads")), query: null, key: null }),
      ",": () => state.set({ position: clamp((state.get("position") ?? state.get("count") - 1) - 1, state.get("count")) }),
      ".": () => state.set({ position: clamp((state.get("position") ?? state.get("count") - 1) + 1, state.get("count")) }),
    }[event.key] ?? table.find(([key]) => key === event.key)?.[2] ?? (rooms[Number(event.key) - 1] ? () => state.set({ tab: rooms[Number(event.key) - 1] }) : null);
    if (typeof act !== "function") return;
    event.preventDefault();
    act();
  });
  return dialog;
}
