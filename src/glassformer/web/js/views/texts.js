/** Several texts at once: one number over them, in the model as it is and as it is changed. */

import { h, number, percent, put, shown } from "../dom.js";
import { editName } from "../edits.js";
import { live } from "../live.js";
import { fork, withSign } from "../ui.js";
import { say } from "../words.js";

/** @typedef {import("../store.js").Store} Store */

/** @returns {[string, string][]} */
const METRICS = () => [["probability", say("texts.probability")], ["logit_difference", say("texts.logit_difference")], ["rank", say("texts.rank")], ["entropy", say("texts.entropy")], ["surprise", say("texts.surprise")]];

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const held = () => state.get("table");
  const area = h("textarea", { class: "boxed", rows: "6", "aria-label": say("texts.lines"), value: held().texts.join("\n") });
  const metric = h("select", { "aria-label": say("texts.number") }, METRICS().map(([name, text]) => h("option", { value: name }, text)));
  const token = h("input", { type: "text", size: "9", "aria-label": say("texts.token"), placeholder: say("texts.first") });
  const against = h("input", { type: "text", size: "9", "aria-label": say("texts.above"), placeholder: say("texts.compared") });
  const [first, second] = [h("label", { class: "small" }, say("texts.tokenis"), token), h("label", { class: "small" }, say("texts.over"), against)];
  const body = h("div", { class: "scroll-x" });
  element.append(h("h2", {}, say("texts.title")), h("p", { class: "soft small" }, say("texts.say")),
    h("div", { class: "halves" }, !source.live ? null : h("form", { class: "fields-plain", onsubmit: (/** @type {Event} */ event) => { event.preventDefault(); keep(); } }, area, h("div", { class: "row" }, metric, first, second, h("button", { type: "submit" }, say("texts.measure")))), body));
  const reflect = () => {
    const now = held();
    metric.value = now.metric;
    token.value = now.token ?? "";
    against.value = now.against ?? "";
    if (document.activeElement !== area) area.value = now.texts.join("\n");
    first.hidden = ["entropy", "surprise"].includes(metric.value);
    second.hidden = metric.value !== "logit_difference";
  };
  const keep = () => state.set({ table: { texts: area.value.split("\n").filter((/** @type {string} */ t) => t.trim()), metric: metric.value, token: token.value || null, against: against.value || null } });
  metric.addEventListener("change", () => { keep(); reflect(); });
  state.on(["table"], reflect);
  reflect();
  /** The column that the rows are ordered by. */
  let order = "";
  live(body, state, ["model", "edits", "table"], async (signal) => {
    const now = held();
    if (!now.texts.length || (now.metric === "logit_difference" && !(now.token && now.against))) return null;
    return source.get("texts", { model: state.get("model"), texts: now.texts, edits: state.get("edits"), metric: now.metric, token: now.token, against: now.against }, { signal });
  }, draw, { always: true });

  /** @param {any} d */
  function draw(d) {
    const show = d.metric === "probability" ? (/** @type {number} */ x) => percent(x, 2) : number;
    const changed = d.mean.changed !== null;
    const columns = /** @type {[string, string][]} */ ([["plain", changed ? say("texts.plain") : say("texts.value")], ...(changed ? [["changed", say("texts.ischanged")], ["difference", say("texts.difference")]] : [])]);
    const rows = [...d.rows];
    if (order) rows.sort((a, b) => b[order] - a[order]);
    const largest = Math.max(1e-9, ...d.rows.map((/** @type {any} */ r) => Math.abs(changed ? r.difference : r.plain)));
    put(body, h("table", { class: "plain num texts-table" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, say("texts.text")), h("th", { scope: "col" }, say("texts.choice")),
      columns.map(([name, label]) => h("th", { scope: "col", "aria-sort": order === name ? "descending" : "none" }, h("button", { type: "button", class: "bare", onclick: () => { order = order === name ? "" : name; draw(d); } }, `${label}${order === name ? " ↓" : ""}`))), h("td", {}))),
    h("tbody", {}, rows.map((/** @type {any} */ r) => h("tr", {}, h("th", { scope: "row" }, h("button", { type: "button", class: "bare text-open", title: say("texts.open"), onclick: () => state.set({ text: r.text, position: null, query: null, key: null }) }, r.text)),
      h("td", { class: "mono" }, shown(r.plain_first), changed && r.changed_first !== r.plain_first ? ` → ${shown(r.changed_first)}` : ""),
      columns.map(([name]) => h("td", { "data-value": r[name], "data-column": name }, name === "difference" ? (d.metric === "probability" ? `${r[name] >= 0 ? "+" : "−"}${percent(Math.abs(r[name]), 2)}` : withSign(r[name])) : show(r[name]))),
      h("td", { class: "wide-bar" }, fork((changed ? r.difference : r.plain) / largest)))),
    h("tr", { class: "mean" }, h("th", { scope: "row" }, say("texts.mean", { n: d.rows.length })), h("td", {}), columns.map(([name]) => h("td", { "data-mean": name }, name === "difference" && d.metric === "probability" ? `${d.mean[name] >= 0 ? "+" : "−"}${percent(Math.abs(d.mean[name]), 2)}` : name === "difference" ? withSign(d.mean[name]) : show(d.mean[name]))), h("td", {})))),
    h("p", { class: "soft small" }, changed ? say("texts.changed", { edits: state.get("edits").map((/** @type {any} */ e) => editName(e, state.get("tokens"))).join("; ") }) : say("texts.switch")));
  }
}
