/** Attention: every head as a thumbnail, one opened large as a matrix or as arcs, and one cell down to its numbers. */

import { h, hint, percent, put, s, shown } from "../dom.js";
import { inkOn, pixels } from "../colour.js";
import { live } from "../live.js";
import { unpack } from "../source.js";
import { segmented } from "../ui.js";
import { mount as mountCell } from "./cell.js";

/** @typedef {import("../store.js").Store} Store */

const TILE = 256;

/** Signs and words for what heads do. */
const ROLES = {
  induction: ["◆", "repeats what followed last time"], duplicate: ["◇", "finds the same token"], previous: ["◐", "looks at the token before"],
  first: ["●", "rests on the first token"], self: ["○", "looks at itself"],
};

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const field = h("div", { class: "field", role: "grid", "aria-label": "Heads: a row for each layer" });
  const label = h("h3", { "aria-live": "polite" });
  const mode = h("div", { class: "segmented", role: "group", "aria-label": "How to show the head" });
  const stage = h("div", { class: "stage" });
  const cell = h("div", { class: "cell" });
  const order = segmented("Order of the heads", [["layer", "By layer"], ["role", "By what they do"]], () => state.get("sort"), (name) => state.set({ sort: name }));
  element.append(
    h("div", { class: "attention" },
      h("div", {}, h("div", { class: "row spread" }, h("h3", {}, "All heads"), order.element), field, h("p", { class: "soft small", id: "heads-note" }, "Each square is one head's pattern: rows look, columns are looked at.")),
      h("div", { class: "opened" }, h("div", { class: "row spread" }, label, mode), stage, cell)),
  );
  for (const [name, text] of [["matrix", "Matrix"], ["arcs", "Arcs"]]) {
    mode.append(h("button", { type: "button", "data-mode": name, onclick: () => state.set({ mode: name }) }, text));
  }
  mode.append(h("button", { type: "button", "data-average": "", onclick: () => state.set({ head: state.get("head") === null ? 0 : null }) }, "Average of heads"));

  live(field, state, ["text", "model", "edits"], async (signal) => {
    if (!state.get("text")) return null;
    return source.get("thumbnails", { text: state.get("text"), model: state.get("model"), edits: state.get("edits") }, { signal });
  }, drawField);

  /** @type {any} */
  let seen = null;
  /** @type {any} */
  let roles = null;
  /** @type {Map<string, any>} */
  const canvases = new Map();

  /** @param {any} data */
  function drawField(data) {
    seen = data;
    paintThumbs();
    arrange();
  }

  function paintThumbs() {
    const { data: grey } = unpack(seen.data);
    const size = seen.size;
    const table = pixels();
    for (let layer = 0; layer < seen.layers; layer++) {
      for (let head = 0; head < seen.heads; head++) {
        const name = `${layer},${head}`;
        const canvas = canvases.get(name) ?? h("canvas", {});
        canvases.set(name, canvas);
        if (canvas.width !== size) canvas.width = canvas.height = size;
        const context = canvas.getContext("2d");
        const image = context.createImageData(size, size);
        const out = new Uint32Array(image.data.buffer);
        const start = (layer * seen.heads + head) * size * size;
        for (let i = 0; i < size * size; i++) out[i] = table[grey[start + i]];
        context.putImageData(image, 0, 0);
      }
    }
  }

  /** What a head does, and how clearly. @param {number} layer @param {number} head @returns {[string|null, number]} */
  function role(layer, head) {
    if (!roles || roles.names.length !== seen.layers) return [seen.roles[layer][head], 0];
    const name = roles.names[layer][head];
    return [name, name ? roles.scores[name][layer][head] : 0];
  }

  /** @param {number} layer @param {number} head */
  function thumb(layer, head) {
    const [name, score] = role(layer, head);
    const button = h("button", {
      type: "button", role: "gridcell", class: "thumb", "data-layer": layer, "data-head": head,
      "aria-label": `Layer ${layer}, head ${head}${name ? `, ${ROLES[/** @type {"first"} */ (name)]?.[1] ?? name}` : ""}`,
      onclick: () => state.set({ layer, head, query: null, key: null }),
    }, canvases.get(`${layer},${head}`), name ? h("span", { class: "role", "aria-hidden": "true" }, ROLES[/** @type {"first"} */ (name)]?.[0] ?? "") : null);
    return hint(button, () => [`layer ${layer}, head ${head}`, name ? `${ROLES[/** @type {"first"} */ (name)]?.[1] ?? name}${score ? `: ${percent(score)}${roles.null[name] ? `; on shuffled tokens at most ${percent(roles.null[name][layer][head])}` : ""}` : ""}` : ""].filter(Boolean).join("\n"));
  }

  function arrange() {
    if (!seen) return;
    order.reflect();
    field.style.setProperty("--heads", String(seen.heads));
    const rows = [];
    if (state.get("sort") === "role") {
      /** @type {Map<string, [number, number, number][]>} */
      const groups = new Map();
      for (let layer = 0; layer < seen.layers; layer++) {
        for (let head = 0; head < seen.heads; head++) {
          const [name, score] = role(layer, head);
          groups.set(name ?? "", [...(groups.get(name ?? "") ?? []), [layer, head, score]]);
        }
      }
      for (const name of [...Object.keys(ROLES), ""]) {
        const members = groups.get(name);
        if (!members) continue;
        members.sort((a, b) => b[2] - a[2]);
        rows.push(h("div", { role: "row", class: "field-title small" }, h("span", { role: "rowheader" }, `${name ? `${ROLES[/** @type {"first"} */ (name)][0]} ${ROLES[/** @type {"first"} */ (name)][1]}` : "no clear role"} (${members.length})`)));
        for (let i = 0; i < members.length; i += seen.heads) rows.push(h("div", { role: "row", class: "field-row" }, h("span", { "aria-hidden": "true" }), members.slice(i, i + seen.heads).map(([layer, head]) => thumb(layer, head))));
      }
    } else {
      for (let layer = 0; layer < seen.layers; layer++) {
        rows.push(h("div", { role: "row", class: "field-row" }, h("span", { class: "soft small num", role: "rowheader" }, layer), Array.from({ length: seen.heads }, (_, head) => thumb(layer, head))));
      }
    }
    put(field, rows);
    mark();
  }
  const note = /** @type {HTMLElement} */ (element.querySelector("#heads-note"));
  live(note, state, ["model"], async (signal) => source.get("heads", { model: state.get("model") }, { signal }).catch(() => null), (/** @type {any} */ found) => {
    roles = found;
    put(note, "Each square is one head's pattern: rows look, columns are looked at. ", Object.values(ROLES).map(([sign, text]) => `${sign} ${text}`).join(", "), ".");
    arrange();
  });
  state.on(["sort"], arrange);

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
    fit();
    paint();
    mark();
    drawArcs();
  }
  /** Room for the tokens' names on both sides, where a cell is large enough to have one. */
  function margin() {
    if (zoom < 11) return 0;
    const longest = Math.max(1, ...state.get("tokens").slice(0, 400).map((/** @type {string} */ t) => shown(t).length));
    return Math.round(Math.min(longest, 14) * fontSize() * 0.62) + 10;
  }
  const fontSize = () => Math.max(9, Math.min(14, zoom * 0.72)) * (document.documentElement.dataset.large === "true" ? 1.25 : 1);
  function fit() {
    const n = Math.max(1, state.get("count"));
    const wide = (stage.clientWidth || 600) - 4;
    const high = innerHeight * 0.68;
    zoom = 72;
    for (let i = 0; i < 3; i++) zoom = Math.max(2, Math.min(72, Math.floor(Math.min((wide - margin()) / n, n > 24 ? 1e9 : (high - margin()) / n))));
    resize();
  }
  function resize() {
    const n = state.get("count");
    const side = n * zoom + margin();
    ground.style.setProperty("width", `${side}px`);
    ground.style.setProperty("height", `${side}px`);
    scroller.style.setProperty("height", `${Math.min(side + 3, innerHeight * 0.72)}px`);
    scroller.style.setProperty("max-width", `${side + 3}px`);
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
  const small = h("canvas", {});
  function paint() {
    frame = 0;
    const n = state.get("count");
    if (!n || state.get("mode") !== "matrix") return;
    const M = margin();
    const width = Math.min(scroller.clientWidth, n * zoom + M);
    const height = Math.min(scroller.clientHeight, n * zoom + M);
    if (width <= 0 || height <= 0) return;
    const dpr = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * dpr) || canvas.height !== Math.round(height * dpr)) {
      canvas.width = Math.round(width * dpr);
      canvas.height = Math.round(height * dpr);
      canvas.style.setProperty("width", `${width}px`);
      canvas.style.setProperty("height", `${height}px`);
    }
    const left = scroller.scrollLeft;
    const top = scroller.scrollTop;
    const q0 = Math.floor(top / zoom);
    const k0 = Math.floor(left / zoom);
    const q1 = Math.min(n, Math.ceil((top + height - M) / zoom));
    const k1 = Math.min(n, Math.ceil((left + width - M) / zoom));
    const context = canvas.getContext("2d");
    context.setTransform(dpr, 0, 0, dpr, 0, 0);
    context.clearRect(0, 0, width, height);
    // One pixel a cell, then enlarged: the work is by cells that are seen, whatever the zoom.
    const [w, tall] = [k1 - k0, q1 - q0];
    if (w <= 0 || tall <= 0) return;
    small.width = w;
    small.height = tall;
    const table = pixels();
    const tiny = small.getContext("2d");
    const image = tiny.createImageData(w, tall);
    const out = new Uint32Array(image.data.buffer);
    const cut = (/** @type {number} */ v) => Math.floor(v / TILE) * TILE;
    for (let tq = cut(q0); tq < q1; tq += TILE) {
      for (let tk = cut(k0); tk < k1; tk += TILE) {
        if (tk >= tq + TILE) continue; // later keys are never seen
        const tile = tiles.get(`${tq},${tk}`);
        if (!tile) {
          fetchTile(tq, tk);
          continue;
        }
        for (let q = Math.max(q0, tq); q < Math.min(q1, tq + tile.h); q++) {
          const row = (q - tq) * tile.w - tk;
          const to = (q - q0) * w - k0;
          for (let k = Math.max(k0, tk); k < Math.min(k1, tk + tile.w, q + 1); k++) out[to + k] = table[Math.min(255, Math.round(255 * tile.data[row + k]))];
        }
      }
    }
    tiny.putImageData(image, 0, 0);
    context.imageSmoothingEnabled = false;
    const [x0, y0] = [M + k0 * zoom - left, M + q0 * zoom - top];
    context.save();
    context.beginPath();
    context.rect(M, M, width - M, height - M);
    context.clip();
    context.drawImage(small, x0, y0, w * zoom, tall * zoom);
    const ink = getComputedStyle(scroller);
    if (zoom >= 14) {
      context.strokeStyle = ink.backgroundColor;
      context.lineWidth = 1;
      context.beginPath();
      for (let i = 1; i < Math.max(w, tall); i++) {
        if (i < tall) context.rect(x0, y0 + i * zoom, (q0 + i - k0) * zoom, 0);
        if (i < w) context.rect(x0 + i * zoom, y0 + Math.max(0, k0 + i - q0) * zoom, 0, tall * zoom);
      }
      context.stroke();
    }
    if (zoom >= 44) {
      context.font = `${Math.min(14, zoom * 0.24)}px ${ink.fontFamily}`;
      context.textAlign = "center";
      context.textBaseline = "middle";
      for (let q = q0; q < q1; q++) {
        for (let k = k0; k < Math.min(k1, q + 1); k++) {
          const x = weight(q, k);
          if (x === null) continue;
          context.fillStyle = inkOn(Math.sqrt(x));
          context.fillText(percent(x, x < 0.1 ? 1 : 0), M + (k + 0.5) * zoom - left, M + (q + 0.5) * zoom - top);
        }
      }
    }
    const stripe = (/** @type {number|null} */ at, /** @type {boolean} */ row) => {
      if (at === null) return;
      context.strokeStyle = "#e07214";
      context.lineWidth = 1.5;
      if (row) context.strokeRect(M - left, M + at * zoom - top, (at + 1) * zoom, zoom);
      else context.strokeRect(M + at * zoom - left, M + at * zoom - top, zoom, (n - at) * zoom);
    };
    stripe(state.get("hoverQuery") ?? state.get("hover"), true);
    stripe(state.get("hover"), false);
    const q = state.get("query");
    const k = state.get("key");
    if (q !== null && k !== null) {
      context.strokeStyle = "#e07214";
      context.lineWidth = 3;
      context.strokeRect(M + k * zoom - left, M + q * zoom - top, zoom, zoom);
    }
    context.restore();
    if (M) names(context, ink, M, q0, q1, k0, k1, left, top);
  }

  /** The tokens beside the rows and over the columns. @param {any} context @param {any} ink @param {number} M @param {number} q0 @param {number} q1 @param {number} k0 @param {number} k1 @param {number} left @param {number} top */
  function names(context, ink, M, q0, q1, k0, k1, left, top) {
    const tokens = state.get("tokens");
    context.font = `${fontSize()}px ${ink.fontFamily}`;
    context.textBaseline = "middle";
    const clip = (/** @type {string} */ t) => { const text = shown(t); return text.length > 14 ? `${text.slice(0, 13)}…` : text; };
    const hot = (/** @type {number} */ i, /** @type {string} */ which) => state.get(which) === i || (which === "hoverQuery" && state.get("hoverQuery") === null && state.get("hover") === i);
    context.textAlign = "right";
    for (let q = q0; q < q1; q++) {
      const y = M + (q + 0.5) * zoom - top;
      if (y < M + 4) continue;
      context.fillStyle = hot(q, "hoverQuery") ? ink.caretColor : ink.color;
      context.fillText(clip(tokens[q] ?? ""), M - 6, y);
    }
    context.textAlign = "left";
    for (let k = k0; k < k1; k++) {
      const x = M + (k + 0.5) * zoom - left;
      if (x < M + 4) continue;
      context.save();
      context.translate(x, M - 6);
      context.rotate(-Math.PI / 2);
      context.fillStyle = hot(k, "hover") ? ink.caretColor : ink.color;
      context.fillText(clip(tokens[k] ?? ""), 0, 0);
      context.restore();
    }
  }
  scroller.addEventListener("scroll", () => { if (!frame) frame = requestAnimationFrame(paint); });
  let width = 0;
  new ResizeObserver(() => {
    if (stage.clientWidth && Math.abs(stage.clientWidth - width) > 8) {
      width = stage.clientWidth;
      fit();
      if (!frame) frame = requestAnimationFrame(paint);
    }
  }).observe(stage);

  /** @param {number} q @param {number} k @returns {number|null} */
  function weight(q, k) {
    const tile = tiles.get(`${Math.floor(q / TILE) * TILE},${Math.floor(k / TILE) * TILE}`);
    return tile ? tile.data[(q - tile.q0) * tile.w + (k - tile.k0)] : null;
  }
  /** @param {PointerEvent} event */
  function under(event) {
    const box = scroller.getBoundingClientRect();
    const M = margin();
    const k = Math.floor((event.clientX - box.left - 1 - M + scroller.scrollLeft) / zoom);
    const q = Math.floor((event.clientY - box.top - 1 - M + scroller.scrollTop) / zoom);
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
    state.set({ hover: at ? at.k : null, hoverQuery: at ? at.q : null });
    if (at) say(at.q, at.k);
  });
  scroller.addEventListener("pointerleave", () => state.set({ hover: null, hoverQuery: null }));
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
    if (!n) return;
    const from = Math.min(state.get("position") ?? n - 1, n - 1);
    if (!tiles.has("0,0")) {
      fetchTile(0, 0);
      return;
    }
    const chips = tokens.slice(0, n).map((/** @type {string} */ t, /** @type {number} */ k) => {
      const x = (k <= from ? weight(from, k) : weight(k, from)) ?? 0;
      const chip = h("button", {
        type: "button", class: k === from ? "chip arc from" : "chip arc", "data-at": k, "aria-label": `${shown(t)}: ${k <= from ? "is looked at with" : "looks back with"} ${percent(x, 1)}`,
        onclick: () => state.set({ position: k }), onpointerenter: () => state.set({ hover: k }), onpointerleave: () => state.set({ hover: null }),
      }, shown(t));
      chip.style.setProperty("--weight", String(Math.sqrt(x) * 0.75));
      return hint(chip, () => (k <= from ? `“${shown(tokens[from])}” looks here: ${percent(x, 2)}` : `looks at “${shown(tokens[from])}”: ${percent(x, 2)}`));
    });
    const svg = s("svg", { class: "arc-lines", "aria-hidden": "true" });
    const words = h("div", { class: "chips mono arc-words" }, chips);
    put(arcs, h("p", { class: "small" }, `From “${shown(tokens[from])}”: over the words, where it looks; under them, who looks at it. Choose another token to move.`),
      h("div", { class: "arc-stage" }, svg, words),
      tokens.length > n ? h("p", { class: "soft small" }, `The first ${n} tokens are drawn; the matrix has all.`) : null);
    requestAnimationFrame(() => lines(svg, words, from, n));
  }

  /** @param {any} svg @param {HTMLElement} words @param {number} from @param {number} n */
  function lines(svg, words, from, n) {
    const box = words.getBoundingClientRect();
    if (!box.width) return;
    put(svg);
    svg.setAttribute("viewBox", `0 0 ${box.width} ${box.height}`);
    svg.style.setProperty("width", `${box.width}px`);
    svg.style.setProperty("height", `${box.height}px`);
    const place = (/** @type {number} */ k) => {
      const b = words.children[k].getBoundingClientRect();
      return { x: b.left - box.left + b.width / 2, top: b.top - box.top, bottom: b.bottom - box.top };
    };
    const home = place(from);
    for (let k = 0; k < n; k++) {
      const x = (k <= from ? weight(from, k) : weight(k, from)) ?? 0;
      if (x < 0.01 || k === from) continue;
      const there = place(k);
      const over = k < from;
      const [y0, y1] = over ? [home.top, there.top] : [home.bottom, there.bottom];
      const lift = (over ? -1 : 1) * Math.min(46, 14 + Math.abs(there.x - home.x) * 0.16);
      svg.append(s("path", { class: over ? "arc-line" : "arc-line back", d: `M ${home.x} ${y0} C ${home.x} ${y0 + lift} ${there.x} ${y1 + lift} ${there.x} ${y1}`, "stroke-width": (0.5 + 9 * x).toFixed(2), opacity: Math.min(1, 0.25 + x).toFixed(2) }));
    }
  }

  state.on(["tokens", "count", "model", "layer", "head", "edits"], reset);
  const soon = () => { if (!frame) frame = requestAnimationFrame(paint); };
  state.on(["query", "key", "hover", "hoverQuery"], soon);
  state.on(["mode", "position"], () => { resize(); soon(); drawArcs(); });
  const recolour = () => { if (seen) paintThumbs(); fit(); soon(); drawArcs(); };
  state.on(["theme", "large"], recolour);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
  mountCell(cell, source, state);
  reset();
}
