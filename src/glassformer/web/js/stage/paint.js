/** Drawing on the stage's canvas: colours of numbers, columns of cells, words, bars. Knows nothing of models. */

import { scheme } from "../colour.js";

/** @typedef {{x: number, y: number, w: number, h: number}} Box */
/** @typedef {{box: Box, label: string, act: () => void, key?: string}} Part a place one can click or reach by keyboard */

const THEMES = {
  dark: { zero: [24, 31, 45], plus: [104, 174, 255], minus: [255, 150, 66], ink: "#e8edf5", soft: "#9fb0c8", faint: "#3a475c", slab: "#141c2a", slab2: "#1d1914", chip: "#1d2839", arc: [126, 176, 255], spark: [255, 178, 92], accent: "#5b93ff", ground: "#0d1320", warm: "#ffb268", good: "#7ee0b0" },
  light: { zero: [226, 232, 241], plus: [24, 92, 214], minus: [206, 92, 4], ink: "#17202e", soft: "#4b586c", faint: "#b9c4d4", slab: "#e9eff9", slab2: "#f6eee4", chip: "#e3eaf5", arc: [36, 92, 208], spark: [196, 96, 0], accent: "#1f5fe0", ground: "#fbfcfe", warm: "#a8500a", good: "#0b7a4b" },
};

/** @typedef {(typeof THEMES)["dark"] & {lut: Uint32Array, css: string[], dark: boolean}} Theme */

/** @type {Map<string, Theme>} */
const made = new Map();

/** The colours of now. @returns {Theme} */
export function theme() {
  const name = scheme();
  const found = made.get(name);
  if (found) return found;
  const t = THEMES[name];
  const lut = new Uint32Array(256);
  const css = [];
  for (let i = 0; i < 256; i++) {
    const x = (i - 128) / 127;
    const to = x >= 0 ? t.plus : t.minus;
    const a = Math.min(1, Math.abs(x)) ** 0.7;
    const [r, g, b] = t.zero.map((c, k) => Math.round(c + (to[k] - c) * a));
    lut[i] = (255 << 24) | (b << 16) | (g << 8) | r;
    css.push(`rgb(${r} ${g} ${b})`);
  }
  const whole = { ...t, lut, css, dark: name === "dark" };
  made.set(name, whole);
  return whole;
}

/** Index of a number's colour: a number of twice the column's typical size is at full strength. @param {number} v @param {number} rms */
export function shade(v, rms) {
  return Math.max(0, Math.min(255, Math.round(128 + (127 * v) / (2 * rms || 1))));
}

/** @param {ArrayLike<number>} values */
export function rms(values) {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i] * values[i];
  return Math.sqrt(sum / (values.length || 1));
}

/** @param {number} x */
export const clamp = (x) => (x < 0 ? 0 : x > 1 ? 1 : x);
/** Slow at both ends. @param {number} x */
export const ease = (x) => { const c = clamp(x); return c * c * (3 - 2 * c); };
/** How far along a part of the time. @param {number} t @param {number} from @param {number} to */
export const phase = (t, from, to) => ease((t - from) / (to - from));
/** @param {number} a @param {number} b @param {number} x */
export const mix = (a, b, x) => a + (b - a) * x;
/** @param {number[]} c @param {number} a */
export const rgba = (c, a) => `rgb(${c[0]} ${c[1]} ${c[2]} / ${clamp(a).toFixed(3)})`;

/** Pixels of ordinary type. */
const ORDINARY = 14;
/** Pixels below which no letter is drawn. */
const SMALLEST = 10;

/** A pen: a context with the theme and the size of type. */
export class Pen {
  /** @param {CanvasRenderingContext2D} ctx @param {number} size of ordinary type, in pixels */
  constructor(ctx, size) {
    this.ctx = ctx;
    this.size = size;
    this.t = theme();
    this.drawn = 0;
    /** Texts that did not fit whole. @type {string[]} */
    this.cut = [];
    /** @type {Part[]} */
    this.parts = [];
  }

