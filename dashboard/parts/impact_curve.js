// The curve of a domain, large, with every domain small beside it (impact_curve.py). Builds elements, never markup.
const HEIGHT = 15 // a line of text at the end of a curve

function element(tag, attributes = {}, text = null) {
  const node = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value)
  if (text !== null) node.textContent = text
  return node
}

function titled(node, text) {
  node.append(shape("title", {}, text))
  return node
}

const known = (value) => typeof value === "number" && Number.isFinite(value)

const minus = (text) => text.replace("-", "−")

export function render({ model }) {
  const root = element("div", { class: "impact" })
  const plot = element("div", { class: "plot" })
  const list = element("div", { class: "domains", role: "group", "aria-label": "Held-out domains" })
  root.append(plot, list)
  let drag = false

  // y values of everything that is drawn of a domain
  const extent = (domain, now, all) => {
    const values = [domain.unchanged]
    for (const line of domain.lines) {
      for (const [, value, low, high] of line.points) values.push(value, ...(line.main ? [low, high] : []))
    }
    for (const [, low, high] of domain.band) values.push(low, high)
    if (all) for (const point of domain.retrained) values.push(point.value, point.low, point.high)
    if (now) values.push(now.value, now.low, now.high)
    const finite = values.filter(known)
    if (!finite.length) return [0, 1]
    let [low, high] = [Math.min(...finite), Math.max(...finite)]
    const least = model.content.measure === "accuracy" ? 0.04 : 0.02
    if (high - low < least) [low, high] = [(low + high - least) / 2, (low + high + least) / 2]
    const air = 0.07 * (high - low)
    return [low - air, high + air]
  }

  const path = (points, x, y) => points.map(([at, value], i) => `${i ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("")
  const area = (points, x, y) => {
    const upper = points.map(([at, , high]) => [at, high])
    const lower = points.map(([at, low]) => [at, low]).reverse()
    return `${path([...upper, ...lower], x, y)}Z`
  }

  const whisker = (x, low, high, y, kind) => {
    const group = shape("g", { class: `whisker ${kind}` })
    if (!known(low) || !known(high)) return group
    group.append(shape("line", { x1: x, x2: x, y1: y(low), y2: y(high) }))
    for (const end of [low, high]) group.append(shape("line", { x1: x - 4, x2: x + 4, y1: y(end), y2: y(end) }))
    return group
  }

  // Band, lines, unchanged level: what the large and the small drawings share.
  const curves = (into, domain, x, y, right, small) => {
    const band = domain.band.filter(([, low, high]) => known(low) && known(high))
    if (band.length > 1) into.append(shape("path", { class: "spread", d: area(band, x, y) }))
    const main = domain.lines.find((line) => line.main)
    if (main && !small) {
      const sure = main.points.filter(([, , low, high]) => known(low) && known(high)).map(([at, , low, high]) => [at, low, high])
      if (sure.length > 1) into.append(shape("path", { class: "sure", d: area(sure, x, y) }))
    }
    if (known(domain.unchanged)) {
      into.append(shape("line", { class: "unchanged", x1: x(0), x2: right, y1: y(domain.unchanged), y2: y(domain.unchanged) }))
    }
    for (const line of domain.lines) {
      const points = line.points.filter(([, value]) => known(value))
      if (small && !line.main) continue
      into.append(shape("path", { class: `line ${line.key}${line.main ? " main" : ""}`, d: path(points, x, y) }))
      if (line.main && !small) {
        for (const [at, value] of points) if (at > 0) into.append(shape("circle", { class: "measured", cx: x(at), cy: y(value), r: 2.5 }))
      }
    }
  }

  const draw_plot = () => {
    const { content, now } = model
    const domain = content.domains?.find((one) => one.name === content.big)
    plot.replaceChildren()
    if (!domain) return
    const box = { width: plot.clientWidth || 400, height: plot.clientHeight || 260 }
    const edge = { left: 50, right: 104, top: 34, bottom: 34 }
    const here = now.values?.[domain.name]
    const [low, high] = extent(domain, here, true)
    const right = box.width - edge.right
    const bottom = box.height - edge.bottom
    const x = (ratio) => edge.left + (ratio / content.x_max) * (right - edge.left)
    const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - edge.top)
    const drawing = shape("svg", { width: box.width, height: box.height, role: "img", "aria-label": content.summary })
    const percent = content.measure === "accuracy"
    const across = ticks(low, high, Math.min(8, Math.max(3, Math.floor((bottom - edge.top) / 36))))
    for (const value of across.found) {
      drawing.append(shape("line", { class: "grid", x1: edge.left, x2: right, y1: y(value), y2: y(value) }))
      const text = percent ? `${(100 * value).toFixed(Math.max(0, across.decimals - 2))} %` : minus(value.toFixed(across.decimals))
      drawing.append(shape("text", { class: "tick", x: edge.left - 6, y: y(value) + 4, "text-anchor": "end" }, text))
    }
    for (const ratio of ticks(0, content.x_max, 5).found) {
      drawing.append(shape("line", { class: "notch", x1: x(ratio), x2: x(ratio), y1: bottom, y2: bottom + 4 }))
      drawing.append(shape("text", { class: "tick", x: x(ratio), y: bottom + 17, "text-anchor": "middle" }, `${+(100 * ratio).toFixed(1)} %`))
    }
    drawing.append(shape("line", { class: "axis", x1: edge.left, x2: right, y1: bottom, y2: bottom }))
    drawing.append(shape("text", { class: "tick", x: right, y: box.height - 4, "text-anchor": "end" }, content.x_title))
    curves(drawing, domain, x, y, right, false)

    // Names at the right, moved apart where lines end together.
    const names = domain.lines.filter((line) => line.points.some(([, value]) => known(value))).map((line) => {
      const points = line.points.filter(([, value]) => known(value))
      const [at, value] = points[points.length - 1]
      return { text: line.name, key: line.key, main: line.main, x: x(at), y: y(value), to: y(value) }
    })
    if (known(domain.unchanged)) names.push({ text: "unchanged", key: "none", x: right, y: y(domain.unchanged), to: y(domain.unchanged) })
    names.sort((one, other) => one.y - other.y)
    names.forEach((name, i) => { if (i) name.to = Math.max(name.to, names[i - 1].to + HEIGHT) })
    let limit = bottom + 2
    for (const name of [...names].reverse()) { name.to = Math.min(name.to, limit); limit = name.to - HEIGHT }
    for (const name of names) {
      if (right - name.x > 8 || Math.abs(name.to - name.y) > 5) {
        drawing.append(shape("line", { class: "leader", x1: name.x + 2, y1: name.y, x2: right + 4, y2: name.to }))
      }
      drawing.append(shape("text", { class: `name ${name.main ? "main" : ""}`, x: right + 7, y: name.to + 4 }, name.text))
    }

    // What was really retrained: diamonds with whiskers, a little to the right of the previews they belong to.
    for (const point of domain.retrained.filter((one) => known(one.value) && one.ratio <= content.x_max)) {
      const [cx, cy] = [x(point.ratio) + (point.main ? 9 : 0), y(point.value)]
      const group = titled(shape("g", { class: `retrained${point.main ? " main" : ""}` }), point.said)
      group.append(whisker(cx, point.low, point.high, y, ""))
      group.append(shape("path", { d: `M${cx} ${cy - 7}L${cx + 7} ${cy}L${cx} ${cy + 7}L${cx - 7} ${cy}Z` }))
      drawing.append(group)
    }

    // The slider's ratio.
    const at = x(Math.min(model.ratio, content.x_max))
    const marker = shape("g", { class: `marker ${now.state ?? ""}` })
    marker.append(shape("line", { class: "at", x1: at, x2: at, y1: edge.top - 6, y2: bottom }))
    if (here && known(here.value) && Math.abs(now.ratio - model.ratio) < 1e-9) {
      marker.append(whisker(at, here.low, here.high, y, ""))
      marker.append(shape("circle", { class: "point", cx: at, cy: y(here.value), r: 5.5 }))
    }
    const label = shape("text", { class: "said", y: 14, "text-anchor": at > (edge.left + right) / 2 ? "end" : "start", x: at > (edge.left + right) / 2 ? at + 4 : at - 4 }, model.now.said ?? "")
    marker.append(label)
    drawing.append(marker)
    plot.append(drawing)
    plot.dataset.state = now.state ?? ""
    plot.dataset.ratio = String(now.ratio ?? "")
    drawing._ratio = (event) => {
      const box = drawing.getBoundingClientRect()
      const share = (event.clientX - box.left - edge.left) / (right - edge.left)
      return Math.round(1000 * content.x_max * Math.min(1, Math.max(0, share))) / 1000
    }
    fit_label(label, box.width)
  }

  const fit_label = (label, width) => {
    const length = label.getComputedTextLength?.() ?? 0
    const end = label.getAttribute("text-anchor") === "end"
    const at = Number(label.getAttribute("x"))
    if (end && at - length < 2) label.setAttribute("x", length + 2)
    if (!end && at + length > width - 2) label.setAttribute("x", width - 2 - length)
  }

  const draw_list = () => {
    const { content, now } = model
    const had = list.contains(root.getRootNode().activeElement) ? root.getRootNode().activeElement.dataset.name : null
    const top = list.scrollTop
    list.replaceChildren()
    for (const domain of content.domains ?? []) {
      const here = now.values?.[domain.name]
      const row = element("button", { type: "button", class: "domain", "aria-pressed": String(domain.name === content.big), title: domain.help })
      row.dataset.name = domain.name
      const [width, height] = [72, 24]
      const [low, high] = extent(domain, here, false)
      const x = (ratio) => 1 + (ratio / content.x_max) * (width - 2)
      const y = (value) => height - 2 - ((value - low) / (high - low)) * (height - 4)
      const drawing = shape("svg", { width, height, "aria-hidden": "true" })
      curves(drawing, domain, x, y, width, true)
      if (here && known(here.value)) {
        drawing.append(shape("circle", { class: "point", cx: x(Math.min(now.ratio, content.x_max)), cy: y(here.value), r: 2.5 }))
      }
      const names = element("span", { class: "who" })
      names.append(element("span", { class: "title" }, domain.title), element("span", { class: "n" }, `n = ${domain.n.toLocaleString("en")}`))
      const figures = element("span", { class: "figures" })
      figures.append(element("span", { class: "value" }, here?.text ?? domain.text))
      figures.append(element("span", { class: `change${here?.sure ? " certain" : ""}` }, here?.change ?? ""))
      row.append(names, drawing, figures)
      row.addEventListener("click", () => model.send_msg({ domain: domain.name }))
      list.append(row)
      if (domain.name === had) row.focus()
    }
    list.scrollTop = top
  }

  const draw = () => { draw_plot(); draw_list() }

  plot.addEventListener("pointerdown", (event) => {
    const drawing = plot.querySelector("svg")
    if (event.button || !drawing?._ratio) return
    drag = true
    plot.setPointerCapture(event.pointerId)
    model.send_msg({ ratio: drawing._ratio(event) })
    event.preventDefault()
  })
  plot.addEventListener("pointermove", (event) => {
    const drawing = plot.querySelector("svg")
    if (drag && drawing?._ratio) model.send_msg({ ratio: drawing._ratio(event) })
  })
  for (const end of ["pointerup", "pointercancel"]) plot.addEventListener(end, () => { drag = false })

  let asked = false
  const soon = () => { // several properties change in one message: one drawing
    if (asked) return
    asked = true
    queueMicrotask(() => { asked = false; draw() })
  }
  for (const name of ["content", "now", "ratio"]) model.on(name, soon)
  const watcher = new ResizeObserver(() => draw_plot())
  watcher.observe(plot)
  model.on("remove", () => watcher.disconnect())
  model.on("after_render", draw)
  draw()
  return root
}
