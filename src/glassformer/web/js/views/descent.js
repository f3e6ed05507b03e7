/** Gradient descent drawn: the loss along the line through a step, and the same step repeated until a sentence is learnt. */

import { h, hint, number, percent, put, s, shown } from "../dom.js";
import { chart, runner, ticks, track } from "../ui.js";
import { say } from "../words.js";

/** @typedef {import("../store.js").Store} Store */

/** The loss along the step: computed points, the slope that the gradient promised, and the step itself. @param {any} d a step's view */
export function slice(d) {
  const [width, height, L, R, T, B] = [560, 260, 52, 16, 14, 34];
  const all = d.slice.map((/** @type {number[]} */ p) => p[1]);
  const [first, last] = [d.slice[0][0], d.slice[d.slice.length - 1][0]];
  const low = Math.min(...all, d.loss_after, d.loss - d.promised), high = Math.max(...all, d.loss);
  const x = (/** @type {number} */ t) => L + ((t - first) / (last - first)) * (width - L - R);
  const y = (/** @type {number} */ v) => T + (1 - (v - low) / (high - low || 1)) * (height - T - B);
  const dot = (/** @type {number} */ t, /** @type {number} */ v, /** @type {string} */ kind, /** @type {string} */ label) =>
    s("g", { class: kind }, s("circle", { class: "point", cx: x(t), cy: y(v), r: 6 }), s("text", { class: "tick", x: x(t) + 10, y: y(v) - 8 }, label));
  const ahead = Math.min(last, 2);
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart slice", role: "img", "aria-label": say("descent.label", { before: number(d.loss), after: number(d.loss_after), far: number(d.slice[d.slice.length - 1][1]), times: last }) },
    ticks(low, high).map((v) => [s("line", { class: "grid", x1: L, x2: width - R, y1: y(v), y2: y(v) }), s("text", { class: "tick", x: L - 6, y: y(v) + 4, "text-anchor": "end" }, number(v))]),
    d.slice.filter((/** @type {number[]} */ [t]) => Number.isInteger(t)).map((/** @type {number[]} */ [t]) => s("text", { class: "tick", x: x(t), y: height - 16, "text-anchor": "middle" }, t)),
    s("text", { class: "tick", x: (L + width - R) / 2, y: height - 2, "text-anchor": "middle" }, say("descent.axis")),
    s("line", { class: "line line-1 slope", x1: x(-0.5), y1: y(d.loss + 0.5 * d.promised), x2: x(ahead), y2: y(d.loss - ahead * d.promised) }),
    s("polyline", { class: "line line-0", points: d.slice.map((/** @type {number[]} */ [t, v]) => `${x(t).toFixed(1)},${y(v).toFixed(1)}`).join(" ") }),
    d.slice.map((/** @type {number[]} */ [t, v]) => s("circle", { class: "point line-0", cx: x(t), cy: y(v), r: 2.5, "data-at": t, "data-loss": v })),
    dot(0, d.loss, "line-3", say("descent.here")), dot(1, d.loss_after, "line-2", say("descent.after")));
  let nearest = d.slice[0];
  svg.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
    const box = svg.getBoundingClientRect();
    const t = first + ((((event.clientX - box.left) / box.width) * width - L) / (width - L - R)) * (last - first);
    nearest = d.slice.reduce((/** @type {number[]} */ a, /** @type {number[]} */ b) => (Math.abs(b[0] - t) < Math.abs(a[0] - t) ? b : a));
  });
  hint(svg, () => say("descent.point", { n: nearest[0], x: number(nearest[1]) }));
  return h("figure", { class: "figure" }, svg, h("figcaption", { class: "row small" }, h("span", { class: "key line-0" }, say("descent.loss")), h("span", { class: "key line-1" }, say("descent.slope"))));
}

/** The same step again and again, on a copy, until the model writes the sentence by itself. @param {HTMLElement} element @param {any} source @param {Store} state */
export function repeat(element, source, state) {
  const said = h("p", { class: "small", role: "status" });
  const out = h("div", {});
  const repeating = runner("descent.repeat", said, async (signal) => {
    /** @type {any[]} */
    const steps = [];
    said.textContent = say("descent.first");
    put(out);
    for await (const event of source.stream("/api/learn", { text: state.get("text"), model: state.get("model") }, { signal })) {
      if ("learnt" in event) {
        said.textContent = !event.learnt ? say("descent.not", { n: event.steps }) : event.steps ? say("descent.learnt", { n: event.steps }) : say("descent.known");
      } else {
        steps.push(event);
        said.textContent = say("descent.step", { n: event.step, a: number(event.loss), b: number(event.loss_after) });
        show(steps);
      }
    }
  }, "descent.stopped", { type: "button", id: "repeat-step", onclick: () => repeating.run() });
  state.on(["text", "model"], () => { repeating.stop(); said.textContent = ""; put(out); });
  element.append(h("div", { class: "row" }, repeating.button), said, out);

  /** @param {any[]} steps */
  function show(steps) {
    const now = steps[steps.length - 1];
    const line = { name: "loss", steps: [0, ...steps.map((one) => one.step)], values: [steps[0].loss, ...steps.map((one) => one.loss_after)], kind: "line-0" };
    put(out, h("div", { class: "two" }, chart([line], { label: say("descent.chart"), unit: say("unit.nats"), width: 520, height: 220 }),
      h("div", { role: "list", "aria-label": say("descent.tokens") }, now.tokens.slice(0, 24).map((/** @type {any} */ t) => h("div", { class: "prob change", role: "listitem" }, h("span", { class: "what mono" }, shown(t.token)), track(t.now),
        h("span", { class: "num small" }, t.writes === t.token ? `✓ ${percent(t.now)}` : say("descent.says", { p: percent(t.now), word: shown(t.writes) })))))));
  }
}
