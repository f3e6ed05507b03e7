/** Learning: runs, their loss while it falls, what they say at each stage, and one gradient step on a sentence. */

import { h, number, percent, put, shown } from "../dom.js";
import { live } from "../live.js";
import { chart, fork, segmented, track, placeName } from "../ui.js";
import { repeat, slice } from "./descent.js";
import { mount as film } from "./film.js";
import { mount as training, progress } from "./train.js";

/** @typedef {import("../store.js").Store} Store */

const CURVES = /** @type {[string, string][]} */ ([["loss", "Loss"], ["tokens_per_second", "Speed"], ["rate", "Rate"], ["gradient_norm", "Gradient"]]);
const UNITS = { loss: "nats a token", tokens_per_second: "tokens/s", rate: "of the recipe's rate", gradient_norm: "" };

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const list = h("div", { class: "row", role: "group", "aria-label": "Runs" });
  const line = h("div", { class: "run-line" }); // in sight while a run goes on, so that it is read again
  const body = h("div", { class: "run" });
  let curve = "loss";
  const which = segmented("Curve", CURVES, () => curve, (name) => { curve = name; which.reflect(); if (data) draw(data); });
  /** @type {any} */
  let data = null;
  let timer = 0;
  let again = 0;
  const steps = h("div", {});
  const own = h("div", {});
  const moving = h("div", {});
  element.append(h("h2", {}, "Learning"), own, h("h2", {}, "Training runs"), list, line, moving, body, steps);
  const going = source.live && !source.embedded ? training(own, source, state, () => lister.refresh(true)) : null;
  const rolled = film(moving, source, state, () => data);
  one(steps, source, state);

  const lister = live(list, state, ["tab"], async (signal) => source.get("runs", {}, { signal }), ({ runs }) => {
    // A run may begin, or end, while one looks.
    clearTimeout(again);
    if (source.live && !source.embedded) again = window.setTimeout(() => { if (state.get("tab") === "learning") lister.refresh(true); }, 3000);
    if (!runs.length) {
      put(list, h("p", { class: "soft" }, source.live ? "There is no run yet. Paste a text above, or in a terminal let “glassformer train” learn from Python's own library; the loss then falls here while it runs." : "This report is of a model without a training run in it; a report of a run (glassformer report TEXT --model runs/NAME) shows its curves, samples and probes here."));
      return;
    }
    put(list, runs.map((/** @type {any} */ r) => h("button", { type: "button", class: "small", "data-run": r.name, onclick: () => state.set({ run: r.name }) },
      r.name, h("span", { class: "small num" }, ` ${r.state === "running" ? "● " : ""}${r.loss === null ? "" : number(r.held_out ?? r.loss)}`))));
    if (!state.get("run") || !runs.some((/** @type {any} */ r) => r.name === state.get("run"))) state.set({ run: runs[0].name });
    going?.(runs.some((/** @type {any} */ r) => r.state === "running" && r.name.startsWith("page-")));
    mark();
  });
  const mark = () => {
    for (const button of /** @type {any} */ (list.querySelectorAll("[data-run]"))) button.setAttribute("aria-pressed", String(button.dataset.run === state.get("run")));
  };
  const reader = live(line, state, ["run", "tab"], async (signal) => {
    clearTimeout(timer);
    mark();
    if (!state.get("run") || state.get("tab") !== "learning") return null;
    return source.get("run", { name: state.get("run") }, { signal });
  }, (found) => {
    data = found;
    redraw(found);
    rolled();
    // A run that goes on is read again; one that has stopped is not.
    if (found.state === "running" && source.live) timer = window.setTimeout(() => { if (!element.hidden) { reader.refresh(true); } }, 1000);
  });
  state.on(["model"], () => data && draw(data));

  /** A run that goes on is drawn anew every other second: what the reader holds or has opened stays so. @param {any} d */
  function redraw(d) {
    if (body.querySelector("#checkpoint:active")) return;
    const held = /** @type {HTMLElement|null} */ (body.contains(document.activeElement) ? document.activeElement : null);
    const opened = body.querySelector("details")?.open ?? false;
    draw(d);
    /** @type {any} */ (body.querySelector("details")).open = opened;
    if (held && document.activeElement !== held) (held.isConnected ? held : document.getElementById(held.id))?.focus();
  }

  /** @param {any} d */
  function draw(d) {
    const at = stepOf(state.get("model"), d.name);
    const lines = [];
    if (d.curves[curve]) lines.push({ name: curve === "loss" ? "training" : curve.replaceAll("_", " "), ...d.curves[curve], kind: "line-0" });
    if (curve === "loss" && d.curves.held_out) lines.push({ name: "held out", ...d.curves.held_out, kind: "line-1" });
    const sample = [...d.samples].reverse().find((/** @type {any} */ s) => at === null || s.step <= at) ?? d.samples[0];
    put(line,
      h("p", { class: "small" }, [`step ${d.step.toLocaleString()}${d.steps ? ` of ${d.steps.toLocaleString()}` : ""}`, d.state, d.parameters ? `${d.parameters.toLocaleString()} parameters` : "", d.held_out === null ? "" : `held-out loss ${number(d.held_out)}`, d.about].filter(Boolean).join(" · ")),
      d.state === "failed" ? h("p", { class: "problem" }, d.notes.at(-1)?.text ?? "This run failed.") : null, progress(d));
    put(body, which.element, chart(lines, { label: `${curve} of ${d.name}`, unit: UNITS[/** @type {"loss"} */ (curve)] ?? "", mark: at }),
      checkpoints(d, at),
      sample && !d.film?.length ? h("div", {}, h("h3", {}, `What it wrote at step ${sample.step}`), h("blockquote", { class: "mono sample" }, sample.text)) : null,
      probes(d, at),
      h("details", {}, h("summary", {}, "Recipe and remarks"), h("pre", { class: "mono small" }, JSON.stringify(d.recipe, null, 1)), d.notes.map((/** @type {any} */ n) => h("p", { class: "small soft" }, `step ${n.step}: ${n.text}`))));
  }

  /** The slider on which every other view works. @param {any} d @param {number|null} at */
  function checkpoints(d, at) {
    if (!source.live) return h("p", { class: "soft small" }, `Checkpoints at steps ${d.checkpoints.join(", ") || "none"}. This report was made of the newest; glassformer open with the run's folder looks inside every one.`);
    if (!d.checkpoints.length) return h("p", { class: "soft small" }, "No checkpoint yet.");
    const index = at === null ? d.checkpoints.length - 1 : d.checkpoints.indexOf(at);
    const out = h("output", { class: "num" }, at === null ? "not shown" : `step ${at}`);
    const slider = h("input", {
      type: "range", id: "checkpoint", min: 0, max: d.checkpoints.length - 1, step: 1, value: Math.max(0, index), "aria-valuetext": at === null ? "none" : `step ${at}`,
      oninput: () => { out.textContent = `step ${d.checkpoints[slider.value]}`; },
      onchange: () => state.set({ model: `run:${d.name}@${d.checkpoints[slider.value]}`, edits: [], query: null, key: null }),
    });
    slider.value = String(Math.max(0, index));
    return h("div", { class: "sliders" }, h("label", { for: "checkpoint" }, "Checkpoint"), slider, out,
      h("div", { class: "row wide" }, at === null
        ? h("button", { type: "button", onclick: () => state.set({ model: `run:${d.name}@${d.checkpoints[d.checkpoints.length - 1]}`, position: null, edits: [], query: null, key: null, layer: 0, head: 0 }) }, "Look inside this run")
        : h("span", { class: "soft small" }, "Every view now shows this checkpoint: open Attention or Next word and move the slider."),
      at === null ? null : h("button", { type: "button", class: "small", onclick: () => state.set({ model: null, position: null, edits: [], query: null, key: null }) }, "Back to the model")));
  }

  /** @param {any} d @param {number|null} at */
  function probes(d, at) {
    if (!d.probes.length) return null;
    const when = d.probes.reduce((/** @type {number} */ best, /** @type {any} */ p) => (at === null || p.step <= at ? p.step : best), d.probes[0].step);
    const { step, next, attention, heads, ...rest } = Object.assign({}, ...d.probes.filter((/** @type {any} */ p) => p.step === when));
    const told = /** @type {[string, string][]} */ (Object.entries(next ?? {}).map(([prompt, found]) => [`after “${prompt}”`, found.map((/** @type {any} */ f) => `${shown(f[0])} ${percent(f[1])}`).join("  ")]));
    for (const kind of Object.keys(heads ?? {})) told.push([`most ${kind}`, best(kind, heads, d.probes)]);
    const rows = [...told, ...flat(rest)];
    return h("div", {}, h("h3", {}, `Probes at step ${step}`), h("table", { class: "plain small" }, h("tbody", {}, rows.slice(0, 24).map(([name, value]) => h("tr", typeof value === "number" ? {} : { class: "told" }, h("th", { scope: "row" }, name), h("td", { class: "num" }, typeof value === "number" ? number(value) : String(value)))))));
  }
}

