/** Pieces that several views draw: bars, segmented choices, line charts, small grids. */

import { signed } from "./colour.js";
import { h, hint, number, percent, s, shown } from "./dom.js";
import { say } from "./words.js";

/** A bar in a track. @param {number} share of the track @param {number} [from] where it starts @param {string} [colour] */
export function track(share, from = 0, colour = "") {
  const bar = h("span", { class: "bar" });
  bar.style.setProperty("--share", String(Math.max(0, Math.min(1, share))));
  if (from) bar.style.setProperty("--from", String(from));
  if (colour) bar.style.setProperty("background", colour);
  return h("span", { class: "track" }, bar);
}

/** A bar from the middle: right for more, left for less. @param {number} x -1 to 1 */
export function fork(x) {
  return track(Math.abs(x) / 2, x >= 0 ? 0.5 : 0.5 + x / 2, signed(x >= 0 ? 1 : -1));
}

/** A token and its probability. @param {string} token @param {number} p @param {number} [largest] */
export function chance(token, p, largest = 1) {
  return h("div", { class: "prob", role: "listitem" }, h("span", { class: "what mono" }, shown(token)), track(p / largest), h("span", { class: "num" }, percent(p)));
}

/**
 * Buttons of which one is chosen.
 * @param {string|(() => string)} label @param {[string, string|(() => string)][]} options texts, or what says them in each language @param {() => string} current @param {(name: string) => void} choose
 */
export function segmented(label, options, current, choose) {
  const buttons = options.map(([name, text]) => h("button", { type: "button", "data-choice": name, onclick: () => choose(name) }, text));
  const element = h("div", { class: "segmented", role: "group", "aria-label": label }, buttons);
  const reflect = () => {
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.choice === current()));
  };
  reflect();
  return { element, reflect };
}

/**
 * Lines over steps, with axes, a reading under the pointer and a table for those who do not see it.
 * @param {{name: string, steps: number[], values: number[], kind?: string}[]} lines
 * @param {{label: string, unit: string, mark?: number|null, width?: number, height?: number, log?: boolean}} options with `log`, steps stand by their logarithm
 */
export function chart(lines, { label, unit, mark = null, width = 640, height = 220, log = false }) {
  const all = lines.flatMap((l) => l.values.filter(Number.isFinite));
  const steps = lines.flatMap((l) => l.steps);
  if (!all.length) return h("p", { class: "soft small" }, say("chart.none"));
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const [first, last] = [log ? 0 : Math.min(...steps), Math.max(...steps)];
  const [L, R, T, B] = [52, 12, 12, 28];
  const place = log ? Math.log1p : (/** @type {number} */ v) => v;
  const x = (/** @type {number} */ v) => L + ((place(v) - place(first)) / (place(last) - place(first) || 1)) * (width - L - R);
  const y = (/** @type {number} */ v) => T + (1 - (v - low) / (high - low || 1)) * (height - T - B);
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", "aria-label": `${label}: ${lines.map((l) => say("chart.line", { a: l.name, b: number(l.values[0]), c: number(l.values[l.values.length - 1]) })).join("; ")}` });
  for (const v of ticks(low, high)) {
    svg.append(s("line", { class: "grid", x1: L, x2: width - R, y1: y(v), y2: y(v) }), s("text", { class: "tick", x: L - 6, y: y(v) + 4, "text-anchor": "end" }, number(v)));
  }
  for (const v of log ? [0, 1, 10, 100, 1000, 10_000, 100_000].filter((v) => v <= last) : ticks(first, last)) svg.append(s("text", { class: "tick", x: x(v), y: height - 8, "text-anchor": "middle" }, number(v)));
  lines.forEach((line, i) => {
    const points = line.steps.map((step, j) => [step, line.values[j]]).filter(([, v]) => Number.isFinite(v));
    svg.append(s("polyline", { class: `line ${line.kind ?? `line-${i}`}`, points: points.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ") }));
    if (points.length < 40) for (const [a, b] of points) svg.append(s("circle", { class: `point ${line.kind ?? `line-${i}`}`, cx: x(a), cy: y(b), r: 2.5 }));
  });
  if (mark !== null && mark >= first && mark <= last) svg.append(s("line", { class: "mark", x1: x(mark), x2: x(mark), y1: T, y2: height - B }));
  /** @type {any} */
  let at = null;
  svg.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
    const box = svg.getBoundingClientRect();
    at = place(first) + (((event.clientX - box.left) / box.width) * width - L) / (width - L - R) * (place(last) - place(first));
    if (log) at = Math.expm1(at);
  });
  hint(svg, () => {
    if (at === null) return "";
    return lines.map((line) => {
      let best = 0;
      line.steps.forEach((step, j) => { if (Math.abs(step - at) < Math.abs(line.steps[best] - at)) best = j; });
      return say("chart.at", { a: line.steps[best], b: line.name, c: number(line.values[best]), d: unit });
    }).join("\n");
  });
  return h("figure", { class: "figure" }, svg, lines.length > 1 ? h("figcaption", { class: "row small" }, lines.map((line, i) => h("span", { class: `key ${line.kind ?? `line-${i}`}` }, line.name))) : null);
}

/** Three to six round numbers between two. @param {number} low @param {number} high */
export function ticks(low, high) {
  const span = high - low;
  if (!(span > 0)) return [low];
  const rough = 10 ** Math.floor(Math.log10(span / 3));
  const step = [1, 2, 5, 10].map((m) => m * rough).find((t) => span / t <= 5) ?? rough * 10;
  const out = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step) out.push(Math.abs(v) < step * 1e-9 ? 0 : Number(v.toPrecision(12)));
  return out;
}

