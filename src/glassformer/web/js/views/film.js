/** The film of a run: one slider over its frames, and under it what the model was then, all at once. */

import { ramp } from "../colour.js";
import { h, hint, number, percent, put, s, shown } from "../dom.js";
import { live } from "../live.js";
import { unpack } from "../source.js";
import { chart } from "../ui.js";
import { say } from "../words.js";

/** @typedef {import("../store.js").Store} Store */

const SECOND = 420; // milliseconds a frame stands while the film plays

/**
 * @param {HTMLElement} element @param {any} source @param {Store} state
 * @param {() => any} run what is known of the run that is shown: its curves, and the steps of its frames
 * @returns {() => void} called when the run has gone on
 */
export function mount(element, source, state, run) {
  const box = h("div", { class: "film", role: "group", "aria-label": say("film.this") });
  element.append(box);
  /** @type {number|null} */
  let layer = null; // the first that has patterns
  let head = 0;
  /** @type {string|null} */
  let weight = null;
  let at = -1; // the frame; -1 is the newest
  let timer = 0;
  let had = "";
  const asked = live(box, state, ["run", "tab"], async (signal) => {
    const d = run();
    if (!d || d.name !== state.get("run") || !d.film?.length || state.get("tab") !== "learning") {
      had = "";
      put(box);
      return null;
    }
    if (!had.startsWith(`${d.name} `)) [layer, head, weight, at] = [null, 0, null, -1];
    had = `${d.name} ${d.film.length}`;
    return source.get("film", source.live ? { name: d.name, layer, head, weight } : { name: d.name }, { signal });
  }, draw);

  /** @param {any} f */
  function draw(f) {
    const n = f.tokens.length, last = f.frames.length - 1;
    const patterns = f.patterns && unpack(f.patterns), weights = f.weights && unpack(f.weights), dots = f.dots && unpack(f.dots);
    const [rows, columns] = weights ? weights.shape.slice(1) : [0, 0];
    const most = weights ? weights.data.reduce((/** @type {number} */ m, /** @type {number} */ v) => Math.max(m, Math.abs(v)), 1e-9) : 1;
    const reach = dots ? dots.data.reduce((/** @type {number} */ m, /** @type {number} */ v) => Math.max(m, Math.abs(v)), 1e-9) : 1;
    if (at < 0 || at > last) at = last;
    const slider = h("input", { type: "range", id: "film-frame", min: 0, max: last, step: 1, value: at, "aria-label": say("film.frame"), oninput: () => { halt(); go(Number(slider.value)); } });
    const out = h("output", { class: "num" });
    const play = h("button", { type: "button", onclick: () => (timer ? halt() : run_()) }, say("stage.play"));
    const loss = h("div", {});
    const text = h("blockquote", { class: "mono sample" });
    const next = h("p", { class: "small mono" });
    const pattern = h("canvas", { class: "grid-picture", width: n, height: n, role: "img" });
    const matrix = weights && h("canvas", { class: "grid-picture", width: columns, height: rows, role: "img" });
    const cloud = dots && s("svg", { class: "film-dots", viewBox: "-1.08 -1.08 2.16 2.16", role: "img" });
    const marks = dots ? f.dot_tokens.map((/** @type {string} */ token) => s("text", { "text-anchor": "middle" }, shown(token))) : [];
    cloud?.append(...marks);
    const seen = h("p", { class: "small soft" });
    const heads = h("select", { "aria-label": say("film.head"), disabled: !source.live, onchange: () => { [layer, head] = heads.value.split(".").map(Number); asked.refresh(); } },
      f.heads.flatMap((/** @type {number[]} */ [l, count]) => Array.from({ length: count }, (_, i) => h("option", { value: `${l}.${i}`, selected: l === f.layer && i === f.head }, say("at.head", { layer: l, head: i })))));
    const names = h("select", { "aria-label": say("film.matrix"), disabled: !source.live, onchange: () => { weight = names.value; asked.refresh(); } }, f.matrices.map((/** @type {string} */ name) => h("option", { value: name, selected: name === f.weight }, name)));
    let [q, k, r, c] = [n - 1, 0, 0, 0];
    pattern.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => { [q, k] = cell(event, pattern, n, n); });
    hint(pattern, () => (k > q ? say("film.later") : say("film.looks", { query: shown(f.tokens[q]), key: shown(f.tokens[k]), p: percent(value(q, k)) })));
    if (matrix) {
      matrix.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => { [r, c] = cell(event, matrix, rows, columns); });
      hint(matrix, () => say("film.entry", { row: r, column: c, x: number(entry(r, c)) }));
    }
    const value = (/** @type {number} */ i, /** @type {number} */ j) => (patterns ? patterns.data[(at * n + i) * n + j] : 0);
    const entry = (/** @type {number} */ i, /** @type {number} */ j) => (weights ? weights.data[(at * rows + i) * columns + j] : 0);
    const dot = (/** @type {number} */ i) => (dots ? [dots.data[(at * marks.length + i) * 2], dots.data[(at * marks.length + i) * 2 + 1]] : [0, 0]);

    /** @param {number} frame */
    function go(frame) {
      at = frame;
      const one = f.frames[at], d = run();
      slider.value = String(at);
      slider.setAttribute("aria-valuetext", say("at.step", { n: one.step }));
      out.textContent = say("at.step", { n: one.step.toLocaleString() });
      box.dataset.step = String(one.step);
      text.textContent = one.text ?? "";
      next.textContent = say("film.next", { next: one.next.slice(0, 5).map((/** @type {[string, number]} */ [t, p]) => `${shown(t)} ${percent(p, 0)}`).join("  ") });
      const lines = [{ name: say("learn.training"), ...(d?.curves.loss ?? { steps: [], values: [] }), kind: "line-0" }];
      if (d?.curves.held_out) lines.push({ name: say("learn.heldout"), ...d.curves.held_out, kind: "line-1" });
      put(loss, chart(lines, { label: say("film.loss", { name: f.name }), unit: say("unit.nats"), mark: one.step, log: true, width: 520, height: 200 }));
      paint(pattern, n, n, (i, j) => (j > i ? null : [...ramp(Math.sqrt(value(i, j))), 255]));
      pattern.setAttribute("aria-label", say("film.pattern", { layer: f.layer, head: f.head, step: one.step, word: shown(f.tokens[best(value, n)]) }));
      if (matrix) {
        paint(matrix, rows, columns, (i, j) => { const x = entry(i, j); return [...(x >= 0 ? [47, 109, 240] : [224, 114, 20]), Math.round(255 * Math.sqrt(Math.abs(x) / most))]; });
        matrix.setAttribute("aria-label", say("film.weight", { name: f.weight, step: one.step }));
      }
      if (cloud) {
        marks.forEach((/** @type {SVGElement} */ mark, /** @type {number} */ i) => {
          const [x, y] = dot(i);
          mark.setAttribute("x", (x / reach).toFixed(4));
          mark.setAttribute("y", (-y / reach).toFixed(4));
        });
        cloud.setAttribute("aria-label", say("film.dots", { n: marks.length, step: one.step }));
        seen.textContent = say("film.shown", { p: percent(f.dots_shown[at], 0) });
      }
    }
    function run_() {
      if (at === last) go(0);
      play.textContent = say("stage.pause");
      timer = window.setInterval(() => (at < last && box.isConnected ? go(at + 1) : halt()), SECOND);
    }
    function halt() {
      clearInterval(timer);
      timer = 0;
      play.textContent = say("stage.play");
    }
    halt();
    /** @type {any} */ (box).film = { value, entry, dot, frame: () => at };
    put(box, h("h3", {}, say("film.title")),
      h("div", { class: "row film-bar" }, play, slider, out, source.live && f.whole ? h("button", { type: "button", class: "small", onclick: () => state.set({ text: state.get("text").length < f.context ? state.get("text") : f.tokens.join(""), model: `run:${f.name}@${f.frames[at].step}`, edits: [], query: null, key: null, position: null, layer: 0, head: 0 }) }, say("film.inside")) : null),
      h("div", { class: "film-rooms" },
        h("section", {}, h("h3", {}, say("film.wrong")), loss),
        h("section", {}, h("h3", {}, say("facts.writesit")), text, next),
        patterns && h("section", {}, h("h3", {}, say("film.where"), heads), pattern, h("p", { class: "small soft mono" }, f.tokens.map(shown).join("·"))),
        cloud ? h("section", {}, h("h3", {}, say("film.lie")), cloud, seen) : null,
        matrix ? h("section", {}, h("h3", {}, say("film.amatrix"), names), matrix, h("p", { class: "small soft" }, rows < f.shape[0] || columns < f.shape[1] ? say("film.part", { rows, columns, all: f.shape.join(" × "), x: number(most) }) : say("film.whole", { all: f.shape.join(" × "), x: number(most) }))) : null));
    go(at);
  }
  return () => {
    const d = run();
    if (!d?.film || had === `${d.name} ${d.film.length}` || timer) return;
    const wasLast = at < 0 || at === Number(box.querySelector("input")?.getAttribute("max"));
    if (wasLast) at = -1;
    asked.refresh(true);
  };
}

/** The cell under the pointer. @param {PointerEvent} event @param {Element} canvas @param {number} rows @param {number} columns @returns {[number, number]} */
function cell(event, canvas, rows, columns) {
  const box = canvas.getBoundingClientRect();
  const inside = (/** @type {number} */ share, /** @type {number} */ count) => Math.max(0, Math.min(count - 1, Math.floor(share * count)));
  return [inside((event.clientY - box.top) / box.height, rows), inside((event.clientX - box.left) / box.width, columns)];
}

/** @param {(i: number, j: number) => number} value @param {number} n */
function best(value, n) {
  let found = 0;
  for (let j = 1; j < n; j++) if (value(n - 1, j) > value(n - 1, found)) found = j;
  return found;
}

/** @param {any} canvas @param {number} rows @param {number} columns @param {(i: number, j: number) => number[]|null} colour */
function paint(canvas, rows, columns, colour) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) image.data.set(colour(i, j) ?? [0, 0, 0, 0], 4 * (i * columns + j));
  context.putImageData(image, 0, 0);
}
