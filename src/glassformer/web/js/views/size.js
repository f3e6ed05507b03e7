/** Size: where the parameters are, as a treemap, for this model and for GPT-3. */

import { h, hint, number, put } from "../dom.js";
import { live } from "../live.js";
import { treemap } from "../treemap.js";

/** @typedef {import("../store.js").Store} Store */

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  element.append(h("h2", {}, "Where the parameters are"));
  const two = h("div", { class: "two" });
  element.append(two);
  for (const name of [null, "gpt3"]) {
    const box = h("div", { class: "size" });
    two.append(box);
    const body = h("div", {});
    box.append(body);
    live(body, state, ["model"], async (signal) => source.get("size", name ? { name } : {}, { signal }), (data) => draw(body, data));
  }
}

/** @param {HTMLElement} body @param {any} data */
function draw(body, data) {
  const tally = data.tallies ? Object.values(data.tallies)[Object.keys(data.tallies).length - 1] : data;
  const parts = /** @type {any} */ (tally).parameters ?? /** @type {any} */ (tally).components ?? {};
  const list = Object.entries(parts).filter(([k, v]) => k !== "total" && typeof v === "number" && v > 0).map(([name, value]) => ({ name, value: /** @type {number} */ (value) }));
  const total = list.reduce((s, p) => s + p.value, 0);
  const map = h("div", { class: "treemap", role: "img", "aria-label": list.map((p) => `${p.name} ${((100 * p.value) / total).toFixed(1)}%`).join(", ") });
  for (const box of treemap(list, 100, 100)) {
    const cell = h("div", { class: "treecell" }, h("span", {}, box.name));
    cell.style.setProperty("left", `${box.x}%`);
    cell.style.setProperty("top", `${box.y}%`);
    cell.style.setProperty("width", `${box.w}%`);
    cell.style.setProperty("height", `${box.h}%`);
    cell.style.setProperty("--hue", String(({ embedding: 210, unembedding: 210, positions: 210, query: 255, key: 235, value: 275, output: 290 })[/** @type {"query"} */ (box.name)] ?? 30));
    map.append(hint(cell, () => `${box.name}\n${box.value.toLocaleString()} parameters\n${((100 * box.value) / total).toFixed(2)}% of ${total.toLocaleString()}`));
  }
  put(body, h("h3", {}, `${data.name}: ${total.toLocaleString()} parameters`), map,
    h("table", { class: "small" }, h("tbody", {}, list.map((p) => h("tr", {}, h("th", { scope: "row" }, p.name), h("td", {}, p.value.toLocaleString()), h("td", {}, `${number((100 * p.value) / total)}%`))))));
}
