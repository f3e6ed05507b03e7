/** Squarified treemap (Bruls, Huizing, van Wijk 2000): rectangles whose areas are the values. */

/**
 * @param {{name: string, value: number}[]} items @param {number} width @param {number} height
 * @returns {{name: string, value: number, x: number, y: number, w: number, h: number}[]}
 */
export function treemap(items, width, height) {
  const total = items.reduce((s, i) => s + i.value, 0);
  const left = items.filter((i) => i.value > 0).sort((a, b) => b.value - a.value).map((i) => ({ ...i, area: (i.value / total) * width * height }));
  const out = [];
  let [x, y, w, h] = [0, 0, width, height];
  while (left.length) {
    const side = Math.min(w, h);
    const row = [left[0]];
    let sum = left[0].area;
    const worst = (/** @type {number} */ s, /** @type {{area: number}[]} */ r) => Math.max(...r.map((i) => Math.max((side * side * i.area) / (s * s), (s * s) / (side * side * i.area))));
    while (row.length < left.length && worst(sum + left[row.length].area, [...row, left[row.length]]) <= worst(sum, row)) {
      sum += left[row.length].area;
      row.push(left[row.length]);
    }
    const thick = sum / side;
    let at = 0;
    for (const item of row) {
      const long = item.area / thick;
      out.push(w >= h ? { name: item.name, value: item.value, x, y: y + at, w: thick, h: long } : { name: item.name, value: item.value, x: x + at, y, w: long, h: thick });
      at += long;
    }
    if (w >= h) { x += thick; w -= thick; } else { y += thick; h -= thick; }
    left.splice(0, row.length);
  }
  return out;
}
