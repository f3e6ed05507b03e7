/** Find a head, a neuron, an expert or a token by what it does; fetched when it is first opened. */

import { h, number, put, shown } from "./dom.js";
import { fork } from "./ui.js";
import { say } from "./words.js";

/** @typedef {import("./store.js").Store} Store */

/** @returns {[string, string][]} */
const WHAT = () => [
  ["heads_reading", say("find.heads_reading")], ["heads_adding", say("find.heads_adding")], ["neurons_writing", say("find.neurons_writing")],
  ["experts", say("find.experts")], ["tokens", say("find.tokens")],
];
const SAID = { weight: "find.weight", cosine: "find.cosine", "mean weight": "find.mean", letters: "find.letters" };

/** @param {any} source @param {Store} state @returns {HTMLDialogElement} */
export function finder(source, state) {
  const what = h("select", { "aria-label": say("find.what") }, WHAT().map(([name, text]) => h("option", { value: name }, text)));
  const words = h("input", { type: "text", size: "14", "aria-label": say("find.token"), placeholder: say("find.space") });
  const from = h("select", { "aria-label": say("find.reads") });
  const to = h("select", { "aria-label": say("find.read") });
  const places = h("span", { class: "row" }, h("label", { class: "small" }, say("find.from"), from), h("label", { class: "small" }, say("find.to"), to));
  const said = h("p", { class: "small", role: "status" });
  const rows = h("div", { class: "waterfall found", role: "list" });
  const form = h("form", { class: "row" }, what, words, places, h("button", { type: "submit", class: "primary" }, say("find.go")));
  const dialog = /** @type {HTMLDialogElement} */ (h("dialog", { "aria-label": say("find.title"), class: "chooser" },
    h("div", { class: "row spread" }, h("h2", {}, say("find.title")), h("form", { method: "dialog" }, h("button", { "aria-label": say("close") }, say("close")))), form, said, rows));
  const reflect = () => {
    places.hidden = what.value !== "heads_reading";
    words.hidden = !["heads_adding", "neurons_writing", "tokens"].includes(what.value);
    words.placeholder = what.value === "tokens" ? say("find.spelling") : say("find.empty");
  };
  what.addEventListener("change", reflect);
  const begin = () => {
    const tokens = state.get("tokens");
    for (const [select, at] of /** @type {[any, number][]} */ ([[from, state.get("position") ?? tokens.length - 1], [to, Math.max(0, tokens.length - 2)]])) {
      const kept = select.value;
      put(select, tokens.map((/** @type {string} */ t, /** @type {number} */ i) => h("option", { value: i }, `${i} ${shown(t)}`)));
      select.value = kept && Number(kept) < tokens.length ? kept : String(at);
    }
    reflect();
  };
  form.addEventListener("submit", async (/** @type {Event} */ event) => {
    event.preventDefault();
    rows.setAttribute("aria-busy", "true");
    said.textContent = "";
    try {
      const asked = { text: state.get("text"), model: state.get("model"), edits: state.get("edits"), what: what.value, top: 24 };
      if (what.value === "heads_reading") Object.assign(asked, { position: Number(from.value), key: Number(to.value) });
      else if (what.value === "tokens") Object.assign(asked, { letters: words.value });
      else if (what.value !== "experts") Object.assign(asked, { token: words.value || null, position: state.get("position") ?? -1 });
      draw(await source.get("find", asked));
    } catch (error) {
      put(rows);
      said.textContent = error instanceof Error ? error.message : String(error);
    }
    rows.removeAttribute("aria-busy");
  });

  /** @param {any} d */
  function draw(d) {
    const most = Math.max(1e-9, ...d.rows.map((/** @type {any} */ r) => Math.abs(r.value)));
    said.textContent = d.rows.length ? say("find.found", { n: d.rows.length, all: d.count.toLocaleString("en"), token: d.token ? say("find.for", { token: shown(d.token) }) : "", by: say(SAID[/** @type {"weight"} */ (d.unit)] ?? "find.add", { unit: d.unit }) }) : say("find.nothing");
    put(rows, d.rows.map((/** @type {any} */ r) => h("div", { role: "listitem" }, h("button", { type: "button", class: "part", "data-value": r.value, onclick: () => { dialog.close(); open(r, d); } },
      h("span", { class: "small" }, name(r)), fork(r.value / most), h("span", { class: "num small" }, number(r.value))))));
  }
  const name = (/** @type {any} */ r) => (r.kind === "head" ? say("at.head", r) : r.kind === "neuron" ? say("at.neuron", { layer: r.layer, neuron: r.index }) : r.kind === "expert" ? say("at.part", { layer: r.layer, part: say("part.expert", { n: r.expert }) }) : say("find.one", { token: shown(r.token), id: r.id }));

  /** To where the part is seen. @param {any} r @param {any} d */
  function open(r, d) {
    if (r.kind === "head") state.set({ tab: "attention", layer: r.layer, head: r.head, query: d.query ?? null, key: d.query === undefined ? null : d.key });
    else if (r.kind === "token") state.set({ tab: "why", token: r.token });
    else {
      const edit = r.kind === "neuron" ? { kind: "ablate_neuron", layer: r.layer, neuron: r.index, position: null } : { kind: "ablate_expert", layer: r.layer, expert: r.expert, position: null };
      state.set({ tab: "why", edits: [...state.get("edits"), edit] });
    }
  }
  dialog.addEventListener("begin", begin);
  begin();
  return dialog;
}
