// The sliders of a steering (steering_sliders.py): one row a feature, every move told to the server, one at a time.
const [LEAST, MOST, STEP, PAGE, LIMIT] = [-2, 3, 0.05, 0.5, 100]
const PATIENCE = 10000 // milliseconds after which a move counts as lost (a connection that broke) and the next one goes
const REST = 300 // milliseconds without a move after which the address follows
const PASSED_ON = ["j", "k", "?", "r", "1", "2", "3", "4", "5", "6"] // keys of the page that mean nothing to a slider

// Three significant digits and a real minus sign, as escape.py writes them.
function signed(value) {
  if (!value) return "0"
  const size = Math.floor(Math.log10(Math.abs(value)))
  const places = Math.max(2 - size, 0)
  const text = size < -4 || size > 8 ? value.toExponential(1) : value.toLocaleString("en", { minimumFractionDigits: places, maximumFractionDigits: places })
  return (value > 0 ? "+" : "") + text.replaceAll("-", "−")
}

const tone = (value) => (value > 0 ? "rs-up" : value < 0 ? "rs-down" : "rs-muted")
const tidy = (value) => Number(value.toPrecision(6))

export function render({ model }) {
  const root = make("section", model.large ? "steer large" : "steer", null, { "aria-label": "Sliders" })
  const head = make("header")
  const title = make("h3", "", "Features")
  const count = make("span", "rs-muted rs-small")
  const reset_all = make("button", "small", "Reset all", { type: "button", title: "Every multiplier back to 1" })
  const clear = make("button", "small", "Remove all", { type: "button", title: "Take every feature off the sliders" })
  head.append(title, count, reset_all, ...(model.large ? [] : [clear]))
  const adding = make("div", "adding")
  const box = make("input", "", null, { type: "search", role: "combobox", placeholder: "Add a feature: id or label", autocomplete: "off", spellcheck: "false",
    "aria-label": "Add a feature by id or label", "aria-expanded": "false", "aria-autocomplete": "list", "aria-controls": "found" })
  const found = make("ul", "found", null, { id: "found", role: "listbox", "aria-label": "Features found" })
  found.hidden = true
  const top = make("button", "small", "Add most salient", { type: "button" })
  const suggest = make("button", "small", "Suggest …", { type: "button" })
  const buttons = make("div", "buttons")
  buttons.append(top, suggest)
  adding.append(box, found, buttons)
  const said = make("p", "rs-small said", null, { role: "status" })
  const list = make("ul", "rows")
  const empty = make("div", "nothing")
  root.append(head, ...(model.large ? [] : [adding]), said, list, empty)

  // ---------------------------------------------------------------- telling the server: one move in flight, the newest next

  let sent = model.answered, waiting = false, pending = null, resting = null, lost = null, rested = model.settled
  const rows = new Map() // feature -> what is drawn of it

  const send = () => {
    if (waiting || !pending) return
    const move = pending
    pending = null
    waiting = true
    lost = setTimeout(() => { waiting = false; send() }, PATIENCE)
    root.dataset.sent = String(++sent)
    model.send_msg({ move, n: sent })
  }
  const rest = () => {
    if (waiting || pending) { resting = setTimeout(rest, 20); return }
    resting = null
    model.send_msg({ rest: true, n: ++rested })
  }
  const move = (feature, value, at_once = false) => {
    pending = { ...pending, [feature]: tidy(value) }
    paint(rows.get(feature), pending[feature])
    send()
    clearTimeout(resting)
    resting = setTimeout(rest, at_once ? 0 : REST)
  }
  model.on("answered", () => {
    root.dataset.answered = String(model.answered)
    if (model.answered < sent) return
    clearTimeout(lost)
    waiting = false
    send()
  })

  // A link that is clicked before the address has followed a move waits until it has, so that the move goes with it.
  let followed = null, patience = null
  const follow = () => {
    const link = followed
    clearTimeout(patience)
    followed = null
    rested = model.settled // also where the answer never came
    link?.click()
  }
  const hold_link = (event) => {
    if (!root.isConnected) { document.removeEventListener("click", hold_link, true); return }
    if (resting === null && rested === model.settled) return
    const link = event.composedPath().find((node) => node.tagName === "A")
    if (!link?.getAttribute("href")?.startsWith("?") || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return
    event.preventDefault()
    event.stopImmediatePropagation()
    if (resting !== null) { clearTimeout(resting); rest() }
    if (followed === null) patience = setTimeout(follow, PATIENCE)
    followed = link
  }
  document.addEventListener("click", hold_link, true)
  model.on("settled", () => { if (resting === null && rested === model.settled) follow() })

  // ------------------------------------------------------------------------------------------------------------------ rows

  const paint = (row, value) => {
    if (!row) return
    row.value = value
    const active = row.node.getRootNode().activeElement
    row.slider.value = String(Math.min(MOST, Math.max(LEAST, value)))
    if (active !== row.number) row.number.value = String(value)
    const [before, after] = [row.facts.weight, row.facts.weight * value]
    row.slider.setAttribute("aria-valuetext", `${value} times, weight ${signed(before)} → ${signed(after)}`)
    row.before.textContent = `w ${signed(before)}`
    row.before.className = `rs-num ${tone(before)}`
    row.after.textContent = value === 1 ? "" : ` → ${signed(after)}`
    row.after.className = `rs-num ${tone(after)}`
    row.note.textContent = value === 1 ? "unchanged" : value === 0 ? "ablated" : value < LEAST || value > MOST ? "beyond the slider" : ""
    row.reset.disabled = value === 1
    row.node.classList.toggle("moved", value !== 1)
    count_rows()
  }

  const count_rows = () => {
    const moved = [...rows.values()].filter((row) => row.value !== 1).length
    count.textContent = rows.size ? `${moved} of ${rows.size} moved` : ""
    reset_all.disabled = !moved
    clear.disabled = !rows.size
  }

  const remove = (feature) => {
    const order = [...rows.keys()]
    const next = order[order.indexOf(feature) + 1] ?? order[order.indexOf(feature) - 1]
    model.send_msg({ remove: feature })
    ;(rows.get(next)?.slider ?? box).focus()
  }

  const build = (facts) => {
    const { feature } = facts
    const name = `feature ${feature}${facts.label ? `, ${facts.label}` : ""}`
    const row = { facts, node: make("li", "row"), value: 1 }
    row.node.dataset.feature = String(feature)
    const top_line = make("div", "line")
    const link = make("a", "name", null, { href: facts.href, title: `${name}\nOpen its card` })
    link.append(make("span", "id rs-num", `#${feature}`), make("span", facts.label ? "label" : "label none", facts.label || "no label"))
    row.reset = make("button", "mini", "Reset", { type: "button", "aria-label": `Reset ${name}` })
    const away = make("button", "mini", "×", { type: "button", "aria-label": `Remove ${name}`, title: "Take it off the sliders (Delete)" })
    top_line.append(link, row.reset, away)
    row.slider = make("input", "", null, { type: "range", min: LEAST, max: MOST, step: STEP, "aria-label": `Multiplier of ${name}` })
    const track = make("div", "track")
    const marks = make("div", "marks", null, { "aria-hidden": "true" })
    for (const [at, text] of [[-2, "−2"], [0, "0"], [1, "1"], [3, "3"]]) {
      const mark = make("span", at === 1 ? "one" : "", text)
      mark.style.setProperty("--at", String((at - LEAST) / (MOST - LEAST)))
      marks.append(mark)
    }
    track.append(row.slider, marks)
    row.number = make("input", "", null, { type: "number", min: -LIMIT, max: LIMIT, step: STEP, "aria-label": `Multiplier of ${name} as a number` })
    const middle = make("div", "line")
    middle.append(track, make("span", "rs-muted", "×"), row.number)
    const facts_line = make("div", "line rs-small")
    row.before = make("span")
    row.after = make("span")
    row.note = make("span", "rs-muted note")
    const weights = make("span")
    weights.append(row.before, row.after)
    facts_line.append(weights, row.note, make("span", "rs-muted rs-num density", facts.density, { title: "share of answer tokens on which it is active" }))
    row.node.append(top_line, middle, facts_line)

    row.slider.addEventListener("input", () => move(feature, Number(row.slider.value)))
    row.slider.addEventListener("keydown", (event) => {
      const by = { PageUp: PAGE, PageDown: -PAGE, ArrowUp: STEP, ArrowRight: STEP, ArrowDown: -STEP, ArrowLeft: -STEP }[event.key]
      if (event.ctrlKey || event.metaKey || event.altKey) return
      if (by) {
        event.preventDefault()
        event.stopPropagation()
        move(feature, Math.min(MOST, Math.max(LEAST, Math.round((row.value + by) / STEP) * STEP)))
      } else if (event.key === "Delete") {
        remove(feature)
      } else if (PASSED_ON.includes(event.key)) {
        document.body.dispatchEvent(new KeyboardEvent("keydown", { key: event.key, bubbles: true }))
      }
    })
    row.number.addEventListener("input", () => {
      const value = row.number.value === "" ? NaN : Number(row.number.value)
      if (Number.isFinite(value) && Math.abs(value) <= LIMIT) {
        row.number.removeAttribute("aria-invalid")
        move(feature, value)
      } else {
        row.number.setAttribute("aria-invalid", "true")
      }
    })
    row.number.addEventListener("blur", () => { row.number.removeAttribute("aria-invalid"); row.number.value = String(row.value) })
    row.reset.addEventListener("click", () => { move(feature, 1, true); row.slider.focus() })
    away.addEventListener("click", () => remove(feature))
    return row
  }

  const draw_rows = () => {
    const known = new Map(rows)
    const here = root.contains(root.getRootNode().activeElement) // before what had the focus goes
    let fresh = null
    rows.clear()
    for (const facts of model.rows) {
      const had = known.get(facts.feature)
      const row = had ?? build(facts)
      if (!had) fresh = row
      rows.set(facts.feature, row)
    }
    list.replaceChildren(...[...rows.values()].map((row) => row.node))
    draw_empty()
    show()
    if (fresh && here) {
      fresh.slider.focus()
      fresh.node.scrollIntoView({ block: "nearest" })
    }
  }

  const show = () => {
    for (const [feature, row] of rows) {
      const value = pending?.[feature] ?? (waiting ? row.value : model.values[feature] ?? 1)
      paint(row, value)
    }
    count_rows()
  }

  // ------------------------------------------------------------------------------------------------------------- adding one

  const offer = (one) => {
    const button = make("button", "offer", null, { type: "button", title: one.label })
    button.append(make("span", "id rs-num", `#${one.feature}`), make("span", "label", one.label || "no label"), make("span", "hint rs-num", one.hint))
    button.addEventListener("click", () => model.send_msg({ add: [one.feature] }))
    return button
  }

  const draw_empty = () => {
    empty.replaceChildren()
    empty.hidden = rows.size > 0
    if (rows.size) return
    for (const text of model.about) empty.append(make("p", "", text))
    if (model.offers.length) empty.append(make("h4", "", model.offers_title), ...model.offers.map(offer))
  }

  let at = -1
  const options = () => [...found.querySelectorAll("[role=option]")]
  const close = () => { found.hidden = true; box.setAttribute("aria-expanded", "false"); box.removeAttribute("aria-activedescendant"); at = -1 }
  const mark = () => options().forEach((option, i) => {
    option.setAttribute("aria-selected", String(i === at))
    if (i === at) { option.scrollIntoView({ block: "nearest" }); box.setAttribute("aria-activedescendant", option.id) }
  })
  const take = (feature) => { box.value = ""; close(); model.send_msg({ add: [feature] }) }
  const draw_found = () => {
    found.replaceChildren(...model.results.map((one, i) => {
      const item = make("li", "", null, one.feature === null ? {} : { role: "option", id: `found-${i}` })
      item.append(make("span", "id rs-num", one.feature === null ? "" : `#${one.feature}`), make("span", "label", one.label), make("span", "hint rs-num", one.hint))
      if (one.feature !== null) item.addEventListener("click", () => take(one.feature))
      return item
    }))
    const open = model.results.length > 0 && box.value.trim() !== ""
    found.hidden = !open
    box.setAttribute("aria-expanded", String(open))
    at = options().length ? 0 : -1
    mark()
  }
  let asking
  box.addEventListener("input", () => {
    clearTimeout(asking)
    if (!box.value.trim()) { close(); return }
    asking = setTimeout(() => model.send_msg({ query: box.value }), 120)
  })
  box.addEventListener("keydown", (event) => {
    const n = options().length
    if (event.key === "ArrowDown" && n) { at = (at + 1) % n; mark() }
    else if (event.key === "ArrowUp" && n) { at = (at - 1 + n) % n; mark() }
    else if (event.key === "Enter" && !found.hidden && at >= 0) options()[at].click()
    else if (event.key === "Escape") { box.value = ""; close(); return }
    else return
    event.preventDefault()
  })
  found.addEventListener("mousedown", (event) => event.preventDefault())
  box.addEventListener("blur", close)
  top.addEventListener("click", () => model.send_msg({ top: true }))
  suggest.addEventListener("click", () => model.send_msg({ suggest: true }))
  reset_all.addEventListener("click", () => model.send_msg({ reset: true }))
  clear.addEventListener("click", () => model.send_msg({ clear: true }))

  const draw_said = () => {
    said.textContent = model.said
    said.hidden = !model.said
    suggest.hidden = !model.can_suggest
    suggest.disabled = model.busy
    top.title = model.offers_title
  }

  model.on("rows", draw_rows)
  model.on("values", show)
  model.on(["offers", "about", "offers_title"], () => { draw_empty(); draw_said() })
  model.on("results", draw_found)
  model.on(["said", "busy", "can_suggest"], draw_said)
  draw_rows()
  draw_said()
  return root
}
