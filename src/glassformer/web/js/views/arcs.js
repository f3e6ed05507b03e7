/** Arcs over the text: from one token, to whom it looks, and who looks at it, over and under the words themselves. */

import { h, hint, percent, put, s, shown } from "../dom.js";
import { TILE, start } from "../tiles.js";
import { say } from "../words.js";

/** @typedef {import("../store.js").Store} Store */

/** Tokens that are drawn at once, around the one the arcs start from. */
const MOST = TILE;

/** @param {HTMLElement} element @param {import("../tiles.js").Tiles} tiles @param {Store} state @returns {() => void} draws */
export function mount(element, tiles, state) {
  return function draw() {
    const tokens = state.get("tokens");
    const n = tokens.length;
    if (!n) return put(element);
    const from = Math.min(state.get("position") ?? n - 1, n - 1);
    const first = Math.max(0, Math.min(from - MOST / 2, n - MOST));
    const last = Math.min(n, first + MOST);
    // Tiles along the token's row and down its column; each asks when it is not here, and draws again when it is.
    for (let at = start(first); at < last; at += TILE) tiles.at(...(at <= from ? /** @type {[number, number]} */ ([start(from), at]) : /** @type {[number, number]} */ ([at, start(from)])));
    const weight = (/** @type {number} */ k) => (k <= from ? tiles.weight(from, k) : tiles.weight(k, from)) ?? 0;
    const chips = tokens.slice(first, last).map((/** @type {string} */ t, /** @type {number} */ i) => {
      const k = first + i;
      const x = weight(k);
      const chip = h("button", {
        type: "button", class: k === from ? "chip arc from" : "chip arc", "data-at": k, "aria-label": `${shown(t)}: ${k <= from ? say("arcs.is") : say("arcs.back")} ${percent(x, 1)}`,
        onclick: () => state.set({ position: k }), onpointerenter: () => state.set({ hover: k }), onpointerleave: () => state.set({ hover: null }),
      }, shown(t));
      chip.style.setProperty("--weight", String(Math.sqrt(x) * 0.75));
      return hint(chip, () => (k <= from ? say("arcs.here", { a: shown(tokens[from]), b: percent(x, 2) }) : say("arcs.at", { a: shown(tokens[from]), b: percent(x, 2) })));
    });
    const svg = s("svg", { class: "arc-lines", "aria-hidden": "true" });
    const words = h("div", { class: "chips mono arc-words" }, chips);
    put(element, h("p", { class: "small" }, say("arcs.say", { a: shown(tokens[from]) })),
      h("div", { class: "arc-stage" }, svg, words),
      n > MOST ? h("p", { class: "soft small" }, say("arcs.part", { a: first, b: last - 1, c: n })) : null);
    requestAnimationFrame(() => lines(svg, words, from - first, last - first, (i) => weight(first + i)));
  };
}

/** @param {any} svg @param {HTMLElement} words @param {number} from @param {number} n @param {(i: number) => number} weight */
function lines(svg, words, from, n, weight) {
  const box = words.getBoundingClientRect();
  if (!box.width) return;
  put(svg);
  svg.setAttribute("viewBox", `0 0 ${box.width} ${box.height}`);
  svg.style.setProperty("width", `${box.width}px`);
  svg.style.setProperty("height", `${box.height}px`);
  const places = Array.from(words.children, (child) => {
    const b = child.getBoundingClientRect();
    return { x: b.left - box.left + b.width / 2, top: b.top - box.top, bottom: b.bottom - box.top };
  });
  const home = places[from];
  for (let k = 0; k < n; k++) {
    const x = weight(k);
    if (x < 0.01 || k === from) continue;
    const there = places[k];
    const over = k < from;
    const [y0, y1] = over ? [home.top, there.top] : [home.bottom, there.bottom];
    const lift = (over ? -1 : 1) * Math.min(46, 14 + Math.abs(there.x - home.x) * 0.16);
    svg.append(s("path", { class: over ? "arc-line" : "arc-line back", d: `M ${home.x} ${y0} C ${home.x} ${y0 + lift} ${there.x} ${y1 + lift} ${there.x} ${y1}`, "stroke-width": (0.5 + 9 * x).toFixed(2), opacity: Math.min(1, 0.25 + x).toFixed(2) }));
  }
}
