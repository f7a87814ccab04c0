// Pairs that change sides and domains that are harmed (steering_pairs.py). Text enters as text nodes only.
export function render({ model }) {
  const root = make("div", "turned")
  const flips = make("section", "flips", null, { "aria-label": "Pairs that change sides" })
  const harm = make("section", "harm", null, { "aria-label": "Accuracy by domain" })
  root.append(flips, harm)
  let content = {}

  const counts = make("p", "counts", null, { role: "status" })
  const list = make("ul", "list")
  const rest = make("p", "rs-muted rs-small")
  flips.append(make("h3", "", "Pairs that change sides"), counts, list, rest)
  const items = [] // rows are kept and written over: a move must not lay out a new list

  const make_item = () => {
    const item = { node: make("li"), link: make("a") }
    for (const [part, kind] of [["kind", "word"], ["index", "index rs-num rs-muted"], ["domain", "domain rs-muted"], ["text", "text"], ["margin", "margin rs-num"]]) {
      item[part] = make("span", kind)
      item.link.append(item[part])
    }
    item.node.append(item.link)
    return item
  }

  const draw_flips = () => {
    const rows = content.flips ?? []
    while (items.length < rows.length) items.push(make_item())
    rows.forEach((row, i) => {
      const item = items[i]
      for (const part of ["kind", "index", "domain", "text", "margin"]) write(item[part], String(row[part]))
      if (item.pair !== row.pair || item.href !== row.href) {
        Object.assign(item, { pair: row.pair, href: row.href })
        item.node.dataset.pair = row.pair
        item.link.setAttribute("href", row.href)
        item.link.title = `${row.text}\nOpen pair ${row.index} in Pairs`
      }
      item.node.className = row.kind
      if (item.node.parentNode !== list) list.append(item.node)
    })
    for (const item of items.slice(rows.length)) item.node.remove()
    const said = content.counts ?? []
    while (counts.children.length < said.length) counts.append(make("span"))
    said.forEach(([kind, text], i) => { counts.children[i].className = kind; write(counts.children[i], text) })
    write(rest, content.rest ?? "")
    mark()
  }

  const title = make("h3")
  const table = make("table", "figures")
  const note = make("p", "rs-muted rs-small")
  harm.append(title, table, note)
  let listed = "", lines = []

  const make_table = () => {
    const head = make("tr")
    for (const [text, number] of [["domain", false], ["pairs", true], ["before", true], ["after", true], ["change, points", true], ["", false]]) {
      head.append(make("th", number ? "num" : "", text, { scope: "col" }))
    }
    lines = content.domains.map((row) => {
      const line = { node: make("tr"), n: make("td", "num rs-num"), before: make("td", "num rs-num"), after: make("td", "num rs-num") }
      const name = make("th", "", null, { scope: "row", title: row.help })
      name.append(make("span", "cut", row.name))
      const change = make("td", "num rs-num")
      Object.assign(line, { change: make("b"), interval: make("span", "rs-muted interval"), word: make("td", "word") })
      change.append(line.change, " ", line.interval)
      line.node.append(name, line.n, line.before, line.after, change, line.word)
      return line
    })
    table.replaceChildren(head, ...lines.map((line) => line.node))
  }

  const draw_domains = () => {
    if (!content.domains) return
    const key = JSON.stringify(content.domains.map((row) => row.name))
    if (key !== listed) { listed = key; make_table() }
    content.domains.forEach((row, i) => {
      for (const part of ["n", "before", "after", "change", "interval", "word"]) write(lines[i][part], row[part])
      const kind = ["harmed", "improved"].includes(row.word) ? row.word : ""
      if (lines[i].node.className !== kind) lines[i].node.className = kind
    })
    write(title, content.domains_title)
    write(note, content.domains_note)
  }

  let marked = null
  const mark = () => {
    for (const item of items) {
      const on = item.pair === model.selected && item.node.isConnected
      item.node.classList.toggle("now", on)
      if (on) item.link.setAttribute("aria-current", "true")
      else item.link.removeAttribute("aria-current")
      if (on && marked !== model.selected) item.node.scrollIntoView({ block: "nearest" })
    }
    marked = model.selected
  }

  const draw = () => { content = JSON.parse(model.content); draw_flips(); draw_domains() }
  model.on("content", draw)
  model.on("selected", mark)
  draw()
  return root
}
