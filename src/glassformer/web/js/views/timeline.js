/** Writing on: the model continues the text with the sliders as they stand; every step can be gone back to. */

import { h, hint, percent, put, shown } from "../dom.js";
import { carried } from "../edits.js";
import { track } from "../ui.js";
import { onSpoken, said as spoken, say } from "../words.js";

/** @typedef {import("../store.js").Store} Store */

/** Forms of an answer; what some of them ask for in words. */
const FORMS = ["", "json", "schema", "regex", "choice"];
const WORDED = ["schema", "regex", "choice"];

/** What the form left of the model's probability and what it took, as one bar, and the model's own choice. @param {any} step */
function taken(step) {
  const own = step.unconstrained;
  return h("div", { class: "form-took", role: "group", "aria-label": say("write.took.list") },
    track(step.removed, 1 - step.removed, "var(--warm)"),
    h("p", { class: "small" }, say("write.took", { a: percent(step.removed, 2) }),
      own.id === step.id ? say("write.own") : say("write.other", { a: shown(own.token), b: percent(own.probability, 2) })));
}

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const go = h("button", { type: "button", id: "write-on", disabled: !source.live, onclick: () => (running ? running.abort() : start()) });
  const many = h("input", { type: "number", min: "1", max: "500", value: "24", "aria-label": spoken("write.many"), class: "narrow" });
  const seed = h("input", { type: "number", min: "0", placeholder: spoken("write.any"), "aria-label": spoken("write.seed"), class: "narrow" });
  const wording = h("input", { type: "text", hidden: true, "aria-label": spoken("write.wording") });
  const form = h("select", { "aria-label": spoken("write.form"), onchange: () => { wording.hidden = !WORDED.includes(form.value); wording.placeholder = wording.hidden ? "" : say(`form.${form.value}.say`); } },
    FORMS.map((kind) => h("option", { value: kind }, spoken(`form.${kind || "any"}`))));
  const tokens = h("div", { class: "chips mono", role: "listbox", "aria-label": spoken("write.list") });
  const slider = h("input", { type: "range", min: 0, max: 0, value: 0, step: 1, "aria-label": spoken("write.step"), hidden: true, oninput: () => choose(Number(slider.value)) });
  const detail = h("div", {});
  const said = h("p", { class: "small", role: "status" });
  element.append(h("div", { class: "row" }, go, h("label", { class: "small" }, spoken("write.tokens"), many), h("label", { class: "small" }, spoken("write.seeded"), seed), h("label", { class: "small" }, spoken("write.formed"), form), wording), said, tokens, slider, detail);
  /** @type {AbortController|null} */
  let running = null;
  const call = () => { go.textContent = say(running ? "stop" : "write.on"); };
  call();
  onSpoken(call);
  /** @type {any[]} */
  let steps = [];
  let prompt = "";
  let chosen = -1;

  async function start() {
    if (!state.get("text")) return;
    const mine = (running = new AbortController());
    prompt = state.get("text");
    steps = [];
    chosen = -1;
    put(tokens);
    put(detail);
    call();
    said.textContent = say("write.writing");
    const how = { temperature: state.get("temperature"), top_k: state.get("top_k") || null, top_p: state.get("top_p") < 1 ? state.get("top_p") : null, min_p: state.get("min_p") || null };
    try {
      const asked = { text: prompt, model: state.get("model"), edits: state.get("edits"), max_tokens: Math.max(1, Number(many.value) || 24), seed: seed.value === "" ? null : Number(seed.value), form: form.value ? { kind: form.value, text: wording.value } : null, ...how };
      for await (const event of source.stream("/api/generate", asked, { signal: mine.signal })) {
        if (event.done) break;
        add(event);
      }
      said.textContent = steps.length ? say("write.done", { a: steps.length }) : say("write.ended");
    } catch (error) {
      said.textContent = mine.signal.aborted ? say("write.stopped", { a: steps.length }) : error instanceof Error ? error.message : String(error);
    } finally {
      running = null;
      call();
    }
  }

  /** @param {any} event */
  function add(event) {
    const i = steps.length;
    steps.push(event);
    const chip = h("button", { type: "button", role: "option", class: "chip", "data-step": i, onclick: () => choose(i) }, shown(event.token || event.text));
    chip.style.setProperty("--weight", String(event.probability ?? 0));
    chip.classList.add("sure");
    if (event.removed !== undefined) {
      chip.classList.add("held");
      chip.style.setProperty("--removed", String(event.removed));
    }
    tokens.append(hint(chip, () => say("write.hint", { a: i + 1, b: percent(event.probability ?? 0, 2), c: event.removed === undefined ? "" : say("write.hint.took", { a: percent(event.removed, 2) }) })));
    slider.hidden = false;
    slider.max = String(i);
    choose(i);
  }

  /** @param {number} i */
  function choose(i) {
    chosen = i;
    slider.value = String(i);
    for (const chip of /** @type {any} */ (tokens.children)) {
      const here = Number(chip.dataset.step) === i;
      chip.setAttribute("aria-selected", String(here));
      chip.tabIndex = here ? 0 : -1;
      chip.classList.toggle("later", Number(chip.dataset.step) > i);
    }
    const step = steps[i];
    const upto = prompt + steps.slice(0, i).map((s) => s.text).join("");
    const largest = step.alternatives[0]?.probability || 1;
    put(detail,
      h("p", { class: "small soft" }, say("write.taken", { a: i + 1, b: steps.length, c: shown(step.token || step.text), d: percent(step.probability ?? 0, 2) })),
      step.removed === undefined ? null : taken(step),
      h("div", { role: "list", "aria-label": say("write.others") }, step.alternatives.map((/** @type {any} */ a) => h("div", { role: "listitem" }, h("button", {
        type: "button", class: a.id === step.id ? "prob taken" : "prob", "aria-label": say("write.go", { a: shown(a.token), b: percent(a.probability) }),
        onclick: () => state.set({ text: upto + a.token, position: null, edits: carried(state.get("edits")), query: null, key: null }),
      }, h("span", { class: "what mono" }, shown(a.token)), track(a.probability / largest), h("span", { class: "num" }, percent(a.probability)))))),
      h("button", { type: "button", class: "small", onclick: () => state.set({ text: upto + step.text, position: null, edits: carried(state.get("edits")), query: null, key: null }) }, say("write.keep")));
  }

  tokens.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1, Home: -1e9, End: 1e9 }[event.key];
    if (!by || !steps.length) return;
    event.preventDefault();
    choose(Math.max(0, Math.min(steps.length - 1, chosen + by)));
    /** @type {any} */ (tokens.children[chosen]).focus();
  });
}
