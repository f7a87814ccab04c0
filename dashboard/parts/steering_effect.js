// Rewards of target and complement before and after, and the figures beside them (steering_effect.py). Text enters as text nodes only.
const minus = (text) => text.replace("-", "−")

export function render({ model }) {
  const root = make("div", "effect")
  const plots = make("div", "plots")
  const side = make("div", "beside")
  const all = make("div", "all") // lies over its box, so that the box takes the height of the tables beside it
  plots.append(all)
  root.append(plots, side)

  // The outline of bars, as points of a path.
  const outline = (heights, x, y, closed) => {
    const n = heights.length
    let path = `M${x(0).toFixed(1)} ${y(0).toFixed(1)}`
    heights.forEach((height, i) => { path += `V${y(height).toFixed(1)}H${x((i + 1) / n).toFixed(1)}` })
    return path + `V${y(0).toFixed(1)}` + (closed ? "Z" : "")
  }

  // What a drawing is made of while only its numbers change; it is made anew when its size, its axis or its title does.
  const plot = (group, content, width, height, last) => {
    const edge = { left: 10, right: 10, top: 36, bottom: last ? 32 : 8 }
    const [right, bottom] = [width - edge.right, height - edge.bottom]
    const { low, high } = content
    const share = (value) => edge.left + value * (right - edge.left)
    const x = (value) => share((value - low) / (high - low))
    const drawing = shape("svg", { width, height, role: "img" })
    const across = ticks(low, high, Math.max(3, Math.floor(width / 90)))
    for (const value of across.found) {
      drawing.append(shape("line", { class: "grid", x1: x(value), x2: x(value), y1: edge.top, y2: bottom }))
      if (last) drawing.append(shape("text", { class: "tick", x: x(value), y: bottom + 14, "text-anchor": "middle" }, minus(value.toFixed(across.decimals))))
    }
    const [after, before] = [shape("path", { class: "after" }), shape("path", { class: "before" })]
    const said = shape("text", { class: "tick", x: edge.left, y: 29 })
    const means = ["before", "after"].map((kind) => shape("line", { class: `mean ${kind}`, y1: edge.top - 3, y2: bottom }))
    drawing.append(after, before, shape("line", { class: "axis", x1: edge.left, x2: right, y1: bottom, y2: bottom }), ...means)
    drawing.append(shape("text", { class: "title", x: edge.left, y: 13 }, group.title), said)
    if (last) drawing.append(shape("text", { class: "tick", x: right, y: height - 2, "text-anchor": "end" }, "reward"))
    const update = (now) => {
      const y = (value) => bottom - (value / (now.tall || 1)) * (bottom - edge.top)
      after.setAttribute("d", outline(now.after, share, y, true))
      before.setAttribute("d", outline(now.before, share, y, false))
      ;[now.mean_before, now.mean_after].forEach((value, i) => {
        const inside = value !== null && value >= low && value <= high
        means[i].setAttribute("visibility", inside ? "visible" : "hidden")
        if (inside) for (const end of ["x1", "x2"]) means[i].setAttribute(end, x(value).toFixed(1))
      })
      write(said, now.said)
      drawing.setAttribute("aria-label", now.said)
    }
    return { drawing, update }
  }

  let content = {}, drawn = "", drawings = []
  const draw_plots = () => {
    if (!content.groups) { all.replaceChildren(); drawn = ""; return }
    const [width, height, n] = [plots.clientWidth || 420, plots.clientHeight || 320, content.groups.length]
    const key = JSON.stringify([width, height, content.low, content.high, content.groups.map((group) => group.title)])
    if (key !== drawn) {
      drawn = key
      const each = (height - 24) / n
      drawings = content.groups.map((group, i) => plot(group, content, width, i === n - 1 ? each + 24 : each, i === n - 1))
      all.replaceChildren(...drawings.map((one) => one.drawing))
    }
    content.groups.forEach((group, i) => drawings[i].update(group))
  }

  const make_table = ({ columns, rows }) => {
    const table = make("table", "figures")
    const head = make("tr")
    head.append(make("th"), ...columns.map((text) => make("th", "num", text, { scope: "col" })))
    table.append(head)
    const cells = []
    for (const row of rows) {
      const line = make("tr", row.kind ?? "")
      line.append(make("th", "", row.name, { scope: "row", title: row.help ?? "" }))
      for (const _ of row.cells) {
        const data = make("td", "num")
        data.colSpan = columns.length + 1 - row.cells.length
        const [value, interval] = [make("b", "rs-num"), make("span", "rs-muted interval")]
        data.append(value, " ", interval)
        cells.push([value, interval])
        line.append(data)
      }
      table.append(line)
    }
    return { table, cells }
  }

  let listed = "", headline, tables = []
  const draw_side = () => {
    const key = JSON.stringify((content.tables ?? []).map((one) => [one.columns, one.rows.map((row) => [row.name, row.cells.length])]))
    if (key !== listed) {
      listed = key
      headline = make("p", "headline", null, { role: "status" })
      tables = (content.tables ?? []).map(make_table)
      side.replaceChildren(headline, ...tables.map((one) => one.table))
    }
    if (!content.tables) return
    write(headline, content.headline)
    content.tables.forEach((one, i) => one.rows.flatMap((row) => row.cells).forEach((cell, j) => {
      const [value, interval] = tables[i].cells[j]
      write(value, cell.text)
      write(interval, cell.interval ?? "")
    }))
  }

  const draw = () => {
    content = JSON.parse(model.content)
    draw_plots()
    draw_side()
    root.dataset.move = String(content.move ?? "")
  }
  model.on("content", draw)
  const watcher = new ResizeObserver(draw_plots)
  watcher.observe(plots)
  model.on("remove", () => watcher.disconnect())
  model.on("after_render", draw)
  draw()
  return root
}
