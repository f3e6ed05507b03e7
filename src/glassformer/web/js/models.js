/** Choosing the model: the catalogue, what is open, runs of one's own and their checkpoints, or any path or name. */

import { h, percent, put } from "./dom.js";
import { bytes } from "./ui.js";
import { said as spoken, say } from "./words.js";

/** @typedef {import("./store.js").Store} Store */

/** What may be laid beside the current model: open models, and every checkpoint. @param {any} source @returns {Promise<[string, string][]>} */
export async function choices(source) {
  const [{ models }, { runs }] = await Promise.all([source.get("models", {}), source.get("runs", {})]);
  return [
    ...models.filter((/** @type {any} */ m) => m.open).map((/** @type {any} */ m) => [m.name, m.name]),
    ...runs.flatMap((/** @type {any} */ r) => r.checkpoints.map((/** @type {number} */ step) => [`run:${r.name}@${step}`, say("model.step", { a: r.name, b: step })])),
  ];
}

/** The button that names the model, and its dialog. @param {any} source @param {Store} state */
export function chooser(source, state) {
  const button = h("button", { type: "button", class: "model", "aria-haspopup": "dialog", disabled: !source.live, onclick: () => { dialog.showModal(); list(); } });
  const said = h("p", { class: "small", role: "status" });
  const meter = h("progress", { max: 1, value: 0, hidden: true, "aria-label": spoken("model.opening") });
  const stop = h("button", { type: "button", class: "small", hidden: true, onclick: () => opening?.abort() }, spoken("model.cancel"));
  const catalogue = h("div", { class: "models" });
  const custom = h("input", { type: "text", "aria-label": spoken("model.path.say"), placeholder: spoken("model.path"), size: "30" });
  const form = h("form", { class: "row" }, custom, h("button", { type: "submit" }, spoken("session.open")));
  form.addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    if (custom.value.trim()) open(custom.value.trim());
  });
  const dialog = h("dialog", { "aria-label": spoken("model.choose"), class: "chooser" },
    h("div", { class: "row spread" }, h("h2", {}, spoken("model.which")), h("form", { method: "dialog" }, h("button", { "aria-label": spoken("close") }, spoken("close")))),
    said, h("div", { class: "row" }, meter, stop), catalogue, h("h3", {}, spoken("model.another")), form);
  /** @type {AbortController|null} */
  let opening = null;

  async function list() {
    try {
      const [{ models, current }, { runs }] = await Promise.all([source.get("models", {}), source.get("runs", {})]);
      const here = state.get("model") ?? current;
      put(catalogue,
        h("h3", {}, say("model.catalogue")), models.map((/** @type {any} */ m) => h("button", {
          type: "button", class: "entry", "data-model": m.name, "aria-pressed": String(m.name === here), onclick: () => open(m.name),
        }, h("strong", {}, m.name), m.open ? h("span", { class: "small badge" }, say("model.badge")) : null, h("span", { class: "soft small" }, [m.summary, m.licence, bytes(m.bytes)].filter(Boolean).join(" · ")))),
        runs.length ? h("h3", {}, say("model.runs")) : null, runs.map((/** @type {any} */ r) => h("button", {
          type: "button", class: "entry", "data-model": `run:${r.name}`, disabled: !r.checkpoints.length, onclick: () => open(`run:${r.name}@${r.checkpoints[r.checkpoints.length - 1]}`),
        }, h("strong", {}, r.name), h("span", { class: "soft small" }, say("model.run", { a: r.step, b: r.steps ? say("model.of", { a: r.steps }) : "", c: r.state })))));
    } catch (error) {
      said.textContent = error instanceof Error ? error.message : String(error);
    }
  }

  /** @param {string} name */
  async function open(name) {
    opening?.abort();
    const mine = (opening = new AbortController());
    said.textContent = say("model.being", { a: name });
    meter.hidden = stop.hidden = false;
    meter.removeAttribute("value");
    try {
      for await (const event of source.stream("/api/open", { source: name }, { signal: mine.signal })) {
        if (event.model) {
          state.set({ model: event.model, position: null, edits: [], query: null, key: null, layer: 0, head: 0, token: null, against: null });
          said.textContent = say("model.isopen", { a: event.name });
          dialog.close();
        } else {
          if (event.total) meter.value = event.done / event.total;
          said.textContent = `${event.what}${event.total ? `: ${percent(event.done / event.total, 0)}` : ""}`;
        }
      }
    } catch (error) {
      said.textContent = mine.signal.aborted ? say("model.cancelled") : error instanceof Error ? error.message : String(error);
    } finally {
      if (mine === opening) meter.hidden = stop.hidden = true;
    }
  }

  // With a run open, its checkpoints are beside its name: the view that is open shows another step of the same head.
  const slider = h("input", { type: "range", min: 0, max: 0, value: 0, step: 1, "aria-label": spoken("model.checkpoint"), onchange: () => state.set({ model: `run:${run}@${steps[slider.value]}`, edits: [], query: null, key: null }) });
  const checkpoints = h("div", { class: "row checkpoints", hidden: true }, slider);
  let run = "";
  /** @type {number[]} */
  let steps = [];
  async function stepsOf() {
    const found = /^run:(.*)@(\d+)$/.exec(state.get("model") ?? "");
    checkpoints.hidden = !found;
    if (!found) return;
    run = found[1];
    const { runs } = await source.get("runs", {}).catch(() => ({ runs: [] }));
    steps = runs.find((/** @type {any} */ r) => r.name === run)?.checkpoints ?? [];
    slider.max = String(Math.max(0, steps.length - 1));
    slider.value = String(Math.max(0, steps.indexOf(Number(found[2]))));
    slider.setAttribute("aria-valuetext", say("at.step", { n: found[2] }));
    checkpoints.hidden = steps.length < 2;
  }
  state.on(["model"], stepsOf);
  stepsOf();

  const reflect = () => {
    const name = state.get("model") ?? state.get("modelName") ?? say("model.name");
    button.textContent = `${name.replace(/^run:/, "").replace(/@(\d+)$/, (/** @type {string} */ _, /** @type {string} */ n) => `, ${say("at.step", { n })}`)} ▾`;
  };
  state.on(["model", "modelName"], reflect);
  reflect();
  return { button, dialog, checkpoints };
}
