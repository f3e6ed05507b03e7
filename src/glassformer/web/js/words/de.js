/** German. */

/** @type {Record<string, string>} */
export const DE = {};
