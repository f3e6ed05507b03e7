/** Depth: the lens table, and one token's journey through the layers. */

import { css, inkOn } from "../colour.js";
import { h, hint, number, percent, put, shown } from "../dom.js";
import { live } from "../live.js";
import { placeName } from "../ui.js";
import { say } from "../words.js";
import { chooser, mount as mountLenses } from "./lenses.js";

/** @typedef {import("../store.js").Store} Store */

const COLUMNS = 16;

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const table = h("div", { class: "scroll-x" });
  const journey = h("div", { class: "journey" });
  const pager = h("div", { class: "row" });
  const lenses = h("div", {});
  const surprise = h("div", { class: "surprises" });
  element.append(h("div", { class: "halves" },
    h("div", {}, h("h2", {}, say("depth.title")), h("p", { class: "soft small" }, say("depth.say")), chooser(source, state), pager, table, lenses, h("h2", {}, say("depth.surprise")), h("p", { class: "soft small" }, say("depth.surprise.say")), surprise),
    h("div", {}, h("h2", {}, say("depth.journey")), h("p", { class: "soft small" }, say("depth.journey.say")), journey)));
  const window_ = () => {
    const n = state.get("count");
    const at = state.get("position") ?? n - 1;
    const start = Math.max(0, Math.min(n - COLUMNS, at - COLUMNS + 1));
    return [start, Math.min(n, start + COLUMNS)];
  };
  if (source.live && !source.embedded) mountLenses(lenses, source, state);
  live(table, state, ["text", "model", "edits", "position", "count", "through"], async (signal) => {
    if (!state.get("text") || !state.get("count")) return null;
    const [start, stop] = window_();
    return source.get("lens", { text: state.get("text"), model: state.get("model"), edits: state.get("edits"), start, stop, top: 3, ...(state.get("through") ? { through: state.get("through") } : {}) }, { signal });
  }, (data) => {
    const tokens = state.get("tokens");
    put(pager, h("span", { class: "soft small" }, say("depth.positions", { a: data.positions[0], b: data.positions[data.positions.length - 1], c: tokens.length })));
    const head = h("tr", {}, h("th", { scope: "col" }, say("depth.after")), data.positions.map((/** @type {number} */ p) => h("th", { scope: "col", class: "mono" }, shown(tokens[p] ?? ""))));
    put(table, h("table", { class: "lens" }, h("thead", {}, head), h("tbody", {}, [...data.rows].reverse().map((/** @type {any} */ row) =>
      h("tr", {}, h("th", { scope: "row" }, placeName(row.place)), row.cells.map((/** @type {any} */ cell) => {
        const [best] = cell.top;
        const td = h("td", { class: "mono" }, shown(best.token));
        td.style.setProperty("background", css(best.probability));
        td.style.setProperty("color", inkOn(best.probability));
        return hint(td, () => cell.top.map((/** @type {any} */ t) => `${shown(t.token)}  ${percent(t.probability, 2)}`).join("\n") + say("depth.cell", { a: cell.entropy.toFixed(2), b: cell.rank + 1, c: percent(cell.followed, 2) }));
      }))))));
  });
  live(journey, state, ["text", "model", "edits", "position", "count"], async (signal) => {
    if (!state.get("text") || !state.get("count")) return null;
    return source.get("journey", { text: state.get("text"), model: state.get("model"), edits: state.get("edits"), position: state.get("position") ?? -1 }, { signal });
  }, (data) => {
    const largest = Math.max(...data.steps.map((/** @type {any} */ s) => s.added_norm));
    put(journey, h("p", { class: "small" }, say("depth.following", { a: shown(data.followed.token), b: data.position })), data.steps.map((/** @type {any} */ step) => {
      const bar = h("span", { class: `bar ${step.kind}` });
      bar.style.setProperty("--share", String(step.added_norm / largest));
      const chance = h("span", { class: "dot" });
      chance.style.setProperty("left", `${100 * (step.followed ?? 0)}%`);
      const name = step.kind === "embed" ? say("place.embedding") : `${step.layer} · ${say(step.kind === "attn" ? "place.attention" : "place.feed_forward")}`;
      return hint(h("div", { class: "hop" }, h("span", { class: "small" }, name), h("span", { class: "track" }, bar), h("span", { class: "lane" }, chance),
        h("span", { class: "mono small" }, step.top.length ? shown(step.top[0].token) : "")),
      () => say("depth.added", { a: number(step.added_norm), b: number(step.norm), c: number(step.turned) }) + (step.followed === null ? "" : say("depth.has", { a: shown(data.followed.token), b: percent(step.followed, 2), c: step.rank + 1 })));
    }));
  });
  live(surprise, state, ["text", "model", "edits", "count"], async (signal) => {
    put(surprise);
    return state.get("count") < 2 ? null : source.get("surprise", { text: state.get("text"), model: state.get("model"), edits: state.get("edits") }, { signal });
  }, (d) => {
    const tokens = state.get("tokens");
    put(surprise, h("p", { class: "small" }, say("depth.surprise.mean", { a: number(d.mean), b: number(Math.exp(d.mean)), c: number(d.uniform) })),
      h("div", { class: "chips mono", role: "list" }, d.losses.map((/** @type {number} */ loss, /** @type {number} */ i) => {
        const share = Math.min(1, loss / d.uniform);
        const chip = h("button", { type: "button", class: "chip", "data-surprise": loss, style: { background: css(share), color: inkOn(share) }, onclick: () => state.set({ position: i }) }, shown(tokens[i + 1] ?? ""));
        return h("span", { role: "listitem" }, hint(chip, () => say("depth.surprise.one", { a: shown(tokens[i + 1] ?? ""), b: number(loss), c: percent(Math.exp(-loss), 2) })));
      })));
  });
}