  /** @param {string} text @param {number} x @param {number} y @param {{size?: number, align?: CanvasTextAlign, colour?: string, weight?: number, most?: number, mono?: boolean, alpha?: number, base?: CanvasTextBaseline}} [o] @returns {number} its width */
  text(text, x, y, { size = 1, align = "left", colour = this.t.ink, weight = 450, most = 0, mono = false, alpha = 1, base = "middle" } = {}) {
    if (alpha <= 0.01) return 0;
    const c = this.ctx;
    const font = (/** @type {number} */ by) => `${weight} ${Math.max(SMALLEST, this.size * size * by).toFixed(1)}px ${mono ? '"DejaVu Sans Mono", ui-monospace, monospace' : '"Inter", "Segoe UI", system-ui, sans-serif'}`;
    c.font = font(1);
    c.textAlign = align;
    c.textBaseline = base;
    c.fillStyle = colour;
    c.globalAlpha = clamp(alpha);
    let shown = text;
    let wide = c.measureText(shown).width;
    if (most && wide > most) {
      // A little smaller rather than cut; large type as small as ordinary type would be.
      c.font = font(Math.max(Math.min(0.78, (0.78 * ORDINARY) / this.size), most / wide));
      wide = c.measureText(shown).width;
    }
    if (most && wide > most + 0.5) {
      this.cut.push(text);
      let [low, high] = [0, text.length];
      while (low < high) {
        const mid = (low + high + 1) >> 1;
        if (c.measureText(`${text.slice(0, mid)}…`).width <= most) low = mid;
        else high = mid - 1;
      }
      shown = `${text.slice(0, low)}…`;
      wide = c.measureText(shown).width;
    }
    c.fillText(shown, x, y);
    c.globalAlpha = 1;
    this.drawn++;
    return wide;
  }

  /** @param {string} text @param {number} [size] @param {number} [weight] */
  wide(text, size = 1, weight = 450) {
    this.ctx.font = `${weight} ${(this.size * size).toFixed(1)}px "Inter", "Segoe UI", system-ui, sans-serif`;
    return this.ctx.measureText(text).width;
  }

  /** As many of some words as fit a width. @param {string[]} words @param {number} most @param {number} [size] @param {number} [weight] @param {string} [before] */
  few(words, most, size = 1, weight = 450, before = "") {
    const said = (/** @type {number} */ n) => before + words.slice(0, n).join("  ·  ");
    let n = words.length;
    while (n > 1 && this.wide(said(n), size, weight) > most) n--;
    return said(n);
  }

  /** Lines of a text that fit a width. @param {string} text @param {number} x @param {number} y @param {number} most @param {any} [o] @returns {number} the y below */
  lines(text, x, y, most, o = {}) {
    const step = this.size * (o.size ?? 1) * 1.35;
    let line = "";
    for (const word of text.split(" ")) {
      const longer = line ? `${line} ${word}` : word;
      if (line && this.wide(longer, o.size ?? 1, o.weight ?? 450) > most) {
        this.text(line, x, y, o);
        y += step;
        line = word;
      } else line = longer;
    }
    if (line) this.text(line, x, y, o);
    return y + step;
  }

  /** @param {number} x @param {number} y @param {number} w @param {number} h @param {string} fill @param {number} [r] @param {number} [alpha] */
  rect(x, y, w, h, fill, r = 0, alpha = 1) {
    const c = this.ctx;
    c.globalAlpha = clamp(alpha);
    c.fillStyle = fill;
    if (r > 0 && w > 1 && h > 1) {
      c.beginPath();
      c.roundRect(x, y, w, h, Math.min(r, w / 2, h / 2));
      c.fill();
    } else c.fillRect(x, y, w, h);
    c.globalAlpha = 1;
    this.drawn++;
  }

