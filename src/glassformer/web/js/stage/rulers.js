/** Names at the edges of the whole machine's picture while it is seen from near. */

import { plain } from "../dom.js";

/** @typedef {import("./machine.js").Machine} Machine @typedef {import("./paint.js").Pen} Pen */

/** Words and layers at the edges, where the picture is seen from near. @param {Machine} m @param {Pen} pen @param {import("./camera.js").Camera} camera */
export function rulers(m, pen, camera) {
  const gone = m.tall ? camera.y < -m.chip * camera.k * 0.5 : camera.x < -m.chip * camera.k * 0.5;
  if (!gone && m.every === 1) return;
  const { d } = m;
  const every = Math.max(1, Math.ceil((pen.size * 1.5) / (m.gap * camera.k)));
  if (m.tall) return above(m, pen, camera, every);
  for (let i = 0; i < d.count; i += every) {
    const y = m.v(i) * camera.k + camera.y;
    if (y < 26 || y > m.h - 10) continue;
    const name = plain(d.tokens[i].text);
    const w = Math.min(130, pen.wide(name, 0.9, 600)) + 14;
    pen.rect(6, y - 12, w, 24, pen.t.chip, 7, 0.92);
    pen.text(name, 13, y, { size: 0.9, weight: 600, most: 130 });
  }
  const step = Math.max(1, Math.ceil(30 / (2 * m.step * camera.k)));
  for (let layer = 0; layer < d.layers; layer += step) {
    const x = (m.at(layer) + m.step) * camera.k + camera.x;
    if (x < 150 || x > m.w - 16) continue;
    pen.rect(x - 15, 2, 30, 20, pen.t.chip, 6, 0.92);
    pen.text(String(layer), x, 12, { size: 0.76, align: "center" });
  }
}

/** Words over a narrow picture that is seen from near. @param {Machine} m @param {Pen} pen @param {import("./camera.js").Camera} camera @param {number} every */
function above(m, pen, camera, every) {
  const { d } = m;
  const long = Math.min(96, m.chip - m.head);
  pen.rect(0, 0, m.w, long + 8, pen.t.ground, 0, 0.92);
  for (let i = 0; i < d.count; i += every) {
    const x = m.v(i) * camera.k + camera.x;
    if (x < 6 || x > m.w - 6) continue;
    pen.ctx.save();
    pen.ctx.translate(x, long + 2);
    pen.ctx.rotate(-Math.PI / 2);
    pen.text(plain(d.tokens[i].text), 0, 0, { size: 0.85, weight: i === d.position ? 700 : 500, colour: i === d.position ? pen.t.accent : pen.t.ink, most: long - 2 });
    pen.ctx.restore();
  }
}
