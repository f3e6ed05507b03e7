/** Experts as heads are shown: every layer's mean weights, one layer's grid of who was chosen where, and what each of them wrote. */

import { pixels } from "../colour.js";
import { h, hint, number, percent, put, shown } from "../dom.js";
import { dialOn } from "../edits.js";
import { live } from "../live.js";
import { unpack } from "../source.js";
import { fork, track, withSign } from "../ui.js";
import { say } from "../words.js";
import { dialOf } from "./turned.js";

/** @typedef {import("../store.js").Store} Store */

/**
 * A table of shades, names beside its rows, with one cell or row marked; a cell is told under the pointer and taken by a click or the arrow keys.
 * @param {string} label @param {(row: number, column: number) => string} tell @param {(row: number, column: number) => void} take
 */
function shades(label, tell, take) {
  const canvas = h("canvas", { tabindex: "0", role: "img", "aria-label": label });
  const names = h("div", { class: "shade-names small", "aria-hidden": "true" });
  const mark = h("div", { class: "shade-mark" });
  const element = h("div", { class: "shades scroll-x" }, names, h("div", { class: "shade-cells" }, canvas, mark));
  const at = { row: 0, column: 0, rows: 0, columns: 0 };
  const place = (/** @type {PointerEvent} */ event) => {
    const box = canvas.getBoundingClientRect();
    const into = (/** @type {number} */ share, /** @type {number} */ count) => Math.max(0, Math.min(count - 1, Math.floor(share * count)));
    return /** @type {[number, number]} */ ([into((event.clientY - box.top) / box.height, at.rows), into((event.clientX - box.left) / box.width, at.columns)]);
  };
  let under = /** @type {[number, number]} */ ([0, 0]);
  canvas.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => { under = place(event); });
  hint(canvas, () => (at.rows ? tell(...under) : label));
  canvas.addEventListener("click", (/** @type {PointerEvent} */ event) => take(...place(event)));
  canvas.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    take(Math.max(0, Math.min(at.rows - 1, at.row + step[0])), Math.max(0, Math.min(at.columns - 1, at.column + step[1])));
  });
  /** @param {ArrayLike<number>} data @param {number} rows @param {number} columns @param {string[]} called */
  function draw(data, rows, columns, called) {
    [at.rows, at.columns] = [rows, columns];
    [canvas.width, canvas.height] = [columns, rows];
    const context = canvas.getContext("2d");
    const image = context.createImageData(columns, rows);
    const out = new Uint32Array(image.data.buffer);
    const table = pixels();
    const most = Array.from(data).reduce((m, v) => Math.max(m, v), 1e-9);
    for (let i = 0; i < rows * columns; i++) out[i] = table[Math.max(0, Math.min(255, Math.round((255 * data[i]) / most)))];
    context.putImageData(image, 0, 0);
    element.style.setProperty("--rows", String(rows));
    element.style.setProperty("--columns", String(columns));
    put(names, called.map((name) => h("span", {}, name)));
  }
  /** @param {number} row @param {number} column */
  function stand(row, column) {
    [at.row, at.column] = [row, column];
    mark.style.setProperty("--row", String(row));
    mark.style.setProperty("--column", String(column));
  }
  return { element, draw, stand };
}

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const body = h("div", {});
  const section = h("section", { class: "experts", "aria-label": say("experts.title") }, h("h2", {}, say("experts.title")), h("p", { class: "soft small" }, say("experts.say")), body);
  element.append(section);
  /** @type {any} */
  let d = null;
  /** @type {any} */
  let weights = null;
  let expert = 0;
  /** The layer that is shown: the page's own, or the next that has experts. */
  const layer = () => {
    const have = state.get("experts");
    return have.find((/** @type {number} */ one) => one >= state.get("layer")) ?? have[have.length - 1];
  };
  const word = (/** @type {number} */ i) => shown(state.get("tokens")[i] ?? "");
  const means = shades(say("experts.means"), (row, column) => say("experts.mean", { layer: d.layers[row].layer, n: column, x: percent(d.layers[row].weights[column]) }), (row, column) => {
    expert = column;
    if (d.layers[row].layer === layer()) draw();
    else state.set({ layer: d.layers[row].layer });
  });
  const grid = shades(say("experts.grid"), (row, column) => say("experts.cell", { word: word(row), n: column, x: number(weights[row * d.n_experts + column]) }), (row, column) => {
    expert = column;
    if (row === d.position) draw();
    else state.set({ position: row === state.get("count") - 1 ? null : row });
  });
  const label = h("h3", { "aria-live": "polite" });
  const list = h("div", { role: "list", "aria-label": say("experts.chosen") });
  const receipt = h("p", { class: "soft small" });
  put(body, h("div", { class: "expert-pictures" }, h("div", {}, h("h3", {}, say("experts.means")), means.element), h("div", {}, h("h3", {}, say("experts.grid")), grid.element)), label, list, receipt);
  const shut = () => { section.hidden = !state.get("experts").length; };
  state.on(["experts"], shut);
  shut();

  live(body, state, ["text", "model", "experts", "layer", "position", "token", "against"], async (signal) => {
    if (!state.get("experts").length) return null;
    return source.get("experts", { text: state.get("text"), model: state.get("model"), edits: [], layer: layer(), position: state.get("position") ?? -1, token: state.get("token"), against: state.get("against") }, { signal });
  }, (found) => {
    d = found;
    weights = unpack(d.tile).data;
    if (!d.experts.some((/** @type {any} */ one) => one.expert === expert)) expert = d.experts[0]?.expert ?? 0;
    draw();
  });
  const again = () => { if (d) draw(); };
  state.on(["theme"], again);
  state.on(["edits"], () => { for (const turn of knobs) turn(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);

  /** @type {(() => void)[]} */
  let knobs = [];
  /** @param {any} edit what switches an expert off */
  function knob(edit) {
    const { input, reflect } = dialOn(state, dialOf(edit), edit);
    knobs.push(reflect);
    return input;
  }
  function draw() {
    knobs = [];
    means.draw(d.layers.flatMap((/** @type {any} */ one) => one.weights), d.layers.length, d.layers[0].weights.length, d.layers.map((/** @type {any} */ one) => String(one.layer)));
    means.stand(d.layers.findIndex((/** @type {any} */ one) => one.layer === d.layer), expert);
    grid.draw(weights, d.q1, d.n_experts, Array.from({ length: d.q1 }, (_, i) => word(i)));
    grid.stand(d.position, expert);
    label.textContent = say("experts.at", { layer: d.layer, word: word(d.position), k: d.experts.length, n: d.n_experts, token: shown(d.token) });
    const heaviest = Math.max(...d.experts.map((/** @type {any} */ one) => Math.abs(one.weight)), 1e-9);
    const most = Math.max(...[...d.experts, d.shared ?? { contribution: 0 }].map((/** @type {any} */ one) => Math.abs(one.contribution)), 1e-9);
    put(list, d.experts.map((/** @type {any} */ one) => {
      return h("div", { role: "listitem", class: one.expert === expert ? "expert-row chosen" : "expert-row", "data-expert": one.expert, "data-weight": one.weight, "data-contribution": one.contribution },
        h("span", { class: "small" }, say("part.expert", { n: one.expert })), track(Math.abs(one.weight) / heaviest), h("span", { class: "num small" }, number(one.weight)), fork(one.contribution / most), h("span", { class: "num small" }, withSign(one.contribution)),
        h("span", { class: "mono small writes" }, `→ ${one.raises.map(shown).join(" ")}`),
        source.live ? knob(one.edit) : null);
    }), d.shared ? h("div", { role: "listitem", class: "expert-row", "data-shared": d.shared.contribution }, h("span", { class: "small" }, say("part.shared")), h("span", {}), h("span", {}), fork(d.shared.contribution / most), h("span", { class: "num small" }, withSign(d.shared.contribution))) : null);
    receipt.textContent = say("experts.receipt", { x: d.apart.toExponential(1) });
  }
}
