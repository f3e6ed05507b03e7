/** The keyboard: one table of keys, which the help shows and the listener obeys. */

import { h } from "./dom.js";

/** @param {import("./store.js").Store} state @param {string[]} rooms @returns {HTMLDialogElement} */
export function keys(state, rooms) {
  const table = [
    ["/", "write the text", () => document.getElementById("composer")?.focus()],
    [`1–${rooms.length}`, "open a room", null],
    ["[ ]", "layer down, up", null],
    ["{ }", "head down, up", null],
    [", .", "token before, after", null],
    ["g", "write on, or stop", () => /** @type {any} */ (document.getElementById("write-on"))?.click()],
    ["f", "find a part by what it does", () => /** @type {any} */ (document.getElementById("find"))?.click()],
    ["l", "large type", () => state.set({ large: !state.get("large") })],
    ["t", "the tour", () => /** @type {any} */ (document.getElementById("take-tour"))?.click()],
    ["c", "text as tokens or as words", () => state.set({ chips: state.get("chips") === "words" ? "tokens" : "words" })],
    ["s", "heads by layer or by what they do", () => state.set({ sort: state.get("sort") === "role" ? "layer" : "role" })],
    ["m", "matrix or arcs", () => state.set({ mode: state.get("mode") === "matrix" ? "arcs" : "matrix" })],
    ["w", "next: tokens or whole words", () => state.set({ unit: state.get("unit") === "words" ? "tokens" : "words" })],
    ["u", "undo the last switching off", () => state.set({ edits: state.get("edits").slice(0, -1) })],
    ["z", "undo", () => state.undo()],
    ["Z", "redo", () => state.redo()],
    ["Tab", "in the text: accept the grey prediction", null],
    ["?", "this table", () => dialog.showModal()],
  ];
  const dialog = h("dialog", { "aria-label": "Keyboard" }, h("h2", {}, "Keyboard"),
    h("table", {}, h("tbody", {}, table.map(([key, what]) => h("tr", {}, h("th", { scope: "row" }, h("kbd", {}, key)), h("td", {}, what))))),
    h("form", { method: "dialog" }, h("button", {}, "Close")));
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