/** A matrix of −1…1 as a picture, blue and orange. @param {Float32Array} data @param {number} rows @param {number} columns @param {string} label */
export function grid(data, rows, columns, label) {
  const canvas = h("canvas", { width: columns, height: rows, class: "grid-picture", role: "img", "aria-label": label });
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  const most = data.reduce((m, v) => Math.max(m, Math.abs(v)), 1e-9);
  for (let i = 0; i < rows * columns; i++) {
    const [r, g, b] = data[i] >= 0 ? [47, 109, 240] : [224, 114, 20];
    image.data.set([r, g, b, Math.round(255 * Math.sqrt(Math.abs(data[i]) / most))], 4 * i);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/**
 * A button that begins something and stops it; what goes wrong is said.
 * @param {string} name what the button says, by its key @param {HTMLElement} said where it is said
 * @param {(signal: AbortSignal) => Promise<void>} work @param {string} stopped what is said when it was stopped, by its key @param {Record<string, any>} [more] of the button
 * @returns {{button: HTMLButtonElement, run: () => Promise<void>, stop: () => void}}
 */
export function runner(name, said, work, stopped, more = {}) {
  /** @type {AbortController|null} */
  let running = null;
  const button = h("button", { type: "submit", ...more }, say(name));
  async function run() {
    if (running) return running.abort();
    const mine = (running = new AbortController());
    button.textContent = say("stop");
    try {
      await work(mine.signal);
    } catch (error) {
      said.textContent = mine.signal.aborted ? say(stopped) : error instanceof Error ? error.message : String(error);
    } finally {
      running = null;
      button.textContent = say(name);
    }
  }
  return { button, run, stop: () => running?.abort() };
}

/** A number with its sign. @param {number} x */
export function withSign(x) {
  return `${x >= 0 ? "+" : "−"}${number(Math.abs(x))}`;
}

/** @param {number|null|undefined} bytes */
export function bytes(bytes) {
  if (!bytes) return "";
  return bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${Math.round(bytes / 1e6)} MB`;
}

/** A count with its noun. @param {number} n @param {string} noun as the words' file names it */
export function plural(n, noun) {
  return say(`count.${noun}.${n === 1 ? "one" : "many"}`, { n: n.toLocaleString() });
}

/** A place of the model as people name it, whatever spelling it comes in. @param {string} place */
export function placeName(place) {
  return place.replace(/^blocks\.(\d+)\.(resid_mid|attn|attention)(\..*)?$/, `$1 · ${say("place.attention")}$3`).replace(/^blocks\.(\d+)\.(resid_post|mlp|feed_forward)(\..*)?$/, `$1 · ${say("place.feed_forward")}$3`)
    .replace(/^blocks\.(\d+)\.(\w+)(\..*)?$/, "$1 · $2$3").replace(/^embed(\..*)?$/, `${say("place.embedding")}$1`).replaceAll("_", " ").replace(/\.weight$/, "");
}
