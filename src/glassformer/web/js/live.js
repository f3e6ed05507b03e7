/** A view's cycle: ask when seen, show that it works, cancel what is no longer wanted, say what went wrong. */

import { h, put } from "./dom.js";

/**
 * @param {HTMLElement} element what shows the data
 * @param {import("./store.js").Store} state
 * @param {string[]} keys fields it depends on
 * @param {(signal: AbortSignal) => Promise<any>} ask
 * @param {(data: any) => void} draw
 * @param {{clear?: () => void, always?: boolean}} [options] `clear` is called when there is no text any more; with `always` an empty text is asked for too
 * @returns {{refresh: (quiet?: boolean) => void, stop: () => void}}
 */
export function live(element, state, keys, ask, draw, { clear, always = false } = {}) {
  /** @type {AbortController|null} */
  let current = null;
  let seen = false;
  let stale = true;
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  element.before(problem);

  async function run(quiet = false) {
    stale = true;
    current?.abort();
    if (keys.includes("text") && !always && !state.get("text")) {
      // Nothing of a text that is gone stays on the page.
      stale = false;
      problem.hidden = true;
      element.removeAttribute("aria-busy");
      put(element);
      clear?.();
      return;
    }
    if (!seen) {
      problem.hidden = true; // it was of what is no longer asked
      return;
    }
    stale = false;
    const mine = (current = new AbortController());
    if (!quiet) element.setAttribute("aria-busy", "true");
    try {
      const data = await ask(mine.signal);
      if (mine.signal.aborted) return;
      problem.hidden = true;
      if (data !== null) draw(data);
    } catch (error) {
      if (mine.signal.aborted) return;
      problem.textContent = error instanceof Error ? error.message : String(error);
      problem.hidden = false;
      stale = true;
      // The server may come back, at this address and with the same key: the text and the view are still here.
      if (["Gone", "authentication_error"].includes(/** @type {any} */ (error).kind)) setTimeout(() => mine === current && run(), 2000);
    } finally {
      if (mine === current) element.removeAttribute("aria-busy");
    }
  }

  const off = state.on(keys, () => run());
  const watcher = new IntersectionObserver((entries) => {
    seen = entries[entries.length - 1].isIntersecting;
    if (seen && stale) run();
  }, { rootMargin: "900px" }); // what is below is ready when it is scrolled to
  watcher.observe(element);
  return {
    refresh: run,
    stop() {
      off();
      watcher.disconnect();
      current?.abort();
    },
  };
}