  /** @param {number} x @param {number} y @param {number} w @param {number} h @param {string} stroke @param {number} [r] @param {number} [width] */
  frame(x, y, w, h, stroke, r = 6, width = 1.5) {
    const c = this.ctx;
    c.strokeStyle = stroke;
    c.lineWidth = width;
    c.beginPath();
    c.roundRect(x, y, w, h, r);
    c.stroke();
    this.drawn++;
  }

  /** @param {[number, number][]} points @param {string} colour @param {number} [width] @param {number} [alpha] */
  line(points, colour, width = 1.5, alpha = 1) {
    const c = this.ctx;
    c.globalAlpha = clamp(alpha);
    c.strokeStyle = colour;
    c.lineWidth = width;
    c.lineJoin = c.lineCap = "round";
    c.beginPath();
    points.forEach(([x, y], i) => (i ? c.lineTo(x, y) : c.moveTo(x, y)));
    c.stroke();
    c.globalAlpha = 1;
    this.drawn++;
  }

  /** @param {number} x @param {number} y @param {number} r @param {string} fill @param {number} [alpha] */
  dot(x, y, r, fill, alpha = 1) {
    const c = this.ctx;
    c.globalAlpha = clamp(alpha);
    c.fillStyle = fill;
    c.beginPath();
    c.arc(x, y, Math.max(0, r), 0, 7);
    c.fill();
    c.globalAlpha = 1;
    this.drawn++;
  }

  /** An arrow with a head. @param {number} x0 @param {number} y0 @param {number} x1 @param {number} y1 @param {string} colour @param {number} [width] */
  arrow(x0, y0, x1, y1, colour, width = 2.5) {
    const a = Math.atan2(y1 - y0, x1 - x0);
    const s = 3.2 * width;
    this.line([[x0, y0], [x1, y1]], colour, width);
    this.line([[x1 - s * Math.cos(a - 0.45), y1 - s * Math.sin(a - 0.45)], [x1, y1], [x1 - s * Math.cos(a + 0.45), y1 - s * Math.sin(a + 0.45)]], colour, width);
  }

  /** A vector as a column (or, lying, a row) of coloured cells. @param {ArrayLike<number>} values @param {Box} box @param {{typical?: number, lying?: boolean, alpha?: number, upTo?: number}} [o] */
  column(values, { x, y, w, h }, { typical = 0, lying = false, alpha = 1, upTo = 1 } = {}) {
    const n = values.length;
    const size = typical || rms(values);
    const c = this.ctx;
    c.globalAlpha = clamp(alpha);
    const step = (lying ? w : h) / n;
    const gap = step > 4 ? 1 : 0;
    for (let i = 0; i < Math.ceil(n * clamp(upTo)); i++) {
      c.fillStyle = this.t.css[shade(values[i], size)];
      if (lying) c.fillRect(x + i * step, y, step - gap, h);
      else c.fillRect(x, y + i * step, w, step - gap);
    }
    c.globalAlpha = 1;
    this.drawn++;
  }

  /** A place that answers a click. @param {Box} box @param {string} label @param {() => void} act @param {string} [key] */
  part(box, label, act, key) {
    this.parts.push({ box, label, act, key });
  }
}

/** A number as it stands in a picture. @param {number} x @param {number} [digits] */
export function num(x, digits = 2) {
  if (!Number.isFinite(x)) return "–";
  const a = Math.abs(x);
  const text = a >= 1000 ? Math.round(a).toLocaleString("en") : a >= 100 ? a.toFixed(Math.min(1, digits)) : a.toFixed(digits);
  return x < 0 ? `−${text}` : text;
}

/** @param {number} x */
export function pct(x) {
  return x >= 0.0995 ? `${(100 * x).toFixed(0)} %` : x >= 0.001 ? `${(100 * x).toFixed(1)} %` : x > 0 ? "<0.1 %" : "0 %";
}
