/** Building elements. Text goes in as text: nothing here parses HTML. */

import { onSpoken } from "./words.js";

/**
 * @param {string} tag
 * @param {Record<string, any>} [props] `on…` are listeners, `style` an object of properties, others attributes.
 * @param {...any} children what is a function says a text, there and in attributes, and says it again in another language
 * @returns {any}
 */
export function h(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

/**
 * @param {string} tag
 * @param {Record<string, any>} [props]
 * @param {...any} children
 * @returns {any}
 */
export function s(tag, props = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);
}

/** @param {any} element @param {Record<string, any>} props @param {any[]} children */
function fill(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [k, v] of Object.entries(value)) element.style.setProperty(k, String(v));
    else if (name === "value") element.value = value;
    else if (name === "checked") element.checked = value;
    else if (typeof value === "function") again(() => element.setAttribute(name, value()));
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  add(element, children);
  return element;
}

/** Now, and whenever another language is spoken. @param {() => void} work */
function again(work) {
  work();
  onSpoken(work);
}

/** @param {Element} element @param {any[]} children */
function add(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    if (typeof child === "function") {
      const text = document.createTextNode("");
      again(() => { text.data = child(); });
      element.append(text);
    } else element.append(child instanceof Node ? child : String(child));
  }
}

/** Replace what an element holds. @param {Element} element @param {...any} children */
export function put(element, ...children) {
  element.replaceChildren();
  add(element, children);
}

/** A token's text made visible: spaces, line breaks and controls have signs. @param {string} text */
export function shown(text) {
  if (text === "") return "∅";
  return text
    .replace(/\n/g, "⏎")
    .replace(/\r/g, "␍")
    .replace(/\t/g, "⇥")
    .replace(/^ +| +$/g, (m) => "␣".repeat(m.length))
    .replace(/[\u0000-\u001f\u007f\u00a0\u2000-\u200f\u202a-\u202e\u2066-\u2069]/g, (c) => `‹${c.codePointAt(0)?.toString(16)}›`);
}

/** A token as a word in a picture: without the space it begins with. @param {string} text */
export function plain(text) {
  return /^ [^ \n\t]/.test(text) ? shown(text.slice(1)) : shown(text);
}

/** @param {number} p @param {number} [digits] */
export function percent(p, digits = 1) {
  if (p > 0 && p < 0.5 / 10 ** (digits + 2)) return `<${(1 / 10 ** digits).toFixed(digits)}%`;
  return `${(100 * p).toFixed(digits)}%`;
}

/** Four significant digits. @param {number|null|undefined} x */
export function number(x) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  if (x === 0) return "0";
  const size = Math.abs(x);
  return size >= 1e6 || size < 1e-3 ? x.toExponential(2) : x.toPrecision(size >= 1000 ? 6 : 4).replace(/\.?0+$/, "");
}

const tip = typeof document === "undefined" ? null : h("div", { class: "tip", role: "tooltip", hidden: true });

/** Say something beside a point of the window. @param {string} text @param {number} x @param {number} y */
export function tell(text, x, y) {
  if (!tip) return;
  if (!tip.isConnected) document.body.append(tip);
  tip.textContent = text;
  tip.hidden = !text;
  tip.style.setProperty("left", `${Math.max(8, Math.min(x + 14, innerWidth - tip.offsetWidth - 12))}px`);
  tip.style.setProperty("top", `${y + 18 + tip.offsetHeight > innerHeight ? y - tip.offsetHeight - 12 : y + 18}px`);
}

/** Say nothing any more. */
export function hush() {
  if (tip) tip.hidden = true;
}

/** Show `text()` beside the pointer or the focused element. @param {Element} element @param {() => string} text */
export function hint(element, text) {
  const show = (/** @type {any} */ event) => {
    event.hinted = true;
    const box = element.getBoundingClientRect();
    tell(text(), event.clientX ?? box.left, event.clientY ?? box.bottom);
  };
  element.addEventListener("pointermove", show);
  element.addEventListener("focus", show);
  element.addEventListener("pointerleave", hush);
  element.addEventListener("blur", hush);
  return element;
}
