// The page's side of the shared state: address bar, plain links, keys, and the classes that colour everything.
const TYPING = "input, textarea, select, [contenteditable='true']"

function target(event) {
  return event.composedPath()[0]
}

function* roots(root = document) {
  yield root
  for (const element of root.querySelectorAll("*")) {
    if (element.shadowRoot) { yield* roots(element.shadowRoot) }
  }
}

// A steering "12:1,7:0.5" with one entry more, unless its feature is there already.
function added(steering, entry) {
  const entries = (steering ?? "").split(",").filter(Boolean)
  const feature = entry.split(":")[0]
  return entries.some((one) => one.split(":")[0] === feature) ? steering : [...entries, entry].join(",")
}

function visible(element) {
  return element.getClientRects().length > 0
}

function focus_search() {
  for (const root of roots()) {
    for (const host of root.querySelectorAll(".rs-search")) {
      const input = host.matches("input") ? host : [...roots(host.shadowRoot ?? host)].map((r) => r.querySelector("input")).find(Boolean)
      if (input && visible(input)) { input.focus(); input.select(); return }
    }
  }
}

export function render({model}) {
  const html = document.documentElement
  const place = (search) => {
    const query = new URLSearchParams(search)
    return [query.get("run"), query.get("view") ?? "features", query.get("f"), query.get("p"), query.get("present")].join("\n")
  }
  const run_of = (search) => new URLSearchParams(search).get("run")

  const write_url = () => {
    if (model.search === location.search) { return }
    if (run_of(location.search) && run_of(model.search) !== run_of(location.search)) {
      location.assign(location.pathname + model.search)
      return
    }
    // What is opened is a step back; how it is filtered is not.
    const step = place(model.search) !== place(location.search) && run_of(location.search)
    history[step ? "pushState" : "replaceState"](null, "", location.pathname + model.search)
  }
  const colour = () => {
    html.classList.toggle("rs-dark", model.dark)
    html.classList.toggle("rs-revealed", model.reveal)
    html.classList.toggle("rs-present", model.present)
  }
  model.on("search", write_url)
  model.on(["dark", "reveal", "present"], colour)
  colour()
  if (model.search !== location.search) { history.replaceState(null, "", location.pathname + model.search) }

  window.addEventListener("popstate", () => {
    if (run_of(location.search) !== run_of(model.search)) { location.reload() } else { model.search = location.search }
  })

  window.addEventListener("beforeunload", (event) => {
    if (model.unsaved) { event.preventDefault() }
  })

  document.addEventListener("click", (event) => {
    const link = event.composedPath().find((node) => node.tagName === "A")
    const href = link?.getAttribute("href")
    if (!href?.startsWith("?") || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) { return }
    event.preventDefault()
    const now = new URLSearchParams(location.search)
    for (const [key, value] of new URLSearchParams(href)) {
      if (value === "" && link.hasAttribute("data-clears")) { now.delete(key) }
      else if (key === "steer" && link.dataset.adds) { now.set(key, added(now.get(key), link.dataset.adds)) }
      else { now.set(key, value) }
    }
    model.search = "?" + now.toString()
  })

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) { return }
    const node = target(event)
    const typing = node instanceof Element && node.matches(TYPING)
    if (event.key === "Escape") {
      if (typing && node.type !== "range") { node.blur() } else { model.send_msg({key: "Escape"}) }
      return
    }
    if (typing) { return }
    const in_widget = node instanceof Element && node.closest("[role=slider], [role=listbox], [role=menu], [role=tablist], [role=option], canvas, .bk-Canvas")
    if (event.key === "/") {
      event.preventDefault()
      focus_search()
    } else if (["j", "k", "?", "r", "1", "2", "3", "4", "5", "6", "+", "-", "0"].includes(event.key) || (["ArrowDown", "ArrowUp"].includes(event.key) && !in_widget)) {
      event.preventDefault()
      model.send_msg({key: event.key})
    }
  })
  const marker = document.createElement("span")
  marker.hidden = true
  return marker
}