/** The head that does most of a kind of looking, and how it came to it. @param {string} kind @param {any} heads @param {any[]} probes */
function best(kind, heads, probes) {
  const all = heads[kind].flatMap((/** @type {number[]} */ row, /** @type {number} */ layer) => row.map((share, head) => ({ layer, head, share })));
  const most = all.reduce((/** @type {any} */ a, /** @type {any} */ b) => (b.share > a.share ? b : a));
  const scored = probes.filter((p) => p.heads), every = Math.ceil(scored.length / 8);
  const past = scored.filter((_, i) => (scored.length - 1 - i) % every === 0).map((p) => `${percent(p.heads[kind][most.layer][most.head], 0)} (${p.step})`);
  return `layer ${most.layer}, head ${most.head}: ${past.join(" → ")}`;
}

/** @param {any} value @param {string} [prefix] @returns {[string, any][]} */
function flat(value, prefix = "") {
  return Object.entries(value).flatMap(([k, v]) => (v !== null && typeof v === "object" ? flat(v, `${prefix}${k} `) : /** @type {[string, any][]} */ ([[prefix + k, v]])));
}

/** The step of a run that a model source names, or null. @param {string|null} model @param {string} run */
function stepOf(model, run) {
  const found = /^run:(.*)@(\d+)$/.exec(model ?? "");
  return found && found[1] === run ? Number(found[2]) : null;
}

