/** Lenses: the one that is read through, what it claims of a token put into the stream beside what the model then says, and how right each is. */

import { h, number, percent, put, shown } from "../dom.js";
import { live } from "../live.js";
import { withSign } from "../ui.js";
import { inQuotes, say } from "../words.js";

/** @typedef {import("../store.js").Store} Store */

/** A choice among the plain lens and those that were given at the start; empty where there is but the plain one. @param {any} source @param {Store} state */
export function chooser(source, state) {
  const element = h("div", { class: "row" });
  state.on(["through"], draw);
  /** @type {string[]} */
  let names = [];
  function draw() {
    const now = state.get("through") ?? "";
    const options = [["", say("lenses.plain")], ...[...new Set([...names, now])].filter(Boolean).map((name) => [name, name])];
    if (options.length < 2) return put(element);
    const select = h("select", { id: "lens-through", "aria-label": say("lenses.which"), onchange: () => state.set({ through: select.value || null }) }, options.map(([value, name]) => h("option", { value }, name)));
    select.value = now;
    put(element, h("label", { class: "row small" }, say("lenses.which"), select));
  }
  draw();
  if (source.live) source.get("models", {}).then((/** @type {any} */ d) => { names = d.lenses; draw(); }, () => {});
  return element;
}

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const layer = h("input", { type: "number", min: "0", required: true, class: "narrow", "aria-label": say("lenses.layer") });
  const token = h("input", { type: "text", required: true, size: "8", "aria-label": say("lenses.token") });
  const swap = h("input", { type: "text", size: "8", "aria-label": say("lenses.swap") });
  const strength = h("input", { type: "number", step: "any", value: "0.5", class: "narrow", "aria-label": say("lenses.strength") });
  const form = h("form", { class: "row lens-edit" }, h("label", { class: "small" }, say("lenses.token"), token), h("label", { class: "small" }, say("lenses.swap"), swap),
    h("label", { class: "small" }, say("lenses.layer"), layer), h("label", { class: "small" }, say("lenses.strength"), strength), h("button", { type: "submit" }, say("lenses.put")));
  const [edited, agreed] = [h("div", { class: "lens-edited" }), h("div", { class: "lens-agreed" })];
  element.append(h("details", {}, h("summary", {}, say("lenses.title")), h("p", { class: "soft small" }, say("lenses.say")), form, edited,
    h("div", { class: "row" }, h("button", { type: "button", id: "lens-agreement", onclick: () => { comparing = true; compare.refresh(); } }, say("lenses.right")), h("span", { class: "soft small" }, say("lenses.right.say"))), agreed));
  const middle = () => { if (!layer.value && state.get("layers")) layer.value = String(Math.floor(state.get("layers") / 2)); };
  state.on(["layers", "model"], middle);
  middle();
  const text = () => ({ text: state.get("text"), model: state.get("model"), through: state.get("through") ?? null });
  /** What was asked for, or null. @type {any} */
  let asked = null;
  let comparing = false;
  state.on(["text", "model"], () => { [asked, comparing] = [null, false]; put(edited); put(agreed); });
  const view = live(edited, state, ["text", "model", "position", "through"], async (signal) => (asked ? source.get("lens_edit", { ...text(), position: state.get("position") ?? -1, ...asked }, { signal }) : null), drawEdit, { clear: () => put(edited) });
  const compare = live(agreed, state, ["text", "model", "through"], async (signal) => (comparing ? source.get("lens_agreement", text(), { signal }) : null), drawAgreement, { clear: () => put(agreed) });
  form.addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    asked = { layer: Number(layer.value), token: token.value, swap: swap.value || null, strength: Number(strength.value) };
    view.refresh();
  });

  /** @param {any} d */
  function drawEdit(d) {
    const cells = (/** @type {any} */ row) => [row.claimed, row.measured].flatMap((p) => [p.before, p.after]).map((p) => h("td", { class: "num" }, percent(p, 2)));
    const rows = [...d.tokens, ...d.top.filter((/** @type {any} */ row) => !d.tokens.some((/** @type {any} */ t) => t.id === row.id))];
    const told = { token: inQuotes(shown(d.tokens[0].token)), layer: d.layer, position: d.position, kl: number(d.kl), r: d.correlation === null ? "–" : number(d.correlation) };
    put(edited, h("p", { class: "sentence" }, say(d.swap ? "lenses.swapped" : "lenses.said", { ...told, other: d.swap ? inQuotes(shown(d.tokens[1].token)) : "" })),
      h("div", { class: "scroll-x", tabindex: "0", role: "region", "aria-label": say("lenses.title") }, h("table", { class: "plain small" },
        h("thead", {}, h("tr", {}, ["lenses.word", "lenses.claims", "lenses.claims.after", "lenses.model", "lenses.model.after"].map((key) => h("th", { scope: "col" }, say(key))))),
        h("tbody", {}, rows.map((row) => h("tr", {}, h("th", { scope: "row", class: "mono" }, shown(row.token)), cells(row)))))));
  }

  /** @param {any} d */
  function drawAgreement(d) {
    const names = [...new Set(d.rows.map((/** @type {any} */ r) => r.lens))];
    const layers = [...new Set(d.rows.map((/** @type {any} */ r) => r.layer))];
    const told = (/** @type {any} */ lens, /** @type {any} */ at, /** @type {string} */ what) => {
      const value = d.rows.find((/** @type {any} */ r) => r.lens === lens && r.layer === at)?.[what] ?? null;
      return h("td", { class: "num" }, value === null ? "–" : withSign(value));
    };
    put(agreed, h("div", { class: "scroll-x", tabindex: "0", role: "region", "aria-label": say("lenses.right") }, h("table", { class: "plain small" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, say("depth.after")), names.flatMap((name) => ["lenses.agrees", "lenses.share"].map((key) => h("th", { scope: "col" }, say(key, { lens: name === "plain" ? say("lenses.plain") : name })))))),
      h("tbody", {}, layers.map((at) => h("tr", {}, h("th", { scope: "row" }, at), names.flatMap((name) => [told(name, at, "correlation"), told(name, at, "share")])))))));
  }
}
