/** Directions that were kept: what each raises, how they lie to each other, and a slider that steers by each. */

import { signed } from "../colour.js";
import { h, number, percent, plain, put } from "../dom.js";
import { live } from "../live.js";
import { inQuotes, say } from "../words.js";

/** @typedef {import("../store.js").Store} Store */

/** Keep a direction by what it is made from; one of the same name is replaced. @param {Store} state @param {{name: string} & Record<string, any>} made */
export function keep(state, made) {
  state.set({ directions: [...(state.get("directions") ?? []).filter((/** @type {any} */ d) => d.name !== made.name), made].slice(-12) });
}

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const layer = h("input", { type: "number", min: "0", "aria-label": say("directions.layer"), placeholder: say("directions.middle"), onchange: () => view.refresh() });
  const list = h("div", { class: "directions" });
  element.append(h("h2", {}, say("directions.title")), h("p", { class: "soft small" }, say("directions.say")),
    h("div", { class: "row" }, h("button", { type: "button", id: "keep-sum", onclick: () => keep(state, { name: state.get("sum"), words: state.get("sum") }) }, say("directions.keep")),
      h("label", { class: "small" }, say("directions.after"), layer)), list);
  /** @type {(() => void)[]} */
  let turns = [];
  const view = live(list, state, ["directions", "model", "text"], async (signal) => {
    const kept = state.get("directions") ?? [];
    if (kept.length) return source.get("directions", { text: state.get("text"), model: state.get("model"), directions: kept, layer: layer.value === "" ? null : Number(layer.value) }, { signal });
    turns = [];
    put(list, h("p", { class: "soft small" }, say("directions.none")));
    return null;
  }, (d) => {
    turns = [];
    put(list, d.directions.map(one), d.directions.length > 1 ? table(d) : null);
  });

  /** The edit that steers by a direction, among the page's, or undefined. @param {any} d */
  const steering = (d) => state.get("edits").find((/** @type {any} */ e) => e.kind === "steer" && e.layer === d.layer && JSON.stringify(e.vector) === JSON.stringify(d.vector));

  /** @param {any} d */
  function one(d) {
    const out = h("output", { class: "num small" });
    const slider = h("input", { type: "range", min: -10, max: 10, step: 0.5, "aria-label": say("directions.steer", { name: d.name }), oninput: () => {
      const strength = Number(slider.value);
      const others = state.get("edits").filter((/** @type {any} */ e) => e !== steering(d));
      state.set({ edits: strength ? [...others, { kind: "steer", layer: d.layer, vector: d.vector, strength }] : others });
    } });
    const turn = () => {
      if (document.activeElement !== slider) slider.value = String(steering(d)?.strength ?? 0);
      out.textContent = `× ${Number(slider.value).toFixed(1)}`;
    };
    turns.push(turn);
    turn();
    const quoted = (/** @type {string[]} */ tokens) => tokens.map((t) => inQuotes(plain(t))).join(", ");
    return h("div", { class: "direction", role: "group", "aria-label": d.name },
      h("div", { class: "row spread" }, h("strong", {}, d.name), h("button", { type: "button", class: "bare", "aria-label": say("directions.drop", { name: d.name }), onclick: () => state.set({
        directions: state.get("directions").filter((/** @type {any} */ k) => k.name !== d.name), edits: state.get("edits").filter((/** @type {any} */ e) => e !== steering(d)),
      }) }, "✕")),
      h("p", { class: "small" }, say("directions.raises", { up: quoted(d.raises), down: quoted(d.lowers) })),
      h("label", { class: "row small grow-slider" }, say("directions.how", { layer: d.layer, p: percent(d.share) }), slider, out));
  }
  state.on(["edits"], () => { for (const turn of turns) turn(); });

  /** @param {any} d */
  const table = (d) => h("div", { class: "scroll-x", tabindex: "0", role: "region", "aria-label": say("directions.cosines") }, h("table", { class: "plain small" }, h("caption", {}, say("directions.cosines")),
    h("thead", {}, h("tr", {}, h("td", {}), d.directions.map((/** @type {any} */ x) => h("th", { scope: "col" }, x.name)))),
    h("tbody", {}, d.cosines.map((/** @type {number[]} */ row, /** @type {number} */ i) => h("tr", {}, h("th", { scope: "row" }, d.directions[i].name), row.map((x) => h("td", { class: "num", style: { background: signed(x * 0.6) } }, number(Number(x.toFixed(3))))))))));
}
