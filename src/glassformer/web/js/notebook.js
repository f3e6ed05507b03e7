/** The page inside a notebook: a frame of its own, whose questions go to the kernel and whose answers come back. */

/** @param {{model: any, el: HTMLElement}} widget */
function render({ model, el }) {
  const frame = document.createElement("iframe");
  frame.title = "Glassformer";
  // Scripts only: the frame reaches neither the notebook nor the network.
  frame.setAttribute("sandbox", "allow-scripts allow-downloads");
  frame.style.setProperty("width", "100%");
  frame.style.setProperty("height", `${model.get("height")}px`);
  frame.style.setProperty("border", "0");
  frame.style.setProperty("border-radius", "12px");
  frame.srcdoc = model.get("page");
  const ask = (/** @type {MessageEvent} */ event) => {
    if (event.source === frame.contentWindow && event.data?.glassformer) model.send(event.data);
  };
  const answer = (/** @type {any} */ message) => frame.contentWindow?.postMessage({ glassformer: true, ...message }, "*");
  addEventListener("message", ask);
  model.on("msg:custom", answer);
  el.append(frame);
  return () => {
    removeEventListener("message", ask);
    model.off("msg:custom", answer);
  };
}

export default { render };
