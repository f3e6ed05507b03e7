/** Steering: a direction from two sets of examples, a slider along it, and the text that the model then writes. */

import { h, number, percent, plain, put, shown } from "../dom.js";
import { live } from "../live.js";
import { inQuotes, say } from "../words.js";
import { keep } from "./directions.js";

/** @typedef {import("../store.js").Store} Store */

const EXAMPLES = {
  positive: "La capitale de la France est\nJe voudrais un café\nOù est la gare\nIl fait beau aujourd'hui\nNous allons à la plage",
  negative: "The capital of France is\nI would like a coffee\nWhere is the station\nThe weather is nice today\nWe are going to the beach",
};
const TOKENS = 24;

/** @param {string} text */
const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const area = (/** @type {string} */ name, /** @type {string} */ text) => h("textarea", { class: "boxed", rows: "4", "aria-label": name, value: text });
  const to = area(say("steer.to"), EXAMPLES.positive);
  const away = area(say("steer.away"), EXAMPLES.negative);
  const layer = h("input", { type: "number", min: "0", class: "narrow", "aria-label": say("steer.layer"), value: "" });
  const method = h("select", { "aria-label": say("steer.how") }, h("option", { value: "mean" }, say("steer.mean")), h("option", { value: "probe" }, say("steer.probe")), h("option", { value: "das" }, say("steer.das")));
  const place = h("select", { "aria-label": say("steer.what") }, h("option", { value: "mean" }, say("steer.all")), h("option", { value: "last" }, say("steer.last")));
  const body = h("div", { class: "steer" });
  const texts = h("div", {});
  const form = h("form", {}, h("div", { class: "two" }, h("label", { class: "small" }, say("steer.towards"), to), h("label", { class: "small" }, say("steer.from"), away)),
    h("div", { class: "row" }, h("label", { class: "small" }, say("steer.after"), layer), method, place, h("button", { type: "submit" }, say("steer.find"))));
  element.append(h("details", { class: "steering" }, h("summary", {}, say("steer.title")), form, body, texts));
  const middle = () => { if (!layer.value && state.get("layers")) layer.value = String(Math.floor(state.get("layers") * 0.4)); };
  state.on(["layers", "model"], middle);
  middle();
  /** What was asked for, or null. @type {any} */
  let asked = null;
  const view = live(body, state, ["model"], async (signal) => (asked ? source.get("direction", { model: state.get("model"), ...asked }, { signal }) : null), draw, { always: true });
  form.addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    asked = { positive: lines(to.value), negative: lines(away.value), layer: Number(layer.value || 0), method: method.value, position: method.value === "das" ? "last" : place.value };
    view.refresh();
  });

  /** @param {any} d */
  function draw(d) {
    const vector = d.vector.map((/** @type {number} */ v) => Number(v.toPrecision(6)));
    const now = () => state.get("edits").find((/** @type {any} */ e) => e.kind === "steer")?.strength ?? 0;
    const value = h("output", { class: "num" });
    const slider = h("input", { type: "range", min: -4, max: 4, step: 0.1, value: now(), "aria-label": say("steer.far"), oninput: () => {
      const others = state.get("edits").filter((/** @type {any} */ e) => e.kind !== "steer");
      const strength = Number(slider.value);
      state.set({ edits: strength ? [...others, { kind: "steer", layer: d.layer, vector, strength }] : others });
    } });
    const turn = () => {
      if (document.activeElement !== slider) slider.value = String(now());
      value.textContent = `× ${Number(slider.value).toFixed(1)}`;
    };
    steered = turn;
    turn();
    const trust = d.method === "das" ? say("steer.exchanged", { p: percent(d.accuracy, 0), q: percent(d.random, 0) }) : d.accuracy === null ? say("steer.few") : say("steer.trust", { p: percent(d.accuracy, 0), q: percent(d.shuffled, 0) });
    put(body, h("p", { class: "sentence" }, say("steer.said", { layer: d.layer, x: number(d.norm), trust })),
      h("p", { class: "small" }, say("steer.raises", { up: d.raises.slice(0, 6).map((/** @type {string} */ t) => inQuotes(plain(t))).join(", "), down: d.lowers.slice(0, 6).map((/** @type {string} */ t) => inQuotes(plain(t))).join(", ") })),
      h("label", { class: "row small grow-slider" }, say("steer.left"), slider, say("steer.right"), value),
      h("button", { type: "button", class: "small", id: "keep-direction", onclick: (/** @type {any} */ event) => {
        keep(state, { name: `${asked.positive[0]} − ${asked.negative[0]}`.slice(0, 100), ...asked });
        event.target.textContent = say("steer.kept");
      } }, say("steer.keep")));
    write();
  }
  /** @type {() => void} */
  let steered = () => {};
  state.on(["edits"], () => steered());

  /** @type {AbortController|null} */
  let writing = null;
  let timer = 0;
  const again = () => {
    clearTimeout(timer);
    writing?.abort();
    if (!asked || !body.children.length) return;
    texts.setAttribute("aria-busy", "true"); // from the change on, not only once it is asked
    timer = window.setTimeout(write, 350);
  };
  state.on(["edits", "text", "model"], again);

  /** The likeliest continuation as the model is, and as it is steered. */
  async function write() {
    const mine = (writing = new AbortController());
    const edits = state.get("edits");
    const sides = /** @type {[string, any[]][]} */ ([[say("steer.asis"), []], [say("steer.steered"), edits]]);
    const outs = sides.map(() => h("p", { class: "sample" }));
    put(texts, h("div", { class: "two" }, sides.map(([name], i) => h("div", {}, h("h3", {}, name), outs[i]))));
    texts.setAttribute("aria-busy", "true");
    try {
      for (const [i, [, some]] of sides.entries()) {
        if (i && !edits.length) {
          outs[1].append(h("span", { class: "soft" }, say("steer.move")));
          break;
        }
        outs[i].append(h("span", { class: "soft" }, state.get("text")));
        for await (const event of source.stream("/api/generate", { text: state.get("text"), model: state.get("model"), edits: some, max_tokens: TOKENS, temperature: 0, alternatives: 0 }, { signal: mine.signal })) {
          if (event.done) break;
          outs[i].append(event.text ?? shown(event.token));
        }
      }
    } catch (error) {
      if (!mine.signal.aborted) put(texts, h("p", { class: "problem", role: "alert" }, error instanceof Error ? error.message : String(error)));
    }
    if (mine === writing) texts.removeAttribute("aria-busy");
  }
}
