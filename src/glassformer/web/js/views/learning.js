/** Learning: the room's door; what draws it is fetched when it is opened. */

/** @param {HTMLElement} element @param {any} source @param {import("../store.js").Store} state */
export async function mount(element, source, state) {
  element.setAttribute("aria-busy", "true");
  const room = await import("./runs.js");
  room.mount(element, source, state);
  element.removeAttribute("aria-busy");
}
