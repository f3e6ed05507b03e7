/** Training from the page: a pasted text, a run in a process of its own, stopped when one has seen enough. */

import { h } from "../dom.js";
import { say } from "../words.js";

/** @typedef {import("../store.js").Store} Store */

const LENGTHS = () => /** @type {[number, string][]} */ ([[100, say("train.100")], [400, say("train.400")], [1500, say("train.1500")]]);

/** @param {HTMLElement} element @param {any} source @param {Store} state @param {() => void} begun called once a run has begun */
export function mount(element, source, state, begun) {
  const text = h("textarea", { id: "learn-text", rows: "4", class: "boxed", spellcheck: "false", placeholder: say("train.paste") });
  const steps = h("select", { id: "learn-steps", "aria-label": say("train.long") }, LENGTHS().map(([n, name]) => h("option", { value: n, selected: n === 400 }, name)));
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  const said = h("span", { class: "soft small", role: "status" });
  const go = h("button", { type: "submit", class: "primary" }, say("train.go"));
  const stop = h("button", { type: "button", hidden: true, onclick: async () => {
    said.textContent = say("train.stopping");
    try {
      await source.send("/api/train/stop", {});
    } catch (error) {
      refuse(error);
    }
  } }, say("stop"));
  const form = h("form", { class: "fields-plain", "aria-label": say("train.own") }, h("label", { for: "learn-text" }, say("train.say")), text, h("div", { class: "row" }, steps, go, stop, said), problem);
  form.addEventListener("submit", async (/** @type {Event} */ event) => {
    event.preventDefault();
    problem.hidden = true;
    go.disabled = true;
    said.textContent = say("train.starting");
    try {
      const { name } = await source.send("/api/train", { text: text.value, steps: Number(steps.value) });
      said.textContent = "";
      state.set({ run: name });
      begun();
    } catch (error) {
      refuse(error);
    }
    go.disabled = false;
  });
  /** @param {unknown} error */
  function refuse(error) {
    said.textContent = "";
    problem.textContent = error instanceof Error ? error.message : String(error);
    problem.hidden = false;
  }
  element.append(form);
  /** Whether a run goes on that can be stopped here. @param {boolean} going */
  return (going) => {
    if (!going && !stop.hidden) said.textContent = "";
    stop.hidden = !going;
    go.hidden = going;
  };
}

/** How far a run has come. @param {any} d */
export function progress(d) {
  if (d.state !== "running" || !d.steps) return null;
  const bar = h("progress", { max: d.steps, value: d.step, "aria-label": say("train.steps", { name: d.name }) });
  return h("p", { class: "row small" }, bar, h("span", { class: "num" }, say("train.of", { n: d.step.toLocaleString(), all: d.steps.toLocaleString() })));
}
