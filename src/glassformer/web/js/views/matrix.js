/** One head's matrix: a canvas the size of the window onto it, filled from tiles that are asked for when they are seen. */

import { inkOn, pixels } from "../colour.js";
import { h, percent, shown } from "../dom.js";
import { TILE, start } from "../tiles.js";
import { say } from "../words.js";

/** @typedef {import("../store.js").Store} Store */

/** Pixels that a cell has at most, and what the whole of a long text may shrink to. */
const LARGEST = 72;
const WHOLE = 600;
/** Tokens of a text whose matrix is fitted to the window's height, too. */
export const SMALL = 24;
const LONGEST_NAME = 14;
const MARKED = "#e07214";

/**
 * @param {HTMLElement} stage @param {import("../tiles.js").Tiles} tiles @param {Store} state
 * @param {(text: string) => void} write what the pointer is on @param {() => void} open shows the chosen cell taken apart
 */
export function mount(stage, tiles, state, write, open) {
  const scroller = h("div", { class: "scroller", tabindex: "0", role: "img", "aria-label": say("matrix.label") });
  const canvas = h("canvas", {});
  const ground = h("div", { class: "ground" });
  scroller.append(ground, canvas);
  stage.append(scroller);

  // Pixels a token. Below one, a cell is the largest weight of several tokens each way.
  let zoom = 16;
  const stride = () => (zoom >= 1 ? 1 : Math.round(1 / zoom));
  const fontSize = () => Math.max(9, Math.min(14, zoom * 0.72)) * (document.documentElement.dataset.large === "true" ? 1.25 : 1);
  /** @type {any} */
  let measured = null;
  let longest = 1;
  /** Room for the tokens' names on both sides, where a cell is large enough to have one. */
  function margin() {
    if (zoom < 11) return 0;
    const tokens = state.get("tokens");
    if (tokens !== measured) {
      measured = tokens;
      longest = Math.max(1, ...tokens.slice(0, 400).map((/** @type {string} */ t) => shown(t).length));
    }
    return Math.round(Math.min(longest, LONGEST_NAME) * fontSize() * 0.62) + 10;
  }
  const space = () => ({ wide: (stage.clientWidth || 600) - 4, high: innerHeight * 0.68 });

  function fit() {
    const n = Math.max(1, state.get("count"));
    const { wide, high } = space();
    zoom = LARGEST;
    for (let i = 0; i < 3; i++) zoom = Math.max(2, Math.min(LARGEST, Math.floor(Math.min((wide - margin()) / n, n > SMALL ? 1e9 : (high - margin()) / n))));
    resize();
  }
  /** All of it in sight at once. */
  function whole() {
    const n = Math.max(1, state.get("count"));
    const side = Math.min(...Object.values(space()));
    zoom = LARGEST;
    while (zoom > 1 && n * zoom + margin() > side) zoom -= 1;
    while (n * zoom > Math.max(side, WHOLE)) zoom /= 2;
    resize();
    paint();
  }
  function resize() {
    const side = state.get("count") * zoom + margin();
    ground.style.setProperty("width", `${side}px`);
    ground.style.setProperty("height", `${side}px`);
    scroller.style.setProperty("height", `${Math.min(side + 3, innerHeight * 0.72)}px`);
    scroller.style.setProperty("max-width", `${side + 3}px`);
  }
  /** @param {boolean} nearer */
  function rezoom(nearer) {
    const old = zoom;
    if (nearer) zoom = zoom < 1 ? zoom * 2 : Math.min(LARGEST, Math.ceil(zoom * 1.25));
    else if (zoom > 1) zoom = Math.floor(zoom * 0.8);
    else if (state.get("count") * zoom > WHOLE) zoom /= 2;
    const x = (scroller.scrollLeft + scroller.clientWidth / 2) / old;
    const y = (scroller.scrollTop + scroller.clientHeight / 2) / old;
    resize();
    scroller.scrollTo(x * zoom - scroller.clientWidth / 2, y * zoom - scroller.clientHeight / 2);
    paint();
  }

  let frame = 0;
  const soon = () => { if (!frame) frame = requestAnimationFrame(paint); };
  // One pixel a cell, then enlarged: a frame costs by the cells that are seen, whatever the zoom.
  const small = h("canvas", {});
  const tiny = small.getContext("2d", { willReadFrequently: true });
  function paint() {
    frame = 0;
    const n = state.get("count");
    if (!n) canvas.width = canvas.height = 0;
    if (!n || state.get("mode") !== "matrix") return;
    const M = margin();
    const width = Math.min(scroller.clientWidth, n * zoom + M);
    const height = Math.min(scroller.clientHeight, n * zoom + M);
    if (width <= M || height <= M) return;
    const dpr = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * dpr) || canvas.height !== Math.round(height * dpr)) {
      canvas.width = Math.round(width * dpr);
      canvas.height = Math.round(height * dpr);
      canvas.style.setProperty("width", `${width}px`);
      canvas.style.setProperty("height", `${height}px`);
    }
    const [left, top] = [scroller.scrollLeft, scroller.scrollTop];
    const step = stride();
    const size = zoom * step;
    const cells = Math.ceil(n / step);
    const [q0, k0] = [Math.floor(top / size), Math.floor(left / size)];
    const q1 = Math.min(cells, Math.ceil((top + height - M) / size));
    const k1 = Math.min(cells, Math.ceil((left + width - M) / size));
    const [across, down] = [k1 - k0, q1 - q0];
    if (across <= 0 || down <= 0) return;
    gather(q0, q1, k0, k1, step);
    const context = canvas.getContext("2d");
    context.setTransform(dpr, 0, 0, dpr, 0, 0);
    context.clearRect(0, 0, width, height);
    context.imageSmoothingEnabled = false;
    const [x0, y0] = [M + k0 * size - left, M + q0 * size - top];
    context.save();
    context.beginPath();
    context.rect(M, M, width - M, height - M);
    context.clip();
    context.drawImage(small, 0, 0, across, down, x0, y0, across * size, down * size);
    const ink = getComputedStyle(scroller);
    if (zoom >= 14) {
      context.strokeStyle = ink.backgroundColor;
      context.lineWidth = 1;
      context.beginPath();
      for (let i = 1; i < Math.max(across, down); i++) {
        if (i < down) context.rect(x0, y0 + i * zoom, (q0 + i - k0) * zoom, 0);
        if (i < across) context.rect(x0 + i * zoom, y0 + Math.max(0, k0 + i - q0) * zoom, 0, down * zoom);
      }
      context.stroke();
    }
    if (zoom >= 44) figures(context, ink, M - left, M - top, q0, q1, k0, k1);
    const stripe = (/** @type {number|null} */ at, /** @type {boolean} */ row) => {
      if (at === null) return;
      context.strokeStyle = MARKED;
      context.lineWidth = 1.5;
      if (row) context.strokeRect(M - left, M + at * zoom - top, (at + 1) * zoom, zoom);
      else context.strokeRect(M + at * zoom - left, M + at * zoom - top, zoom, (n - at) * zoom);
    };
    stripe(state.get("hoverQuery") ?? state.get("hover"), true);
    stripe(state.get("hover"), false);
    const [q, k] = [state.get("query"), state.get("key")];
    if (q !== null && k !== null) {
      context.strokeStyle = MARKED;
      context.lineWidth = 3;
      context.strokeRect(M + k * zoom - left, M + q * zoom - top, zoom, zoom);
    }
    context.restore();
    if (M) names(context, ink, M, q0, q1, k0, k1, left, top);
  }

  /** The cells in sight into `small`, copied from the tiles' pictures. @param {number} q0 @param {number} q1 @param {number} k0 @param {number} k1 @param {number} step */
  function gather(q0, q1, k0, k1, step) {
    const [w, tall] = [k1 - k0, q1 - q0];
    if (small.width < w || small.height < tall) {
      small.width = Math.max(small.width, w);
      small.height = Math.max(small.height, tall);
    }
    tiny.clearRect(0, 0, w, tall);
    for (let row = start(q0); row < q1; row += TILE) {
      for (let column = start(k0); column < k1 && column < row + TILE; column += TILE) { // later keys are never seen
        const tile = tiles.at(row, column, step);
        if (!tile) continue;
        const image = picture(tile, row, column);
        const [x, y] = [Math.max(0, k0 - column), Math.max(0, q0 - row)];
        tiny.putImageData(image, column - k0, row - q0, x, y, Math.min(tile.w, k1 - column) - x, Math.min(tile.h, q1 - row) - y);
      }
    }
  }
  /** @type {WeakMap<any, ImageData>} */
  let pictures = new WeakMap();
  /** A tile's shades, made once. @param {import("../tiles.js").Tile} tile @param {number} row @param {number} column */
  function picture(tile, row, column) {
    const found = pictures.get(tile);
    if (found) return found;
    const image = tiny.createImageData(tile.w, tile.h);
    const out = new Uint32Array(image.data.buffer);
    const table = pixels();
    for (let i = 0; i < tile.h; i++) {
      for (let j = 0; j < tile.w && column + j <= row + i; j++) out[i * tile.w + j] = table[Math.min(255, Math.round(255 * tile.data[i * tile.w + j]))];
    }
    pictures.set(tile, image);
    return image;
  }

  /** Each cell's number in it. @param {any} context @param {any} ink @param {number} x @param {number} y @param {number} q0 @param {number} q1 @param {number} k0 @param {number} k1 */
  function figures(context, ink, x, y, q0, q1, k0, k1) {
    context.font = `${Math.min(14, zoom * 0.24)}px ${ink.fontFamily}`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (let q = q0; q < q1; q++) {
      for (let k = k0; k < Math.min(k1, q + 1); k++) {
        const weight = tiles.weight(q, k);
        if (weight === null) continue;
        context.fillStyle = inkOn(Math.sqrt(weight));
        context.fillText(percent(weight, weight < 0.1 ? 1 : 0), x + (k + 0.5) * zoom, y + (q + 0.5) * zoom);
      }
    }
  }

  /** The tokens beside the rows and over the columns. @param {any} context @param {any} ink @param {number} M @param {number} q0 @param {number} q1 @param {number} k0 @param {number} k1 @param {number} left @param {number} top */
  function names(context, ink, M, q0, q1, k0, k1, left, top) {
    const tokens = state.get("tokens");
    context.font = `${fontSize()}px ${ink.fontFamily}`;
    context.textBaseline = "middle";
    const clip = (/** @type {string} */ t) => { const text = shown(t); return text.length > LONGEST_NAME ? `${text.slice(0, LONGEST_NAME - 1)}…` : text; };
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

  scroller.addEventListener("scroll", soon, { passive: true });
  let width = 0;
  // What changed while another room was open is drawn when this one is seen again.
  let stale = false;
  new ResizeObserver(() => {
    if (!stage.clientWidth) return;
    if (stale || Math.abs(stage.clientWidth - width) > 8) fit();
    width = stage.clientWidth;
    stale = false;
    soon();
  }).observe(stage);

  /** @param {PointerEvent} event */
  function under(event) {
    const box = scroller.getBoundingClientRect();
    const M = margin();
    const k = Math.floor((event.clientX - box.left - 1 - M + scroller.scrollLeft) / zoom);
    const q = Math.floor((event.clientY - box.top - 1 - M + scroller.scrollTop) / zoom);
    const n = state.get("count");
    return q >= 0 && k >= 0 && q < n && k <= q ? { q, k } : null;
  }
  function tell(/** @type {number} */ q, /** @type {number} */ k) {
    const tokens = state.get("tokens");
    const w = tiles.weight(q, k);
    write(say("matrix.at", { query: shown(tokens[q] ?? ""), q, key: shown(tokens[k] ?? ""), k, x: w === null ? (zoom < 1 ? say("matrix.zoom", { a: stride(), b: stride() }) : "…") : percent(w, 2) }));
  }
  scroller.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
    const at = under(event);
    state.set({ hover: at ? at.k : null, hoverQuery: at ? at.q : null });
    if (at) tell(at.q, at.k);
  });
  scroller.addEventListener("pointerleave", () => state.set({ hover: null, hoverQuery: null }));
  scroller.addEventListener("click", (/** @type {PointerEvent} */ event) => {
    const at = under(event);
    if (!at || state.get("head") === null) return;
    state.set({ query: at.q, key: at.k });
    open();
  });
  scroller.addEventListener("wheel", (/** @type {WheelEvent} */ event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    rezoom(event.deltaY < 0);
  }, { passive: false });
  scroller.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "+" || event.key === "-") return rezoom(event.key === "+");
    if (event.key === "Enter" && state.get("query") !== null) return open();
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!step || state.get("head") === null) return;
    event.preventDefault();
    const q = Math.max(0, Math.min(state.get("count") - 1, (state.get("query") ?? state.get("count") - 1) + step[0]));
    const k = Math.max(0, Math.min(q, (state.get("key") ?? 0) + step[1]));
    state.set({ query: q, key: k });
    reveal(q, k);
    tell(q, k);
  });
  /** Scroll so that a cell is in sight. @param {number} q @param {number} k */
  function reveal(q, k) {
    const M = margin();
    const into = (/** @type {number} */ at, /** @type {number} */ from, /** @type {number} */ seen) => Math.min(at * zoom, Math.max(from, (at + 1) * zoom + M - seen));
    scroller.scrollTo(into(k, scroller.scrollLeft, scroller.clientWidth), into(q, scroller.scrollTop, scroller.clientHeight));
  }

  state.on(["query", "key", "hover", "hoverQuery"], soon);
  return {
    scroller, soon, fit, resize, whole, rezoom,
    /** Another theme: the shades are made anew. */
    recolour() {
      pictures = new WeakMap();
      fit();
      soon();
    },
    /** Another head, or another text, which is fitted anew. @param {boolean} text */
    reset(text) {
      pictures = new WeakMap();
      stale ||= text && !stage.clientWidth;
      if (text) fit();
      paint();
    },
  };
}
