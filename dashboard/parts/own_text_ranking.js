// The answers by reward (own_text_ranking.py). Lines are kept and glide to their new place; strings enter only as text nodes.
const GLIDE = 180 // ms

function line(index, open) {
  const root = make("li", "place")
  const parts = {root}
  for (const name of ["rank", "arrow", "name", "note", "text", "before", "after"]) { parts[name] = make("span", name) }
  parts.bar = make("i", "bar")
  parts.zero = make("i", "zero")
  parts.mark = make("i", "mark")
  parts.button = make("button", "open")
  parts.button.type = "button"
  parts.button.append(parts.name, parts.note)
  parts.button.addEventListener("click", (event) => { event.stopPropagation(); open(index) })
  const track = make("span", "track")
  track.setAttribute("aria-hidden", "true")
  track.append(parts.zero, parts.bar, parts.mark)
  const stand = make("span", "stand")
  stand.append(parts.rank, parts.arrow)
  const figures = make("span", "figures")
  figures.append(parts.before, parts.after)
  root.append(stand, parts.button, track, figures, parts.text)
  root.addEventListener("click", () => open(index))
  return parts
}

export function render({model}) {
  const root = make("div", model.large ? "ranking large" : "ranking")
  const said = make("p", "said")
  const list = make("ol")
  list.setAttribute("aria-label", "Answers by reward")
  const spoken = make("p", "spoken")
  spoken.setAttribute("role", "status")
  root.append(said, list, spoken)
  const lines = new Map()
  const still = matchMedia("(prefers-reduced-motion: reduce)")
  let order = ""
  let begun = false // what stood there when the page was drawn needs no looking for
  let number = null // of the scoring on show

  const mark = () => {
    for (const [index, parts] of lines) {
      parts.root.classList.toggle("selected", index === model.selected)
      parts.button.setAttribute("aria-pressed", String(index === model.selected))
    }
  }

  const fill = (parts, row, content) => {
    const by = row.was - row.rank
    parts.rank.textContent = row.rank
    parts.arrow.textContent = by > 0 ? `▲ from ${row.was}` : by < 0 ? `▼ from ${row.was}` : ""
    parts.arrow.className = `arrow ${by > 0 ? "rose" : by < 0 ? "fell" : ""}`
    parts.root.classList.toggle("first", row.rank === 1)
    parts.name.textContent = row.name
    parts.note.textContent = row.note
    parts.text.textContent = row.text
    parts.text.classList.toggle("rs-blur", row.sensitive)
    parts.text.dir = "auto"
    parts.before.textContent = content.steered ? `${row.before} →` : ""
    parts.before.title = "Reward as it is, without steering"
    parts.after.textContent = row.after
    parts.after.title = content.steered ? "Steered reward" : "Reward"
    parts.bar.style.left = `${row.bar[0]}%`
    parts.bar.style.width = `${row.bar[1]}%`
    parts.bar.className = `bar ${row.up ? "up" : "down"}`
    parts.zero.style.left = `${content.zero}%`
    parts.mark.style.left = `${row.mark}%`
    parts.mark.hidden = !content.steered
  }

  const draw = () => {
    const content = model.content
    const rows = content.rows ?? []
    root.hidden = !rows.length
    const tops = new Map([...lines].map(([index, parts]) => [index, parts.root.getBoundingClientRect().top]))
    for (const [index, parts] of lines) {
      if (!rows.some((row) => row.index === index)) { parts.root.remove(); lines.delete(index); tops.delete(index) }
    }
    rows.forEach((row, i) => {
      if (!lines.has(row.index)) { lines.set(row.index, line(row.index, (index) => model.send_msg({open: index}))) }
      const parts = lines.get(row.index)
      fill(parts, row, content)
      if (list.children[i] !== parts.root) { list.insertBefore(parts.root, list.children[i] ?? null) }
    })
    said.textContent = content.said ?? ""
    const now = rows.map((row) => row.index).join(" ")
    if (now !== order) {
      spoken.textContent = rows.map((row) => `${row.rank}: ${row.name}, ${row.after}`).join("; ")
      if (!still.matches) {
        for (const [index, top] of tops) {
          const by = top - lines.get(index).root.getBoundingClientRect().top
          if (by) { lines.get(index).root.animate([{transform: `translateY(${by}px)`}, {transform: "none"}], {duration: GLIDE, easing: "ease-out"}) }
        }
      }
    }
    order = now
    root.dataset.order = now
    if (rows.length && content.number !== number) {
      number = content.number
      if (begun) { requestAnimationFrame(() => root.scrollIntoView({block: "nearest"})) }
    }
    begun = true
    mark()
  }

  model.on("content", draw)
  model.on("selected", mark)
  draw()
  return root
}
