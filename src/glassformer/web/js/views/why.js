/** Why: the prediction taken apart, with its receipt; parts switched off to see what changes. */

import { signed } from "../colour.js";
import { h, hint, number, percent, put, shown } from "../dom.js";
import { editName } from "../edits.js";
import { live } from "../live.js";
import { chance, fork, track, withSign } from "../ui.js";

/** @typedef {import("../store.js").Store} Store */

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const form = h("form", { class: "row" });
  const token = h("input", { type: "text", size: "10", "aria-label": "Token to explain", placeholder: "its first choice", readonly: !source.live });
  const against = h("input", { type: "text", size: "10", "aria-label": "Compared with", placeholder: "compared with…", readonly: !source.live });
  put(form, h("label", { class: "small" }, "Why ", token), h("label", { class: "small" }, "rather than ", against),
    source.live ? [h("button", { type: "submit" }, "Explain"), h("span", { class: "soft small" }, "a token carries its leading space")] : null);
  const asked = () => {
    token.value = state.get("token") ?? "";
    against.value = state.get("against") ?? "";
  };
  state.on(["token", "against"], asked);
  asked();
  form.addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    state.set({ token: token.value || null, against: against.value || null });
  });
  const effect = h("div", { class: "effect" });
  const body = h("div", { class: "why" });
  const neurons = h("div", { class: "neurons", role: "list" });
  const absent = h("p", { class: "small soft", role: "status" });
  element.append(h("h2", {}, "Why it says so"), form, h("div", { class: "switched" }, absent, effect), body, h("h3", {}, "Neurons of the feed-forward layers"),
    h("p", { class: "soft small" }, "What is lost when each is off, and the tokens whose score it raises; click one to switch it off."), neurons);

  /** @param {any} edit */
  function switchOff(edit) {
    const list = state.get("edits");
    if (!source.live && !source.holds("effects", { position: state.get("position") ?? -1, edits: [...list, edit] })) {
      absent.textContent = `“${editName(edit, state.get("tokens"))}” was not computed for this report, which holds that of the largest heads and layers, each alone; open the text in Glassformer to switch off any.`;
      return;
    }
    absent.textContent = "";
    if (!list.some((/** @type {any} */ e) => JSON.stringify(e) === JSON.stringify(edit))) state.set({ edits: [...list, edit] });
  }
  const where = () => ({ text: state.get("text"), model: state.get("model"), position: state.get("position") ?? -1 });
  live(effect, state, ["text", "model", "position", "edits"], async (signal) => {
    if (!state.get("edits").length || !state.get("text")) {
      put(effect);
      return null;
    }
    return source.get("effects", { ...where(), edits: state.get("edits"), top: 8 }, { signal });
  }, (data) => {
    const side = (/** @type {string} */ name, /** @type {any} */ which) => h("div", {}, h("h3", {}, name),
      h("div", { role: "list", "aria-label": name }, which.tokens.slice(0, 8).map((/** @type {any} */ t) => chance(t.token, t.probability))));
    put(effect, h("div", { class: "two" }, side("Before", data.before), side("After", data.after)),
      h("p", { class: "small soft num" }, `KL divergence ${number(data.kl)} nats. Moved most: ${data.changed.slice(0, 4).map((/** @type {any} */ c) => `${shown(c.token)} ${percent(c.before)} → ${percent(c.after)}`).join(", ")}.`));
  });

  live(body, state, ["text", "model", "position", "token", "against"], async (signal) => {
    if (!state.get("text")) return null;
    const found = await source.get("why", { ...where(), token: state.get("token"), against: state.get("against") }, { signal });
    return found;
  }, draw);

  /** @param {any} d */
  function draw(d) {
    const tokens = d.tokens;
    const measured = (/** @type {any} */ p) => p.total ?? p.direct;
    const ranked = [...d.parts].sort((a, b) => Math.abs(measured(b)) - Math.abs(measured(a)));
    const largest = Math.max(...ranked.slice(0, 1).map((p) => Math.abs(measured(p))), 1e-9);
    const wordSize = (/** @type {any} */ w) => w.knocked_out ?? 0;
    const loudest = Math.max(...d.words.map((/** @type {any} */ w) => Math.abs(wordSize(w))), 1e-9);
    put(body,
      h("p", { class: "sentence" }, d.sentence),
      h("div", { class: "receipt num" }, h("h3", {}, "Receipt"),
        h("dl", {}, pair("explained", `${number(d.value)} (${d.unit})`), pair("sum of parts", number(d.sum)), pair("residual", `${d.residual.toExponential(1)} of the sum of absolute parts`),
          pair("probability", percent(d.probability, 2)), pair("precision", d.precision),
          ...Object.entries(d.agreement).filter(([k, v]) => typeof v === "number" && k !== "part").map(([k, v]) => pair(k.replaceAll("_", " "), number(/** @type {number} */ (v)))))),
      d.words.length ? h("h3", {}, "Words: what is lost when nobody looks at one") : null,
      h("div", { class: "chips big" }, d.words.map((/** @type {any} */ w) => {
        const x = wordSize(w);
        const chip = h("button", { type: "button", class: "chip word", disabled: !w.edit, onclick: () => switchOff(w.edit) }, w.word, w.knocked_out === null ? null : h("span", { class: "num small" }, ` ${withSign(w.knocked_out)}`));
        chip.style.setProperty("background", signed((0.6 * x) / loudest));
        return hint(chip, () => [
          w.replaced ? `replaced: ${number(w.replaced.median)} median, ${number(w.replaced.low)} to ${number(w.replaced.high)}` : "not replaced",
          w.knocked_out === null ? "" : `nobody looks at it: ${number(w.knocked_out)}`,
          w.sink ? "the first position is a sink: heads rest there" : "", "click: nobody looks at it any more"].filter(Boolean).join("\n"));
      })),
      h("h3", {}, "The sum, layer by layer"),
      fall(d),
      h("h3", {}, "Parts, by what their removal changes"),
      h("div", { class: "waterfall", role: "list" }, ranked.slice(0, 24).map((p) => {
        const x = measured(p);
        return h("div", { role: "listitem" }, hint(h("button", { type: "button", class: "part", disabled: !p.edit, onclick: () => switchOff(p.edit) },
          h("span", { class: "small" }, partName(p, tokens)), fork(x / largest), h("span", { class: "num small" }, withSign(x))),
        () => `claimed direct ${number(p.claimed)}\nmeasured direct ${number(p.direct)}\nmeasured total ${p.total === null ? "not measured" : number(p.total)}\nlarger than ${number(p.percentile)}% of its kind${p.edit ? `\nclick: “${editName(p.edit, tokens)}”, which takes away ${number(x)}` : ""}`));
      })),
      h("p", { class: "soft small" }, `${(d.part_count ?? d.parts.length).toLocaleString()} parts in all; the ${Math.min(24, ranked.length)} largest are drawn.${d.words.length ? ` Words were replaced ${d.replacements.count} times each, seed ${d.replacements.seed}.` : ""}`),
    );
  }
  live(neurons, state, ["text", "model", "position", "token", "against"], async (signal) => {
    if (!state.get("text")) return null;
    return source.get("neurons", { ...where(), token: state.get("token"), against: state.get("against"), top: 12 }, { signal });
  }, (d) => {
    const size = (/** @type {any} */ n) => n.total ?? n.contribution; // a page of one verb holds what each adds
    const most = Math.max(...d.neurons.map((/** @type {any} */ n) => Math.abs(size(n))), 1e-9);
    put(neurons, d.neurons.map((/** @type {any} */ n) => h("div", { role: "listitem" }, hint(h("button", {
      type: "button", class: "part neuron", disabled: !n.edit, onclick: () => switchOff(n.edit),
    }, h("span", { class: "small" }, `layer ${n.layer} neuron ${n.index}`), fork(size(n) / most), h("span", { class: "num small" }, withSign(size(n))), h("span", { class: "mono small writes" }, n.raises.map(shown).join(" "))),
    () => `activation ${number(n.activation)}\nadds ${withSign(n.contribution)} by itself\nraises ${n.raises.map(shown).join(", ")}${n.edit ? `\nclick: it is off, which takes away ${number(n.total)}` : ""}`))),
    h("p", { class: "soft small" }, `All feed-forward layers together add ${withSign(d.all)} of ${number(d.value)}.`));
  });
  const pair = (/** @type {string} */ k, /** @type {string} */ v) => h("div", {}, h("dt", {}, k), h("dd", {}, v));
}

