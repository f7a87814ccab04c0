// Draws the content of a Waterfall (waterfall.py) as a table with bars. Strings enter the page only as text nodes.

function place(column) {
  const span = column.high - column.low || 1
  return (value) => (100 * (value - column.low)) / span
}

function track(cell, column, kind) {
  const at = place(column)
  const box = make("span", "track")
  box.setAttribute("aria-hidden", "true")
  const zero = make("i", "zero")
  zero.style.left = `${at(0)}%`
  const bar = make("i", "bar")
  const up = cell.end >= cell.start
  bar.classList.add(kind === "sum" ? "total" : up ? "up" : "down")
  if (cell.cut) { bar.classList.add(up ? "cut-right" : "cut-left") }
  bar.style.left = `${at(Math.min(cell.start, cell.end))}%`
  bar.style.width = `${Math.abs(at(cell.end) - at(cell.start))}%`
  box.append(zero)
  if (cell.end !== cell.start) { box.append(bar) }
  if (column.kind === "stack" && kind !== "sum") {
    const link = make("i", "link")
    link.style.left = `${at(cell.end)}%`
    box.append(link)
  }
  return box
}

function end(side, arrow, word) {
  const text = make("span", `end ${side}`, arrow)
  text.title = `${word} the reward`
  text[side === "left" ? "append" : "prepend"](make("span", "word", ` ${word} `))
  return text
}

function header(columns) {
  const head = make("thead")
  const titles = make("tr")
  titles.append(make("th", "name", "Feature"))
  const axes = make("tr", "axes")
  axes.setAttribute("aria-hidden", "true")
  axes.append(make("td", "name"))
  for (const column of columns) {
    const title = make("th", column.kind, column.title)
    title.scope = "col"
    titles.append(title)
    const cell = make("td", `bars ${column.kind}`)
    const inner = make("div", "cell")
    const box = make("span", "track")
    const zero = place(column)(0)
    if (zero > 18) { box.append(end("left", "←", "lowers")) }
    if (zero < 82) { box.append(end("right", "→", "raises")) }
    inner.append(make("span", "number"), box)
    cell.append(inner)
    axes.append(cell)
  }
  head.append(titles, axes)
  return head
}

function name(row) {
  const cell = make("th", "name")
  cell.scope = "row"
  if (row.feature === null) {
    cell.append(make("span", "label", row.name))
    return cell
  }
  const select = make("button", "select")
  select.type = "button"
  select.append(make("span", "id", row.feature), make("span", row.name ? "label" : "label none", row.name || "no label"))
  select.title = `${row.name || "no label"}, ${row.weight}\nColour the tokens by feature ${row.feature}`
  const open = make("a", "open", "card")
  open.href = row.link
  open.title = `Open the card of feature ${row.feature}`
  open.setAttribute("aria-label", open.title)
  const line = make("div", "line")
  line.append(select, make("span", "weight", row.weight), open)
  if (row.steer) {
    const steer = make("a", "open", "steer")
    steer.href = row.steer
    steer.dataset.adds = `${row.feature}:1`
    steer.title = `Put feature ${row.feature} on a slider`
    steer.setAttribute("aria-label", steer.title)
    line.append(steer)
  }
  cell.append(line)
  return cell
}

export function render({model}) {
  const root = make("div", "waterfall")

  const mark = () => {
    for (const row of root.querySelectorAll("tr[data-feature]")) {
      const on = model.selected !== null && Number(row.dataset.feature) === model.selected
      row.classList.toggle("selected", on)
      row.querySelector("button.select").setAttribute("aria-pressed", String(on))
    }
  }

  const draw = () => {
    const content = model.content
    root.replaceChildren()
    if (!content.rows) { return }
    const table = make("table")
    table.append(make("caption", "", content.caption))
    const body = make("tbody")
    for (const row of content.rows) {
      const line = make("tr", row.kind || "feature")
      line.append(name(row))
      row.cells.forEach((cell, index) => {
        const column = content.columns[index]
        const data = make("td", `bars ${column.kind}`)
        data.title = cell.why
        const inner = make("div", "cell")
        inner.append(make("span", "number", cell.text), track(cell, column, row.kind))
        data.append(inner)
        line.append(data)
      })
      if (row.feature !== null) {
        line.dataset.feature = row.feature
        line.addEventListener("click", (event) => {
          if (!event.target.closest("a")) { model.send_msg({feature: row.feature}) }
        })
      }
      body.append(line)
    }
    table.append(header(content.columns), body)
    root.append(table)
    if (content.sentence) {
      const check = make("p", `check ${content.state}`, content.sentence)
      if (content.state !== "ok") { check.setAttribute("role", "alert") }
      root.append(check)
    }
    mark()
  }

  model.on("content", draw)
  model.on("selected", mark)
  draw()
  return root
}
