/** Attention: the field of all heads, one of them large as a matrix or as arcs, and one cell down to its numbers. */

import { h, put } from "../dom.js";
import { dialOn } from "../edits.js";
import { Tiles } from "../tiles.js";
import { segmented } from "../ui.js";
import { mount as mountArcs } from "./arcs.js";
import { mount as mountCell } from "./cell.js";
import { mount as mountCorpus } from "./corpus.js";
import { mount as mountHeads } from "./heads.js";
import { SMALL, mount as mountMatrix } from "./matrix.js";
import { mount as mountReasons } from "./reasons.js";
import { say } from "../words.js";

/** @typedef {import("../store.js").Store} Store */

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const field = h("div", {});
  const label = h("h3", { "aria-live": "polite" });
  const mode = segmented(say("attention.how"), [["matrix", say("attention.matrix")], ["arcs", say("attention.arcs")]], () => state.get("mode"), (name) => state.set({ mode: name }));
  const average = h("button", { type: "button", class: "small", "data-average": "", onclick: () => state.set({ head: state.get("head") === null ? 0 : null, query: null, key: null }) }, say("attention.average"));
  const button = (/** @type {string} */ name, /** @type {string} */ text, /** @type {() => void} */ act) => h("button", { type: "button", "aria-label": name, onclick: act }, text);
  const zoom = h("div", { class: "segmented zoom", role: "group", "aria-label": say("attention.zoom") },
    button(say("attention.out"), "−", () => matrix.rezoom(false)), button(say("attention.in"), "+", () => matrix.rezoom(true)), button(say("attention.whole.say"), say("attention.whole"), () => matrix.whole()));
  const turn = h("div", { class: "row small" });
  /** @type {() => void} */
  let turned = () => {};
  /** The head's dial. */
  function turning() {
    const head = state.get("head");
    if (!source.live || head === null) return put(turn);
    const { input, reflect } = dialOn(state, { kind: "scale", part: "head", layer: state.get("layer"), unit: head, position: null }, { kind: "ablate_head", layer: state.get("layer"), head, position: null });
    put(turn, h("label", { class: "row small" }, say("attention.turn"), input, say("attention.range")));
    turned = reflect;
  }
  state.on(["layer", "head", "model"], turning);
  state.on(["edits"], () => turned());
  turning();
  const stage = h("div", { class: "stage" });
  const cell = h("div", { class: "cell" });
  const opened = h("div", { class: "opened" }, h("div", { class: "row spread" }, label, h("div", { class: "row" }, zoom, mode.element, average)), turn, stage, cell);
  element.append(h("div", { class: "attention" }, field, opened));
  mountHeads(field, source, state);

  const reading = h("p", { class: "small num", role: "status" });
  const tell = (/** @type {string} */ text) => { reading.textContent = text; };
  const tiles = new Tiles(source, () => ({ text: state.get("text"), model: state.get("model"), edits: state.get("edits"), layer: state.get("layer"), head: state.get("head") }),
    () => (state.get("mode") === "arcs" ? drawArcs() : matrix.soon()), tell);
  const matrix = mountMatrix(stage, tiles, state, tell, open);
  const arcs = h("div", { class: "arcs" });
  stage.append(arcs, reading);
  const drawArcs = mountArcs(arcs, tiles, state);

  /** Bring the cell's numbers into sight; they grow when they come. */
  function open() {
    const behavior = matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth";
    const watcher = new ResizeObserver(() => cell.scrollIntoView({ block: "nearest", behavior }));
    watcher.observe(cell);
    setTimeout(() => watcher.disconnect(), 1500);
  }
  function show() {
    const on = state.get("mode") === "arcs";
    matrix.scroller.hidden = on;
    arcs.hidden = !on;
    zoom.hidden = on;
    mode.reflect();
    cell.hidden = on;
    // Where a window is wide, the matrix of a short text leaves room beside it for the cell.
    opened.classList.toggle("aside", !on && state.get("count") <= SMALL);
    // What the pointer said of the matrix is not said of the arcs.
    if (on) tell("");
    if (on) drawArcs();
    else matrix.soon();
  }
  /** @param {Set<string>} [changed] */
  function reset(changed) {
    tiles.forget();
    tell("");
    label.textContent = say("attention.at", { a: state.get("layer"), b: state.get("head") === null ? say("attention.mean") : say("attention.head", { a: state.get("head") }) });
    average.setAttribute("aria-pressed", String(state.get("head") === null));
    matrix.reset(!changed || ["tokens", "count", "model"].some((field) => changed.has(field)));
    show();
  }
  state.on(["tokens", "count", "model", "layer", "head", "edits"], reset);
  state.on(["mode", "position"], show);
  const recolour = () => { matrix.recolour(); show(); };
  state.on(["theme", "large"], recolour);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
  mountCell(cell, source, state);
  mountReasons(cell, source, state);
  if (source.live && !source.embedded) mountCorpus(opened, source, state);
  reset();
}