/** @param {any} p @param {string[]} tokens */
function partName(p, tokens) {
  const from = p.source === null ? "" : ` from “${shown(tokens[p.source] ?? "")}”`;
  if (p.kind === "head") return `layer ${p.layer} head ${p.head}${from}`;
  if (p.layer === null) return p.kind.replaceAll("_", "-") + from;
  return `layer ${p.layer} ${p.kind.replaceAll("_", "-")}${from}`;
}

/** From nothing to the number explained: what each half layer adds, one under the other. @param {any} d */
function fall(d) {
  let sum = 0;
  const rows = d.layers.filter((/** @type {any} */ l) => l.claimed !== 0).map((/** @type {any} */ l) => ({ ...l, from: sum, to: (sum += l.claimed) }));
  const low = Math.min(0, ...rows.map((/** @type {any} */ r) => r.to));
  const high = Math.max(0, ...rows.map((/** @type {any} */ r) => r.to));
  const at = (/** @type {number} */ v) => (v - low) / (high - low || 1);
  return h("div", { class: "waterfall sum", role: "list" }, rows.map((/** @type {any} */ r) => hint(h("div", { class: "part", role: "listitem" },
    h("span", { class: "small" }, `${r.layer === null ? "" : `${r.layer} · `}${r.kind.replaceAll("_", "-")}`), track(Math.abs(at(r.to) - at(r.from)), Math.min(at(r.from), at(r.to)), signed(r.claimed >= 0 ? 1 : -1)),
    h("span", { class: "num small" }, withSign(r.claimed))), () => `adds ${withSign(r.claimed)}\nthe sum is then ${number(r.to)}`)),
  h("div", { class: "part" }, h("strong", { class: "small" }, "sum"), track(Math.abs(at(sum) - at(0)), Math.min(at(0), at(sum))), h("strong", { class: "num small" }, number(sum))));
}
