/** What taught it: the passages of a small run's training text that changed most how it foretells a text. */

import { h, number, put, shown } from "../dom.js";
import { fork, runner, withSign } from "../ui.js";
import { say } from "../words.js";

/** @typedef {import("../store.js").Store} Store */

/** Letters of a sample that are asked about unless others are named. */
const LETTERS = 48;

/** @param {HTMLElement} element @param {any} source @param {Store} state @returns {(run: any) => void} called with what is known of the run that is shown */
export function mount(element, source, state) {
  const text = h("input", { type: "text", class: "boxed", "aria-label": say("taught.text") });
  const said = h("p", { class: "small", role: "status" });
  const out = h("div", {});
  const finding = runner("taught.find", said, async (signal) => {
    said.textContent = say("taught.back");
    put(out);
    draw(await source.get("influence", { name, text: text.value, top: 12 }, { signal }));
  }, "descent.stopped");
  const form = h("form", { class: "row circuit-form", onsubmit: (/** @type {Event} */ event) => { event.preventDefault(); finding.run(); } }, h("label", { class: "small grow" }, say("taught.label"), text), finding.button);
  const box = h("section", { class: "taught", hidden: true, "aria-label": say("taught.title") }, h("h3", {}, say("taught.title")), h("p", { class: "soft small" }, say("taught.say")), form, said, out);
  element.append(box);
  /** @type {string|null} */
  let name = null;

  /** @param {any} d */
  function draw(d) {
    const most = Math.max(1e-12, ...d.passages.map((/** @type {any} */ p) => Math.abs(p.effect)));
    const best = d.passages.reduce((/** @type {any} */ a, /** @type {any} */ b) => (b.effect > a.effect ? b : a));
    said.textContent = say("taught.said", { text: shown(d.text), of: d.of.toLocaleString(), x: withSign(best.effect) });
    put(out, h("div", { role: "list" }, d.passages.map((/** @type {any} */ p) => h("div", { role: "listitem", class: "passage", "data-passage": p.number, "data-effect": p.effect },
      h("span", { class: "passage-text small" }, p.text, " ", h("span", { class: "soft" }, p.origin.split("/").pop())), fork(p.effect / most), h("span", { class: "num small" }, withSign(p.effect))))),
    h("details", { class: "receipt num" }, h("summary", {}, say("receipt")), h("p", {}, say("taught.receipt", { steps: d.steps.toLocaleString(), precision: d.precision, loss: number(d.loss), recorded: number(d.recorded), gap: d.gap.toExponential(1), seconds: d.seconds.toFixed(1) }))));
  }

  return (run) => {
    box.hidden = !run || run.state === "running" || !run.checkpoints.length;
    if (run.name === name) return;
    finding.stop();
    name = run.name;
    said.textContent = "";
    put(out);
    const sample = run.samples[run.samples.length - 1]?.text ?? "";
    text.value = (sample || state.get("text")).slice(0, LETTERS);
  };
}
