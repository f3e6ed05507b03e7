/** An image of a view: what stands on the page, drawn into a PNG. */

import { h } from "./dom.js";
import { say } from "./words.js";

/** Style properties that a picture must carry with it. */
const KEPT = [
  "display", "position", "inset", "left", "top", "right", "bottom", "width", "height", "min-width", "max-width", "margin", "padding", "border", "border-radius", "box-sizing",
  "background-color", "background-image", "background-size", "background-position", "background-origin", "background-clip", "color", "font", "font-variant-numeric", "letter-spacing", "line-height", "text-align", "vertical-align", "white-space", "overflow", "text-overflow",
  "grid-template-columns", "grid-auto-flow", "grid-auto-columns", "grid-column", "gap", "flex", "flex-wrap", "flex-direction", "align-items", "justify-content", "align-self", "justify-self", "opacity", "transform",
  "border-collapse", "border-spacing", "list-style", "stroke", "stroke-width", "fill", "stroke-dasharray", "aspect-ratio", "image-rendering", "outline", "outline-offset", "z-index", "text-anchor",
];

/** @param {HTMLElement} element @param {string} [note] written over it @returns {Promise<Blob>} */
export async function picture(element, note = "") {
  const { text, width, height } = await grounded(element, note);
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const scale = Math.min(2, 16000 / Math.max(width, height));
  const canvas = h("canvas", { width: Math.round(width * scale), height: Math.round(height * scale) });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((done, fail) => canvas.toBlob((/** @type {Blob|null} */ blob) => (blob ? done(blob) : fail(new Error(say("picture.none")))), "image/png"));
}

/** The same as SVG that stands alone. @param {HTMLElement} element @param {string} [note] */
export async function grounded(element, note = "") {
  const box = element.getBoundingClientRect();
  const [width, height] = [Math.ceil(box.width), Math.ceil(element.scrollHeight) + (note ? 40 : 0)];
  const copy = /** @type {HTMLElement} */ (element.cloneNode(true));
  dress(element, copy);
  copy.style.setProperty("margin", "0");
  copy.style.setProperty("height", "auto");
  copy.style.setProperty("background-color", getComputedStyle(document.documentElement).backgroundColor);
  if (note) copy.prepend(h("p", { style: { margin: "0", height: "40px", font: getComputedStyle(element).font, color: getComputedStyle(element).color } }, note));
  copy.prepend(h("style", {}, await grounds(copy)));
  const text = new XMLSerializer().serializeToString(copy);
  return { text: `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}"><foreignObject width="100%" height="100%">${text}</foreignObject></svg>`, width, height };
}

/** Computed styles onto the copy, canvases as images, fields as their text. @param {Element} from @param {Element} to */
function dress(from, to) {
  const style = getComputedStyle(from);
  const target = /** @type {HTMLElement} */ (to);
  for (const name of KEPT) target.style?.setProperty(name, style.getPropertyValue(name));
  const [a, b] = [[...from.children], [...to.children]];
  // A row stays a row, though the picture's letters may be a hair wider.
  const row = style.display.endsWith("flex") && new Set(a.map((child) => /** @type {HTMLElement} */ (child).offsetTop)).size < 2;
  if (row) target.style.setProperty("flex-wrap", "nowrap");
  a.forEach((child, i) => {
    if (child instanceof HTMLCanvasElement) {
      const image = h("img", { src: child.width && child.height ? child.toDataURL() : "", alt: "" });
      b[i].replaceWith(image);
      dress(child, image);
    } else {
      dress(child, b[i]);
    }
  });
  if (from instanceof HTMLTextAreaElement) to.textContent = from.value;
  if (from instanceof HTMLInputElement) to.setAttribute("value", from.value);
}

/** A rule for each picture that lies behind elements, with the picture inside: an image cannot load anything. @param {HTMLElement} copy */
async function grounds(copy) {
  /** @type {Map<string, HTMLElement[]>} */
  const users = new Map();
  for (const element of /** @type {NodeListOf<HTMLElement>} */ (copy.querySelectorAll("[style*='blob:']"))) {
    const [, url] = /url\("?(blob:[^")]*)"?\)/.exec(element.style.backgroundImage) ?? [];
    if (url) users.set(url, [...(users.get(url) ?? []), element]);
  }
  const rules = [...users].map(async ([url, elements], i) => {
    const image = new Image();
    image.src = url;
    await image.decode();
    const canvas = h("canvas", { width: image.width, height: image.height });
    canvas.getContext("2d").drawImage(image, 0, 0);
    for (const element of elements) {
      element.style.removeProperty("background-image");
      element.classList.add(`ground-${i}`);
    }
    return `.ground-${i} { background-image: url("${canvas.toDataURL()}"); }`;
  });
  return (await Promise.all(rules)).join("\n");
}

/** Offer a file. @param {Blob} blob @param {string} name */
export function save(blob, name) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // a busy machine may begin late
}
