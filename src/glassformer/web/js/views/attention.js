/** Attention: every head as a thumbnail, one opened large as a matrix or as arcs, and one cell down to its numbers. */

import { h, hint, number, percent, put, shown } from "../dom.js";
import { pixels } from "../colour.js";
import { live } from "../live.js";
import { unpack } from "../source.js";
import { mount as mountCell } from "./cell.js";

/** @typedef {import("../store.js").Store} Store */

const TILE = 256;

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const field = h("div", { class: "field", role: "grid", "aria-label": "Heads: a row for each layer" });
  const label = h("h3", { "aria-live": "polite" });
  const mode = h("div", { class: "row" });
  const stage = h("div", { class: "stage" });
  const cell = h("div", { class: "cell" });
  element.append(
    h("div", { class: "attention" },
      h("div", {}, h("h3", {}, "All heads"), field, h("p", { class: "soft small" }, "Each square is one head's pattern: rows look, columns are looked at. A dot marks a head that mostly looks at the first token (●), the previous one (◐) or itself (○).")),
      h("div", {}, h("div", { class: "row spread" }, label, mode), stage, cell)),
  );
  for (const [name, text] of [["matrix", "Matrix"], ["arcs", "Arcs"]]) {
    mode.append(h("button", { type: "button", "data-mode": name, onclick: () => state.set({ mode: name }) }, text));
  }
  mode.append(h("button", { type: "button", "data-average": "", onclick: () => state.set({ head: state.get("head") === null ? 0 : null }) }, "Average of heads"));

  live(field, state, ["text", "model", "edits"], async (signal) => {
    if (!state.get("text")) return null;
    return source.get("thumbnails", { text: state.get("text"), model: state.get("model"), edits: state.get("edits") }, { signal });
  }, drawField);

  /** @param {any} data */
  function drawField(data) {
    const { data: grey } = unpack(data.data);
    const size = data.size;
    const table = pixels();
    field.style.setProperty("--heads", String(data.heads));
    const cells = [];
    for (let layer = 0; layer < data.layers; layer++) {
      const row = h("div", { role: "row", class: "field-row" }, h("span", { class: "soft small num", role: "rowheader" }, layer));
      for (let head = 0; head < data.heads; head++) {
        const canvas = h("canvas", { width: size, height: size });
        const context = canvas.getContext("2d");
        const image = context.createImageData(size, size);
        const out = new Uint32Array(image.data.buffer);
        const start = (layer * data.heads + head) * size * size;
        for (let i = 0; i < size * size; i++) out[i] = table[grey[start + i]];
        context.putImageData(image, 0, 0);
        const role = data.roles[layer][head];
        const button = h("button", {
          type: "button", role: "gridcell", class: "thumb", "data-layer": layer, "data-head": head,
          "aria-label": `Layer ${layer}, head ${head}${role ? `, mostly the ${role} token` : ""}`,
          onclick: () => state.set({ layer, head, query: null, key: null }),
        }, canvas, role ? h("span", { class: "role" }, { first: "●", previous: "◐", self: "○" }[/** @type {"first"} */ (role)] ?? "") : null);
        hint(button, () => `layer ${layer}, head ${head}${role ? `\nmore than half of its attention: ${role} token` : ""}`);
        row.append(button);
      }
      cells.push(row);
    }
    put(field, cells);
    mark();
  }

  function mark() {
    for (const thumb of /** @type {any} */ (field.querySelectorAll(".thumb"))) {
      const here = Number(thumb.dataset.layer) === state.get("layer") && Number(thumb.dataset.head) === state.get("head");
      thumb.setAttribute("aria-selected", String(here));
      thumb.tabIndex = here ? 0 : -1;
    }
    label.textContent = `Layer ${state.get("layer")}, ${state.get("head") === null ? "average of its heads" : `head ${state.get("head")}`}`;
    for (const button of /** @type {any} */ (mode.children)) {
      button.setAttribute("aria-pressed", String(button.dataset.mode ? button.dataset.mode === state.get("mode") : state.get("head") === null));
    }
  }
  field.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!step || !state.get("layers")) return;
    event.preventDefault();
    const layer = Math.max(0, Math.min(state.get("layers") - 1, state.get("layer") + step[0]));
    const head = Math.max(0, Math.min(state.get("heads") - 1, (state.get("head") ?? 0) + step[1]));
    state.set({ layer, head, query: null, key: null });
    /** @type {any} */ (field.querySelector(`[data-layer="${layer}"][data-head="${head}"]`))?.focus();
  });
  state.on(["layer", "head", "mode"], mark);

  // The matrix: a canvas the size of the window onto it; tiles are asked for when they are seen.
  const scroller = h("div", { class: "scroller", tabindex: "0", role: "img", "aria-label": "Attention matrix; arrow keys move the chosen cell" });
  const canvas = h("canvas", {});
  const ground = h("div", { class: "ground" });
  scroller.append(ground, canvas);
  const arcs = h("div", { class: "arcs" });
  const reading = h("p", { class: "small num", role: "status" });
  stage.append(scroller, arcs, reading);
  /** @type {Map<string, {data: Float32Array, q0: number, k0: number, w: number, h: number, stride: number}>} */
  const tiles = new Map();
  const wanted = new Set();
  /** @type {AbortController} */
  let asking = new AbortController();
  let zoom = 16;

  function args() {
    return { text: state.get("text"), model: state.get("model"), edits: state.get("edits"), layer: state.get("layer"), head: state.get("head") };
  }
  function reset() {
    asking.abort();
    asking = new AbortController();
    tiles.clear();
    wanted.clear();
    const n = state.get("count");
    zoom = Math.max(2, Math.min(34, Math.floor((stage.clientWidth || 600) / Math.max(1, n))));
    resize();
    paint();
    mark();
    drawArcs();
  }
  function resize() {
    const n = state.get("count");
    ground.style.setProperty("width", `${n * zoom}px`);
    ground.style.setProperty("height", `${n * zoom}px`);
    scroller.style.setProperty("height", `${Math.min(n * zoom + 4, innerHeight * 0.68)}px`);
  }

  /** @param {number} q0 @param {number} k0 */
  async function fetchTile(q0, k0) {
    const name = `${q0},${k0}`;
    if (tiles.has(name) || wanted.has(name)) return;
    wanted.add(name);
    const { signal } = asking;
    try {
      const found = await source.get("attention", { ...args(), q0, q1: q0 + TILE, k0, k1: k0 + TILE }, { signal });
      if (signal.aborted) return;
      const { data, shape } = unpack(found.tile);
      tiles.set(name, { data: /** @type {Float32Array} */ (data), q0: found.q0, k0: found.k0, w: shape[1], h: shape[0], stride: 1 });
      if (!frame) frame = requestAnimationFrame(paint);
      if (q0 === 0 && k0 === 0) drawArcs();
    } catch (error) {
      if (!signal.aborted) reading.textContent = error instanceof Error ? error.message : String(error);
    } finally {
      wanted.delete(name);
    }
  }

  let frame = 0;
  function paint() {
    frame = 0;
    const n = state.get("count");
    if (!n || state.get("mode") !== "matrix") return;
    const width = Math.min(scroller.clientWidth, n * zoom);
    const height = Math.min(scroller.clientHeight, n * zoom);
    if (width <= 0 || height <= 0) return;
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    const table = pixels();
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    const out = new Uint32Array(image.data.buffer);
    const left = scroller.scrollLeft;
    const top = scroller.scrollTop;
    const blank = table[0];
    out.fill(blank);
    const cut = (/** @type {number} */ v) => Math.floor(v / zoom / TILE) * TILE;
    for (let q0 = cut(top); q0 < n && q0 * zoom < top + height; q0 += TILE) {
      for (let k0 = cut(left); k0 < n && k0 * zoom < left + width; k0 += TILE) {
        if (k0 > q0 + TILE) continue; // later keys are never seen
        const tile = tiles.get(`${q0},${k0}`);
        if (!tile) {
          fetchTile(q0, k0);
          continue;
        }
        const y1 = Math.min(height, (q0 + tile.h) * zoom - top);
        const x1 = Math.min(width, (k0 + tile.w) * zoom - left);
        for (let y = Math.max(0, q0 * zoom - top); y < y1; y++) {
          const row = Math.floor((y + top) / zoom - q0) * tile.w;
          for (let x = Math.max(0, k0 * zoom - left); x < x1; x++) {
            out[y * width + x] = table[Math.min(255, Math.round(255 * tile.data[row + Math.floor((x + left) / zoom - k0)]))];
          }
        }
      }
    }
    context.putImageData(image, 0, 0);
    const q = state.get("query");
    const k = state.get("key");
    if (q !== null && k !== null) {
      context.strokeStyle = "#e07214";
      context.lineWidth = 2;
      context.strokeRect(k * zoom - left, q * zoom - top, zoom, zoom);
    }
  }
  scroller.addEventListener("scroll", () => { if (!frame) frame = requestAnimationFrame(paint); });
  new ResizeObserver(() => { if (!frame) frame = requestAnimationFrame(paint); }).observe(scroller);

  /** @param {number} q @param {number} k @returns {number|null} */
  function weight(q, k) {
    const tile = tiles.get(`${Math.floor(q / TILE) * TILE},${Math.floor(k / TILE) * TILE}`);
    return tile ? tile.data[(q - tile.q0) * tile.w + (k - tile.k0)] : null;
  }
  /** @param {PointerEvent} event */
  function under(event) {
    const box = scroller.getBoundingClientRect();
    const k = Math.floor((event.clientX - box.left + scroller.scrollLeft) / zoom);
    const q = Math.floor((event.clientY - box.top + scroller.scrollTop) / zoom);
    const n = state.get("count");
    return q >= 0 && k >= 0 && q < n && k <= q ? { q, k } : null;
  }
  function say(/** @type {number} */ q, /** @type {number} */ k) {
    const tokens = state.get("tokens");
    const w = weight(q, k);
    reading.textContent = `“${shown(tokens[q] ?? "")}” (${q}) looks at “${shown(tokens[k] ?? "")}” (${k}): ${w === null ? "…" : percent(w, 2)}`;
  }
  scroller.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
    const at = under(event);
    state.set({ hover: at ? at.k : null });
    if (at) say(at.q, at.k);
  });
  scroller.addEventListener("pointerleave", () => state.set({ hover: null }));
  scroller.addEventListener("click", (/** @type {PointerEvent} */ event) => {
    const at = under(event);
    if (at && state.get("head") !== null) state.set({ query: at.q, key: at.k });
  });
  scroller.addEventListener("wheel", (/** @type {WheelEvent} */ event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    rezoom(event.deltaY < 0 ? 1.25 : 0.8);
  }, { passive: false });
  scroller.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "+" || event.key === "-") return rezoom(event.key === "+" ? 1.25 : 0.8);
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!step || state.get("head") === null) return;
    event.preventDefault();
    const q = Math.max(0, Math.min(state.get("count") - 1, (state.get("query") ?? state.get("count") - 1) + step[0]));
    const k = Math.max(0, Math.min(q, (state.get("key") ?? 0) + step[1]));
    state.set({ query: q, key: k });
    say(q, k);
  });
  /** @param {number} by */
  function rezoom(by) {
    const old = zoom;
    zoom = Math.max(1, Math.min(60, by > 1 ? Math.ceil(zoom * by) : Math.floor(zoom * by)));
    const x = (scroller.scrollLeft + scroller.clientWidth / 2) / old;
    const y = (scroller.scrollTop + scroller.clientHeight / 2) / old;
    resize();
    scroller.scrollTo(x * zoom - scroller.clientWidth / 2, y * zoom - scroller.clientHeight / 2);
    paint();
  }

  // Arcs over the text: from one token, to whom it looks (or who looks at it), as underlay of the words themselves.
  function drawArcs() {
    const on = state.get("mode") === "arcs";
    scroller.hidden = on;
    arcs.hidden = !on;
    if (!on) return;
    const tokens = state.get("tokens");
    const n = Math.min(tokens.length, TILE);
    const from = Math.min(state.get("position") ?? n - 1, n - 1);
    if (!tiles.has("0,0")) {
      fetchTile(0, 0);
      return;
    }
    const row = (/** @type {string} */ text, /** @type {(k: number) => number|null} */ w) => h("div", { class: "arc-row" },
      h("h3", {}, text),
      h("div", { class: "chips mono" }, tokens.slice(0, n).map((/** @type {string} */ t, /** @type {number} */ k) => {
        const x = w(k) ?? 0;
        const chip = h("button", { type: "button", class: "chip arc", onclick: () => state.set({ position: k }) }, shown(t));
        chip.style.setProperty("--weight", String(Math.sqrt(x)));
        return hint(chip, () => `${percent(x, 2)}`);
      })));
    put(arcs,
      row(`“${shown(tokens[from])}” looks at`, (k) => (k <= from ? weight(from, k) : 0)),
      row(`“${shown(tokens[from])}” is looked at by`, (k) => (k >= from ? weight(k, from) : 0)),
      tokens.length > n ? h("p", { class: "soft small" }, `The first ${n} tokens are drawn; the matrix has all.`) : null);
  }

  state.on(["tokens", "count", "model", "layer", "head", "edits"], reset);
  state.on(["query", "key"], () => paint());
  state.on(["mode", "position"], () => { resize(); paint(); drawArcs(); });
  state.on(["theme"], () => { paint(); });
  mountCell(cell, source, state);
  reset();
}

export { number };
