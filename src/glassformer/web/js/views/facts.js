/** Facts: a layer's experts, where it has some, and neurons as questions with answers: what excites one, what it then writes, and an off switch. */

import { h, number, put, shown } from "../dom.js";
import { editName, sameThing } from "../edits.js";
import { live } from "../live.js";
import { fork, track, withSign } from "../ui.js";
import { say } from "../words.js";
import { mount as mountExperts } from "./experts.js";

/** @typedef {import("../store.js").Store} Store */

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const list = h("div", { class: "facts-list", role: "list", "aria-label": say("facts.list") });
  const card = h("div", { class: "fact" });
  const layer = h("input", { type: "number", min: 0, value: 0, "aria-label": say("facts.layer"), class: "short" });
  const neuron = h("input", { type: "number", min: 0, value: 0, "aria-label": say("facts.which"), class: "short" });
  const texts = h("textarea", { rows: "3", class: "boxed", spellcheck: "false", "aria-label": say("facts.own"), placeholder: say("facts.instead") });
  const form = h("form", { class: "row" }, h("label", { class: "small" }, say("facts.inlayer"), layer), h("label", { class: "small" }, say("facts.inneuron"), neuron), h("button", { type: "submit" }, say("facts.look")));
  /** @type {{layer: number, index: number}|null} */
  let chosen = null;
  let timer = 0;
  form.addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    choose({ layer: Number(layer.value), index: Number(neuron.value) });
  });
  texts.addEventListener("change", () => chosen && card_.refresh());
  mountExperts(element, source, state);
  element.append(...[h("h2", {}, say("facts.title")),
    h("p", { class: "soft small" }, say("facts.say")),
    list, card, source.live ? h("details", {}, h("summary", {}, say("facts.another")), form, texts) : null].filter(Boolean));

  /** @param {{layer: number, index: number}} one */
  function choose(one) {
    chosen = one;
    layer.value = String(one.layer);
    neuron.value = String(one.index);
    for (const button of /** @type {any} */ (list.querySelectorAll("[data-neuron]"))) button.setAttribute("aria-pressed", String(button.dataset.neuron === `${one.layer}.${one.index}`));
    card_.refresh();
  }

  /** @type {any[]} */
  let here = [];
  live(list, state, ["text", "model", "position", "token", "against"], async (signal) => source.get("neurons", { text: state.get("text"), model: state.get("model"), edits: [], position: state.get("position") ?? -1, token: state.get("token"), against: state.get("against"), top: 12 }, { signal }), (d) => {
    here = d.neurons.slice(0, 12);
    const most = Math.max(...here.map((n) => Math.abs(n.total)), 1e-9);
    put(list, here.map((n) => h("div", { role: "listitem" }, h("button", { type: "button", class: "fact-row", "data-neuron": `${n.layer}.${n.index}`, "data-total": n.total, onclick: () => choose(n) },
      h("span", { class: "small" }, say("at.neuron", { layer: n.layer, neuron: n.index })), fork(n.total / most), h("span", { class: "num small" }, withSign(n.total)), h("span", { class: "mono small writes" }, `→ ${n.raises.slice(0, 4).map(shown).join(" ")}`)))));
    choose(here.reduce((a, b) => (b.total > a.total ? b : a)));
  });
  const card_ = live(card, state, ["model", "edits"], async (signal) => {
    clearTimeout(timer);
    if (!chosen) return null;
    const own = texts.value.split("\n").map((/** @type {string} */ t) => t.trim()).filter(Boolean);
    return source.get("exciting", { model: state.get("model"), layer: chosen.layer, neuron: chosen.index, texts: own }, { signal });
  }, draw);

  /** @param {any} d */
  function draw(d) {
    // Passages come as they are read.
    if (d.done < d.of && source.live) timer = window.setTimeout(() => card.isConnected && !element.hidden && card_.refresh(true), 1500);
    const edit = { kind: "ablate_neuron", layer: d.layer, neuron: d.neuron, position: null };
    const off = state.get("edits").some((/** @type {any} */ e) => sameThing(e, edit));
    const mine = here.find((n) => n.layer === d.layer && n.index === d.neuron);
    const most = Math.max(...d.passages.map((/** @type {any} */ p) => Math.abs(p.output)), 1e-9);
    const answer = (/** @type {string} */ name, /** @type {string[]} */ tokens) => h("p", { class: "small" }, `${name} `, tokens.map((t) => h("span", { class: "chip mono" }, shown(t))));
    put(card, h("h3", {}, say("at.Neuron", { layer: d.layer, neuron: d.neuron })),
      h("div", { class: "question-answer" },
        h("section", { "aria-label": say("facts.excites") }, h("h4", {}, say("facts.answers")),
          h("div", { role: "list" }, d.passages.map((/** @type {any} */ p) => h("div", { role: "listitem", class: "passage" }, h("span", { class: "passage-text" }, p.before, h("mark", {}, p.token), p.after), track(Math.abs(p.output) / most), h("span", { class: "num small", "data-output": p.output }, withSign(p.output))))),
          h("p", { class: "soft small", role: "status" }, d.own ? say("facts.yours") : d.done < d.of ? say("facts.reading", { n: d.done, all: d.of }) : say("facts.strongest", { all: d.of })),
          answer(say("facts.alone"), d.excited_by)),
        h("div", { class: "arrow", "aria-hidden": "true" }, "→"),
        h("section", { "aria-label": say("facts.writesit") }, h("h4", {}, say("facts.says")), answer(say("facts.likelier"), d.raises), answer(say("facts.less"), d.lowers), h("p", { class: "soft small" }, say("facts.negative")),
          mine ? h("p", { class: "small" }, say("facts.here", { x: number(mine.activation), change: withSign(-mine.total) })) : null,
          source.live ? h("button", { type: "button", "aria-pressed": String(off), title: editName(edit, []), onclick: () => state.set({ edits: off ? state.get("edits").filter((/** @type {any} */ e) => !sameThing(e, edit)) : [...state.get("edits"), edit] }) }, off ? say("facts.on") : say("facts.off")) : null)));
  }
}
