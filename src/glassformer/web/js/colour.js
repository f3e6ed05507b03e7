/** Colours for numbers, readable with any colour vision: one lightness ramp, and blue against orange. */

const RAMPS = {
  light: [[244, 247, 252], [190, 213, 246], [111, 160, 236], [40, 98, 205], [14, 42, 112]],
  dark: [[20, 27, 39], [30, 58, 108], [45, 104, 196], [110, 170, 250], [226, 240, 255]],
};

/** @returns {"light"|"dark"} */
export function scheme() {
  const chosen = document.documentElement.dataset.theme;
  if (chosen === "light" || chosen === "dark") return chosen;
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

/** @param {number} x 0 to 1 @param {"light"|"dark"} [which] @returns {[number, number, number]} */
export function ramp(x, which = scheme()) {
  const stops = RAMPS[which];
  const at = Math.max(0, Math.min(1, x)) * (stops.length - 1);
  const i = Math.min(stops.length - 2, Math.floor(at));
  return /** @type {any} */ (stops[i].map((c, k) => Math.round(c + (stops[i + 1][k] - c) * (at - i))));
}

/** A table of 256 colours as 32-bit pixels. @param {"light"|"dark"} [which] */
export function pixels(which = scheme()) {
  const out = new Uint32Array(256);
  for (let i = 0; i < 256; i++) {
    // The square root shows small weights, which most are.
    const [r, g, b] = ramp(Math.sqrt(i / 255), which);
    out[i] = (255 << 24) | (b << 16) | (g << 8) | r;
  }
  return out;
}

/** @param {number} x 0 to 1 */
export function css(x) {
  return `rgb(${ramp(x).join(" ")})`;
}

/** Black or white, whichever reads better on the ramp at x. @param {number} x */
export function inkOn(x) {
  const [r, g, b] = ramp(x).map((c) => (c / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#101828" : "#ffffff";
}

/** Blue for more, orange for less. @param {number} x -1 to 1 */
export function signed(x) {
  const a = Math.min(1, Math.abs(x)) * 0.85;
  return x >= 0 ? `rgb(47 109 240 / ${a})` : `rgb(224 114 20 / ${a})`;
}

/** A colour of the style sheet as a canvas takes it. @param {string} name such as "--accent" */
export function styled(name) {
  const probe = document.createElement("span");
  probe.style.setProperty("color", `var(${name})`);
  document.body.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}
