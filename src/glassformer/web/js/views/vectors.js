/** Vectors: thousands of tokens as a cloud in a named plane, and sums of words as arrows with their rate of success. */

import { styled } from "../colour.js";
import { h, number, percent, put, shown } from "../dom.js";
import { live } from "../live.js";
import { unpack } from "../source.js";
import { fork } from "../ui.js";
import { inQuotes, say } from "../words.js";
import { mount as mountDirections } from "./directions.js";

/** @typedef {import("../store.js").Store} Store */

const PLANES = /** @type {[string, string[]][]} */ ([["", []], ["king, man, woman", ["king", "man", "woman"]], ["France, Paris, Italy", ["France", "Paris", "Italy"]], ["dog, car, run", ["dog", "car", "run"]]]);

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const canvas = h("canvas", { class: "cloud", tabindex: "0", role: "img", "aria-label": say("vectors.points") });
  const said = h("p", { class: "small num", role: "status" });
  const shares = h("p", { class: "small soft" });
  const plane = h("select", { "aria-label": say("vectors.plane"), onchange: () => state.set({ plane: plane.value ? plane.value.split(",") : [] }) },
    PLANES.map(([name, words]) => h("option", { value: words.join(",") }, name || say("vectors.axes"))));
  const own = h("input", { type: "text", size: "24", placeholder: say("vectors.own"), "aria-label": say("vectors.three"), readonly: !source.live });
  const form = h("form", { class: "row" }, h("label", { class: "small" }, say("vectors.seen"), plane), source.live ? [own, h("button", { type: "submit" }, say("vectors.show"))] : null);
  form.addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    const words = own.value.split(/[\s,]+/).filter(Boolean);
    if (words.length === 3) state.set({ plane: words });
    else said.textContent = say("vectors.through");
  });
  const asked = h("input", { type: "text", size: "28", value: state.get("sum"), "aria-label": say("vectors.sum"), readonly: !source.live });
  const sums = h("form", { class: "row" }, asked, source.live ? h("button", { type: "submit" }, say("vectors.add")) : null);
  sums.addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    state.set({ sum: asked.value });
  });
  const nearest = h("div", { role: "list", "aria-label": say("vectors.near") });
  const rate = h("div", {});
  const directions = h("div", {});
  element.append(h("h2", {}, say("vectors.title")),
    h("p", { class: "soft small" }, say("vectors.say")),
    h("div", { class: "halves" }, h("div", {}, form, h("div", { class: "cloud-frame" }, canvas), said, shares), h("div", {}, h("h2", {}, say("vectors.adding")), sums, nearest, rate)), directions);

  /** @type {any} */
  let data = null;
  /** @type {Float32Array} */
  let points = new Float32Array();
  let [turn, tilt] = [0.5, 0.3];
  /** @type {[number, number][]} */
  let seen = [];
  let answer = ""; // the nearest token to the sum, placed as well
  const words = () => (state.get("sum").match(/[^\s+−–-]+/g) ?? []).slice(0, 4);
  // A report places the words that it was written with.
  const placing = () => (answer && source.live ? [...words(), answer] : words());
  live(canvas, state, ["model", "text", "plane"], async (signal) => source.get("cloud", { model: state.get("model"), text: state.get("text"), plane: state.get("plane"), words: placing() }, { signal }), (found) => {
    data = found;
    points = /** @type {Float32Array} */ (unpack(found.points).data);
    canvas.setAttribute("aria-label", say("vectors.label", { n: found.count, lit: found.lit.map((/** @type {any} */ t) => t.token.trim()).join(", ") }));
    const part = found.shares.reduce((/** @type {number} */ a, /** @type {number} */ b) => a + b, 0);
    const names = state.get("plane").length ? say("vectors.planeof", { words: state.get("plane").join(", ") }) : say("vectors.first");
    shares.textContent = say("vectors.variance", { names, p: percent(part), n: found.count.toLocaleString(), all: found.vocabulary.toLocaleString(), width: found.width.toLocaleString(), shares: found.shares.map((/** @type {number} */ x) => percent(x)).join(", ") });
    draw();
  }, { always: true });

  function draw() {
    if (!data || !canvas.clientWidth) return;
    const dpr = devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    canvas.width = Math.round(width * dpr);
    canvas.height = Math.round(height * dpr);
    const c = canvas.getContext("2d");
    c.setTransform(dpr, 0, 0, dpr, 0, 0);
    const [soft, accent, warm, ink] = ["--soft", "--accent", "--warm", "--ink"].map(styled);
    const dims = points.length / data.count;
    const flat = (/** @type {ArrayLike<number>} */ p) => {
      if (dims < 3) return [p[0] * Math.cos(turn - 0.5) - p[1] * Math.sin(turn - 0.5), p[0] * Math.sin(turn - 0.5) + p[1] * Math.cos(turn - 0.5)];
      const [x, z] = [p[0] * Math.cos(turn) + p[2] * Math.sin(turn), p[2] * Math.cos(turn) - p[0] * Math.sin(turn)];
      return [x, p[1] * Math.cos(tilt) - z * Math.sin(tilt)];
    };
    const all = Array.from({ length: data.count }, (_, i) => flat(points.subarray(i * dims, i * dims + dims)));
    const named = [...data.lit.map((/** @type {any} */ t) => ({ name: t.token, at: flat(t.at), lit: true })), ...data.words.map((/** @type {any} */ w) => ({ name: w.word, at: flat(w.at), lit: false }))];
    const found = Object.fromEntries(data.words.map((/** @type {any} */ w) => [w.word, flat(w.at)]));
    const three = words();
    const [a, b, d] = three.map((/** @type {string} */ w) => found[w]);
    // a − b + c, head to tail: the arrow from b to c, moved to a. Sums whose signs add to one are exact on any plane.
    const end = three.length === 3 && a && b && d ? [a[0] - b[0] + d[0], a[1] - b[1] + d[1]] : null;
    const kept = [...named.map(({ at }) => at), ...(end ? [end] : [])];
    // All but the outermost of the cloud, and every named word, stand in the picture.
    const range = (/** @type {number} */ k) => {
      const sorted = all.map((p) => p[k]).sort((a, b) => a - b);
      const edge = Math.floor(sorted.length * 0.003);
      return [Math.min(sorted[edge], ...kept.map((at) => at[k])), Math.max(sorted[sorted.length - 1 - edge], ...kept.map((at) => at[k]))];
    };
    const [[left, right], [low, high]] = [range(0), range(1)];
    const scale = Math.min((width - 150) / (right - left || 1), (height - 60) / (high - low || 1));
    const put2 = (/** @type {number[]} */ [x, y]) => /** @type {[number, number]} */ ([width / 2 + (x - (left + right) / 2) * scale, height / 2 - (y - (low + high) / 2) * scale]);
    c.fillStyle = soft;
    c.globalAlpha = 0.35;
    seen = all.map(put2);
    for (const [x, y] of seen) c.fillRect(x - 1, y - 1, 2, 2);
    c.globalAlpha = 1;
    c.font = `13px ${getComputedStyle(element).fontFamily}`;
    canvas.dataset.sum = JSON.stringify(end ?? []);
    if (end) {
      arrow(put2(b), put2(d), warm);
      arrow(put2(a), put2(end), accent);
      label(put2(end), state.get("sum"), accent);
    }
    for (const { name, at, lit } of named) {
      const [x, y] = put2(at);
      c.fillStyle = lit ? accent : warm;
      c.beginPath();
      c.arc(x, y, 4, 0, 7);
      c.fill();
      label([x, y], shown(name).replace("␣", ""), ink);
    }
    /** @param {[number, number]} from @param {[number, number]} to @param {string} colour */
    function arrow([x0, y0], [x1, y1], colour) {
      const angle = Math.atan2(y1 - y0, x1 - x0);
      c.strokeStyle = c.fillStyle = colour;
      c.lineWidth = 2.5;
      c.beginPath();
      c.moveTo(x0, y0);
      c.lineTo(x1, y1);
      c.stroke();
      c.beginPath();
      c.moveTo(x1, y1);
      for (const side of [2.7, -2.7]) c.lineTo(x1 + 12 * Math.cos(angle + side), y1 + 12 * Math.sin(angle + side));
      c.fill();
    }
    /** @param {[number, number]} at @param {string} text @param {string} colour */
    function label([x, y], text, colour) {
      c.fillStyle = colour;
      c.fillText(text, x + 7, y - 6);
    }
  }
  new ResizeObserver(draw).observe(canvas);
  state.on(["theme", "large"], draw);
  let held = false;
  canvas.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => { held = true; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointerup", () => { held = false; });
  canvas.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
    if (held) {
      turn += event.movementX * 0.01;
      tilt += event.movementY * 0.01;
      return draw();
    }
    let best = 144;
    let near = -1;
    seen.forEach(([x, y], i) => { const d = (x - event.offsetX) ** 2 + (y - event.offsetY) ** 2; if (d < best) [best, near] = [d, i]; });
    said.textContent = near < 0 ? "" : inQuotes(shown(data.tokens[near]));
  });
  canvas.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const step = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[event.key];
    if (!step) return;
    event.preventDefault();
    turn += step[0];
    tilt += step[1];
    draw();
  });

  live(nearest, state, ["model", "sum"], async (signal) => source.get("sum", { model: state.get("model"), words: state.get("sum") }, { signal }), (d) => {
    put(nearest, d.neighbours.map((/** @type {any} */ n) => h("div", { class: "prob", role: "listitem" }, h("span", { class: "what mono" }, shown(n.token)), fork(n.similarity), h("span", { class: "num" }, number(n.similarity)))),
      h("p", { class: "soft small" }, say("vectors.nearest", { given: d.given.map((/** @type {any} */ n) => `${shown(n.token)} ${number(n.similarity)}`).join(", "), notes: d.notes.join(" ") })));
    answer = d.neighbours[0]?.token.trim() ?? "";
    if (data && source.live && [...words(), answer].some((w) => w && !data.words.some((/** @type {any} */ x) => x.word === w))) refresh();
  });
  async function refresh() {
    const found = await source.get("cloud", { model: state.get("model"), text: state.get("text"), plane: state.get("plane"), words: placing() }).catch(() => null);
    if (found) { data = found; points = /** @type {Float32Array} */ (unpack(found.points).data); draw(); }
  }
  live(rate, state, ["model"], async (signal) => source.get("sums", { model: state.get("model") }, { signal }), (d) => {
    put(rate, h("h3", {}, say("vectors.work")), h("p", { class: "small" }, d.asked
      ? say("vectors.rate", { n: d.asked, right: d.right, p: percent(d.right / d.asked, 0), naive: d.naive, q: percent(d.naive / d.asked, 0) })
      : say("vectors.none")),
    h("div", { class: "scroll-x", tabindex: "0", role: "region", "aria-label": say("vectors.rates") }, h("table", { class: "plain small" }, h("tbody", {}, d.relations.map((/** @type {any} */ r) => h("tr", {}, h("th", { scope: "row" }, r.relation),
      h("td", {}, `${r.example[1][0]} − ${r.example[0][0]} + ${r.example[0][1]} = ${r.example[1][1]}?`), h("td", { class: "num" }, r.asked ? say("vectors.of", { n: r.right, all: r.asked }) : say("vectors.unasked"))))))));
  });
  if (source.live && !source.embedded) mountDirections(directions, source, state);
  const reflect = () => { plane.value = state.get("plane").join(","); };
  state.on(["plane"], reflect);
  reflect();
}
