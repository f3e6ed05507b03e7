/** Learning: runs, their loss while it falls, what they say at each stage, and one gradient step on a sentence. */

import { h, number, percent, put, shown } from "../dom.js";
import { live } from "../live.js";
import { chart, fork, segmented, track, placeName } from "../ui.js";
import { say } from "../words.js";
import { repeat, slice } from "./descent.js";
import { mount as film } from "./film.js";
import { mount as taught } from "./taught.js";
import { mount as training, progress } from "./train.js";

/** @typedef {import("../store.js").Store} Store */

const CURVES = () => /** @type {[string, string][]} */ ([["loss", say("learn.loss")], ["tokens_per_second", say("learn.speed")], ["rate", say("learn.rate")], ["gradient_norm", say("learn.gradient")]]);
const UNITS = () => ({ loss: say("unit.nats"), tokens_per_second: "tokens/s", rate: say("learn.share"), gradient_norm: "" });

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const list = h("div", { class: "row", role: "group", "aria-label": say("learn.list") });
  const line = h("div", { class: "run-line" }); // in sight while a run goes on, so that it is read again
  const body = h("div", { class: "run" });
  let curve = "loss";
  const which = segmented(say("learn.curve"), CURVES(), () => curve, (name) => { curve = name; which.reflect(); if (data) draw(data); });
  /** @type {any} */
  let data = null;
  let timer = 0;
  let again = 0;
  const steps = h("div", {});
  const passages = h("div", {});
  const own = h("div", {});
  const moving = h("div", {});
  element.append(h("h2", {}, say("room.learning")), own, h("h2", {}, say("learn.runs")), list, line, moving, h("div", { class: "halves" }, body, h("div", {}, passages, steps)));
  const going = source.live && !source.embedded ? training(own, source, state, () => lister.refresh(true)) : null;
  const rolled = film(moving, source, state, () => data);
  const teaching = source.live && !source.embedded ? taught(passages, source, state) : null;
  one(steps, source, state);

  const lister = live(list, state, ["tab"], async (signal) => source.get("runs", {}, { signal }), ({ runs }) => {
    // A run may begin, or end, while one looks.
    clearTimeout(again);
    if (source.live && !source.embedded) again = window.setTimeout(() => { if (state.get("tab") === "learning") lister.refresh(true); }, 3000);
    if (!runs.length) {
      put(list, h("p", { class: "soft" }, source.live ? say("learn.none") : say("learn.without")));
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
    teaching?.(found);
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
    if (d.curves[curve]) lines.push({ name: curve === "loss" ? say("learn.training") : curve.replaceAll("_", " "), ...d.curves[curve], kind: "line-0" });
    if (curve === "loss" && d.curves.held_out) lines.push({ name: say("learn.heldout"), ...d.curves.held_out, kind: "line-1" });
    const sample = [...d.samples].reverse().find((/** @type {any} */ s) => at === null || s.step <= at) ?? d.samples[0];
    put(line,
      h("p", { class: "small" }, [say("at.step", { n: `${d.step.toLocaleString()}${d.steps ? ` / ${d.steps.toLocaleString()}` : ""}` }), d.state, d.parameters ? say("learn.parameters", { n: d.parameters.toLocaleString() }) : "", d.held_out === null ? "" : say("learn.held", { x: number(d.held_out) }), d.about].filter(Boolean).join(" · ")),
      d.state === "failed" ? h("p", { class: "problem" }, d.notes.at(-1)?.text ?? say("learn.failed")) : null, progress(d));
    put(body, which.element, chart(lines, { label: say("learn.curveof", { a: curve, b: d.name }), unit: UNITS()[/** @type {"loss"} */ (curve)] ?? "", mark: at }),
      checkpoints(d, at),
      sample && !d.film?.length ? h("div", {}, h("h3", {}, say("learn.wrote", { n: sample.step })), h("blockquote", { class: "mono sample" }, sample.text)) : null,
      probes(d, at),
      h("details", {}, h("summary", {}, say("learn.recipe")), h("pre", { class: "mono small" }, JSON.stringify(d.recipe, null, 1)), d.notes.map((/** @type {any} */ n) => h("p", { class: "small soft" }, say("learn.remark", { n: n.step, text: n.text })))));
  }

  /** The slider on which every other view works. @param {any} d @param {number|null} at */
  function checkpoints(d, at) {
    if (!source.live) return h("p", { class: "soft small" }, say("learn.checkpoints", { steps: d.checkpoints.join(", ") || "–" }));
    if (!d.checkpoints.length) return h("p", { class: "soft small" }, say("learn.nocheckpoint"));
    const index = at === null ? d.checkpoints.length - 1 : d.checkpoints.indexOf(at);
    const out = h("output", { class: "num" }, at === null ? say("learn.notshown") : say("at.step", { n: at }));
    const slider = h("input", {
      type: "range", id: "checkpoint", min: 0, max: d.checkpoints.length - 1, step: 1, value: Math.max(0, index), "aria-valuetext": at === null ? "none" : say("at.step", { n: at }),
      oninput: () => { out.textContent = say("at.step", { n: d.checkpoints[slider.value] }); },
      onchange: () => state.set({ model: `run:${d.name}@${d.checkpoints[slider.value]}`, edits: [], query: null, key: null }),
    });
    slider.value = String(Math.max(0, index));
    return h("div", { class: "sliders" }, h("label", { for: "checkpoint" }, say("learn.checkpoint")), slider, out,
      h("div", { class: "row wide" }, at === null
        ? h("button", { type: "button", onclick: () => state.set({ model: `run:${d.name}@${d.checkpoints[d.checkpoints.length - 1]}`, position: null, edits: [], query: null, key: null, layer: 0, head: 0 }) }, say("learn.inside"))
        : h("span", { class: "soft small" }, say("learn.every")),
      at === null ? null : h("button", { type: "button", class: "small", onclick: () => state.set({ model: null, position: null, edits: [], query: null, key: null }) }, say("learn.back"))));
  }

  /** @param {any} d @param {number|null} at */
  function probes(d, at) {
    if (!d.probes.length) return null;
    const when = d.probes.reduce((/** @type {number} */ best, /** @type {any} */ p) => (at === null || p.step <= at ? p.step : best), d.probes[0].step);
    const { step, next, attention, heads, ...rest } = Object.assign({}, ...d.probes.filter((/** @type {any} */ p) => p.step === when));
    const told = /** @type {[string, string][]} */ (Object.entries(next ?? {}).map(([prompt, found]) => [say("learn.after", { prompt }), found.map((/** @type {any} */ f) => `${shown(f[0])} ${percent(f[1])}`).join("  ")]));
    for (const kind of Object.keys(heads ?? {})) told.push([say("learn.most", { kind }), best(kind, heads, d.probes)]);
    const rows = [...told, ...flat(rest)];
    return h("div", {}, h("h3", {}, say("learn.probes", { n: step })), h("table", { class: "plain small" }, h("tbody", {}, rows.slice(0, 24).map(([name, value]) => h("tr", typeof value === "number" ? {} : { class: "told" }, h("th", { scope: "row" }, name), h("td", { class: "num" }, typeof value === "number" ? number(value) : String(value)))))));
  }
}

/** The head that does most of a kind of looking, and how it came to it. @param {string} kind @param {any} heads @param {any[]} probes */
function best(kind, heads, probes) {
  const all = heads[kind].flatMap((/** @type {number[]} */ row, /** @type {number} */ layer) => row.map((share, head) => ({ layer, head, share })));
  const most = all.reduce((/** @type {any} */ a, /** @type {any} */ b) => (b.share > a.share ? b : a));
  const scored = probes.filter((p) => p.heads), every = Math.ceil(scored.length / 8);
  const past = scored.filter((_, i) => (scored.length - 1 - i) % every === 0).map((p) => `${percent(p.heads[kind][most.layer][most.head], 0)} (${p.step})`);
  return say("learn.past", { layer: most.layer, head: most.head, past: past.join(" → ") });
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
  const button = source.live ? h("button", { type: "button", onclick: () => { asked += 1; state.set({ stepAsked: asked }); } }, say("learn.take")) : null;
  element.append(h("h2", {}, say("learn.one")),
    h("p", { class: "soft small" }, say("learn.say")),
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
      h("p", {}, say("learn.fell", { a: number(d.loss), b: number(d.loss_after), x: number(d.loss - d.loss_after), y: number(d.promised), rate: number(d.rate), norm: number(d.gradient_norm) })),
      h("div", { class: "two" },
        h("div", {}, h("h3", {}, say("learn.tokens")), h("div", { role: "list" }, d.tokens.slice(0, 24).map((/** @type {any} */ t) => h("div", { class: "prob change", role: "listitem" }, h("span", { class: "what mono" }, shown(t.token)), double(t.before, t.now), h("span", { class: "num small" }, `${percent(t.before)} → ${percent(t.now)}`))))),
        h("div", {}, h("h3", {}, say("learn.next")), h("div", { role: "list" }, d.next.map((/** @type {any} */ t) => h("div", { class: "prob change", role: "listitem" }, h("span", { class: "what mono" }, shown(t.token)), fork(t.after - t.before), h("span", { class: "num small" }, `${percent(t.before)} → ${percent(t.after)}`)))),
          h("h3", {}, say("learn.parts")), h("div", { role: "list" }, d.components.slice(0, 10).map((/** @type {any} */ c) => h("div", { class: "prob change", role: "listitem" }, h("span", { class: "what small" }, placeName(c.name)), track(c.gradient / most), h("span", { class: "num small" }, number(c.gradient))))))));
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
