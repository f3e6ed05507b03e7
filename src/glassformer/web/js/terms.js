/** Terms that are explained where they stand: one sentence under the pointer, and all of them in the keyboard's help. */

import { h, hush, put, tell } from "./dom.js";
import { need, onSpoken, say } from "./words.js";

/** The terms; their forms and sentences stand in the words' files. */
export const TERMS = [
  "token", "vector", "embedding", "stream", "layer", "head", "query", "key", "value", "softmax", "attention", "ff", "neuron", "expert", "norm", "logit", "probability", "entropy", "nat", "surprise", "kl", "temperature",
  "topk", "topp", "minp", "cosine", "axes", "patching", "ablation", "circuit", "edge", "direction", "loss", "gradient", "checkpoint", "perplexity",
];

/** What is text of somebody else, or does something of its own under the pointer. */
const APART = "button, select, textarea, input, code, pre, svg, canvas, .mono, .chip, .tip, .found, dialog, [aria-hidden], [hidden]";
const PARTS = ".stage-head, .panel.left, [role='tabpanel']:not([hidden])";

/** What finds the terms in a text, and the term of each form. */
export function forms() {
  const of = new Map(TERMS.flatMap((term) => say(`term.${term}`).split("|").map((form) => [form.toLowerCase(), term])));
  const any = [...of.keys()].sort((a, b) => b.length - a.length).map((form) => form.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|");
  return { of, find: new RegExp(`(?<![\\p{L}\\p{N}_-])(?:${any})(?![\\p{L}\\p{N}_-])`, "giu") };
}

/** @param {HTMLElement} root @param {HTMLElement} help where all terms are listed */
export async function explain(root, help) {
  await need("terms");
  const list = h("dl", { class: "terms" });
  help.append(h("h3", {}, () => say("terms.title")), list);
  let { of, find } = forms();
  const speak = () => {
    ({ of, find } = forms());
    put(list, TERMS.map((term) => h("div", {}, h("dt", {}, say(`term.${term}`).split("|")[0]), h("dd", { class: "small" }, say(`term.${term}.say`)))));
    soon();
  };

  // The first place of each term in each room is underlined; the sentence comes at all of them.
  const lines = "highlights" in CSS ? new Highlight() : null;
  if (lines) CSS.highlights.set("term", lines);
  function mark() {
    if (!lines) return;
    lines.clear();
    for (const part of root.querySelectorAll(PARTS)) {
      const seen = new Set();
      const walker = document.createTreeWalker(part, NodeFilter.SHOW_TEXT, (node) => (node.parentElement?.closest(APART) ? NodeFilter.FILTER_REJECT : NodeFilter.FILTER_ACCEPT));
      for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        for (const found of /** @type {Text} */ (node).data.matchAll(find)) {
          const term = of.get(found[0].toLowerCase());
          if (seen.has(term)) continue;
          seen.add(term);
          lines.add(new StaticRange({ startContainer: node, startOffset: found.index, endContainer: node, endOffset: found.index + found[0].length }));
        }
      }
    }
  }
  let timer = 0;
  const soon = () => { clearTimeout(timer); timer = window.setTimeout(mark, 400); };
  const watcher = new MutationObserver(soon);
  for (const part of root.querySelectorAll(".stage-head, .layout")) watcher.observe(part, { childList: true, characterData: true, subtree: true, attributes: true, attributeFilter: ["hidden"] });
  onSpoken(speak);
  speak();

  let told = false;
  root.addEventListener("pointermove", (event) => {
    const term = event.buttons ? null : under(event);
    if (term) tell(say(`term.${term}.say`), event.clientX, event.clientY);
    else if (told && !hinted(event)) hush();
    told = Boolean(term);
  });
  root.addEventListener("pointerleave", () => { if (told) hush(); });

  /** The term under the pointer. @param {PointerEvent} event */
  function under(event) {
    const at = /** @type {Element} */ (event.target);
    if (hinted(event) || at.closest(APART) || !at.closest(PARTS)) return null;
    const spot = document.caretPositionFromPoint?.(event.clientX, event.clientY);
    const [node, offset] = spot ? [spot.offsetNode, spot.offset] : (({ startContainer, startOffset } = {}) => [startContainer, startOffset])(/** @type {any} */ (document).caretRangeFromPoint?.(event.clientX, event.clientY) ?? undefined);
    if (!(node instanceof Text)) return null;
    for (const found of node.data.matchAll(find)) {
      if (found.index > offset || found.index + found[0].length < offset) continue;
      const range = document.createRange();
      range.setStart(node, found.index);
      range.setEnd(node, found.index + found[0].length);
      for (const box of range.getClientRects()) if (box.left <= event.clientX && event.clientX <= box.right && box.top <= event.clientY && event.clientY <= box.bottom) return of.get(found[0].toLowerCase()) ?? null;
    }
    return null;
  }
}

/** Whether something under the pointer has said its own. @param {any} event */
const hinted = (event) => Boolean(event.hinted);