/** One gradient step on the text above. @param {HTMLElement} element @param {any} source @param {Store} state */
function one(element, source, state) {
  const out = h("div", { "aria-live": "polite" });
  let asked = 0;
  const button = source.live ? h("button", { type: "button", onclick: () => { asked += 1; state.set({ stepAsked: asked }); } }, "Take one step on the text above") : null;
  element.append(h("h2", {}, "One gradient step"),
    h("p", { class: "soft small" }, "Learning is this, many times over: each weight moves a little against its gradient of the loss on this sentence. The model itself stays as it is; a copy takes the step."),
    ...(button ? [button] : []), out);
  if (source.live && !source.embedded) repeat(element, source, state);
  live(out, state, ["stepAsked", "text", "model"], async (signal) => {
    if (!source.live) return source.get("run_step", {}); // taken when the report was written
    if (!asked || state.get("stepAsked") !== asked || drawn === asked) {
      put(out);
      return null;
    }
    drawn = asked;
    return source.get("run_step", { text: state.get("text"), model: state.get("model") }, { signal });
  }, (d) => {
    const most = Math.max(...d.components.map((/** @type {any} */ c) => c.gradient), 1e-12);
    put(out, d.slice?.length ? slice(d) : null,
      h("p", {}, `Loss ${number(d.loss)} → ${number(d.loss_after)} nats a token: it fell by ${number(d.loss - d.loss_after)}, where the gradient promised ${number(d.promised)} (rate ${number(d.rate)} × norm ${number(d.gradient_norm)}²).`),
      h("div", { class: "two" },
        h("div", {}, h("h3", {}, "Each token, before and after"), h("div", { role: "list" }, d.tokens.slice(0, 24).map((/** @type {any} */ t) => h("div", { class: "prob change", role: "listitem" }, h("span", { class: "what mono" }, shown(t.token)), double(t.before, t.now), h("span", { class: "num small" }, `${percent(t.before)} → ${percent(t.now)}`))))),
        h("div", {}, h("h3", {}, "The next token"), h("div", { role: "list" }, d.next.map((/** @type {any} */ t) => h("div", { class: "prob change", role: "listitem" }, h("span", { class: "what mono" }, shown(t.token)), fork(t.after - t.before), h("span", { class: "num small" }, `${percent(t.before)} → ${percent(t.after)}`)))),
          h("h3", {}, "What the loss asked of each part"), h("div", { role: "list" }, d.components.slice(0, 10).map((/** @type {any} */ c) => h("div", { class: "prob change", role: "listitem" }, h("span", { class: "what small" }, placeName(c.name)), track(c.gradient / most), h("span", { class: "num small" }, number(c.gradient))))))));
  });
  let drawn = 0;
}

/** @param {number} before @param {number} after */
function double(before, after) {
  const element = track(after);
  const was = h("span", { class: "was" });
  was.style.setProperty("--share", String(before));
  element.append(was);
  return element;
}
