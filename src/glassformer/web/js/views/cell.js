/** One attention cell, from query · key to its effect on a logit, with the real numbers. */

import { h, number, percent, put, shown } from "../dom.js";
import { signed } from "../colour.js";
import { live } from "../live.js";

/** @typedef {import("../store.js").Store} Store */

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const body = h("div", { class: "steps" });
  element.append(body);
  live(body, state, ["text", "model", "edits", "layer", "head", "query", "key", "token", "count"], async (signal) => {
    const [query, key, head] = ["query", "key", "head"].map((k) => state.get(k));
    if (query === null || key === null || head === null || Math.max(query, key) >= state.get("count")) {
      put(body, h("p", { class: "soft small" }, "Choose a cell to take it apart."));
      return null;
    }
    return source.get("cell", {
      text: state.get("text"), model: state.get("model"), edits: state.get("edits"), layer: state.get("layer"), head, query, key,
    }, { signal });
  }, (data) => draw(data));

  /** @param {any} d */
  function draw(d) {
    const tokens = state.get("tokens");
    const who = (/** @type {number} */ i) => `“${shown(tokens[i] ?? "")}”`;
    const half = d.turns.length;
    put(body,
      h("h3", {}, `${who(d.query)} looks at ${who(d.key)}: layer ${d.layer}, head ${d.head}`),
      step("Query · key", "Σᵢ qᵢ kᵢ, after rotation", number(d.dot), strip(d.products)),
      half ? h("p", { class: "soft small" }, `Rotated by distance ${d.query - d.key}: pairs turn by ${number(d.turns[0])} … ${number(d.turns[half - 1])} radians.`) : null,
      step("Scale", `${number(d.dot)} × ${number(d.scale)}${d.softcap ? `, soft-capped at ${d.softcap}` : ""}`, d.visible ? number(d.score) : "−∞"),
      step("Softmax", `exp(${d.visible ? number(d.score) : "−∞"} − ${number(d.log_normaliser)})`, percent(d.weight, 2), null, d.row_rank === 0 ? "the row's largest" : `number ${d.row_rank + 1} of its row`),
      step("Value", `weight × value of ${who(d.key)}`, `norm ${number(d.write_norm)} written`, strip(d.handed)),
      step("Effect", `on the logit after ${who(d.position)} (${d.unit})`, `${d.effect >= 0 ? "+" : "−"}${number(Math.abs(d.effect))}`, strip(d.effects)),
    );
  }

  /** @param {string} name @param {string} formula @param {string} value @param {any} [detail] @param {string} [remark] */
  function step(name, formula, value, detail, remark) {
    return h("div", { class: "step" }, h("div", { class: "row spread" }, h("strong", {}, name), h("span", { class: "mono soft" }, formula), h("span", { class: "num value" }, value)),
      remark ? h("span", { class: "soft small" }, remark) : null, detail ?? null);
  }

  /** One box for each dimension, blue for more and orange for less. @param {number[]} values */
  function strip(values) {
    const largest = Math.max(...values.map(Math.abs), 1e-12);
    const out = h("div", { class: "strip", role: "img", "aria-label": `${values.length} dimensions; largest ${number(largest)} in size` });
    values.forEach((v, i) => {
      const box = h("span", { title: `dimension ${i}: ${number(v)}` });
      box.style.setProperty("background", signed(v / largest));
      out.append(box);
    });
    return out;
  }
}
