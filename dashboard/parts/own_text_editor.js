// The boxes for a prompt and answers (own_text_editor.py). What is typed goes to the server shortly after, and at once with Score.
const REST = 300 // ms after the last key
const LINE = /^[ \t]*-{3,}[ \t]*$/m // separates pasted answers

function button(className, text, act) {
  const element = make("button", className, text)
  element.type = "button"
  element.addEventListener("click", act)
  return element
}

export function render({model}) {
  const root = make("form", model.large ? "editor large" : "editor")
  root.addEventListener("submit", (event) => event.preventDefault())
  let waits = null
  let answers = [] // {box, note, sensitive, line}

  const grow = (box) => {
    box.style.height = "auto"
    box.style.height = `${box.scrollHeight + 2}px`
  }

  const box = (label, text, rows) => {
    const area = make("textarea")
    area.rows = rows
    area.value = text
    area.setAttribute("aria-label", label)
    area.dir = "auto"
    area.spellcheck = false
    area.addEventListener("input", () => { grow(area); typed() })
    return area
  }

  const prompt = box("Prompt", "", 2)
  prompt.placeholder = "What the user says, e.g. How do I get a stain out of a shirt?"
  const earlier = make("p", "earlier")
  const list = make("div", "answers")
  const said = make("p", "said")
  said.setAttribute("role", "status")
  const add = button("plain", "+ Add an answer", () => { insert("", "", false).box.focus(); typed() })
  const example = button("plain", "", () => model.send_msg({example: true}))
  const score = button("score", "Score", () => send())
  score.title = "Ctrl+Enter"
  const keys = make("span", "keys", "Ctrl+Enter")
  const hint = make("p", "hint", `Up to ${model.limits.answers} answers. Pasting several: put a line of --- between them. Nothing you type is stored.`)
  const actions = make("div", "actions")
  actions.append(score, keys, add, example)
  const head = make("label", "title", "Prompt")
  head.append(prompt)
  root.append(earlier, head, list, actions, said, hint)

  const texts = () => ({prompt: prompt.value, answers: answers.map((one) => one.box.value)})
  const trouble = () => {
    const {characters} = model.limits
    const long = [prompt.value, ...answers.map((one) => one.box.value)].find((text) => text.length > characters)
    if (long) { return `At most ${characters.toLocaleString("en")} characters each; one text has ${long.length.toLocaleString("en")}.` }
    if (model.blocked) { return model.blocked }
    if (!prompt.value.trim()) { return "Type a prompt first." }
    if (!answers.some((one) => one.box.value.trim())) { return "Type at least one answer." }
    return ""
  }
  const check = () => {
    const reason = trouble()
    score.disabled = Boolean(reason)
    score.title = reason || "Ctrl+Enter"
    score.textContent = model.busy ? "Score again" : "Score"
    const started = prompt.value || answers.some((one) => one.box.value)
    if (!said.dataset.kept) { said.textContent = started && !model.blocked ? reason : "" }
    add.disabled = answers.length >= model.limits.answers
    add.title = add.disabled ? `At most ${model.limits.answers} answers` : ""
  }
  const write = () => {
    clearTimeout(waits)
    waits = null
    model.send_msg({texts: texts()})
  }
  const typed = () => {
    delete said.dataset.kept
    clearTimeout(waits)
    waits = setTimeout(write, REST)
    check()
  }
  const send = () => {
    if (trouble()) { check(); said.textContent = trouble(); return }
    clearTimeout(waits)
    waits = null
    model.send_msg({texts: texts(), score: true})
  }
  const name = () => answers.forEach((one, i) => {
    const title = `Answer ${i + 1}`
    one.title.textContent = title
    one.origin.textContent = one.note
    one.box.setAttribute("aria-label", title)
    one.remove.setAttribute("aria-label", `Remove answer ${i + 1}`)
    one.remove.style.visibility = answers.length > 1 ? "visible" : "hidden"
  })
  const insert = (text, note, sensitive, at = answers.length) => {
    const one = {note, line: make("div", "one"), title: make("span", "title"), origin: make("span", "origin")}
    one.box = box("Answer", text, 2)
    one.box.classList.toggle("rs-blur", sensitive)
    one.box.placeholder = "What the assistant answers"
    one.box.addEventListener("input", () => { one.note = ""; one.origin.textContent = ""; one.box.classList.remove("rs-blur") })
    one.box.addEventListener("paste", (event) => paste(event, one))
    one.remove = button("remove", "×", () => {
      answers.splice(answers.indexOf(one), 1)
      one.line.remove()
      name(); typed()
    })
    const top = make("div", "top")
    top.append(one.title, one.origin, one.remove)
    one.line.append(top, one.box)
    answers.splice(at, 0, one)
    list.insertBefore(one.line, list.children[at] ?? null)
    name()
    grow(one.box)
    return one
  }
  const paste = (event, one) => {
    const text = event.clipboardData?.getData("text/plain") ?? ""
    if (!LINE.test(text)) { return }
    const parts = text.replaceAll("\r\n", "\n").split(new RegExp(LINE, "m")).map((part) => part.trim()).filter(Boolean)
    if (parts.length < 2) { return }
    event.preventDefault()
    const [start, end, old] = [one.box.selectionStart, one.box.selectionEnd, one.box.value]
    one.box.value = old.slice(0, start) + parts[0] + old.slice(end)
    one.box.dispatchEvent(new Event("input"))
    let at = answers.indexOf(one) + 1, left = 0
    for (const part of parts.slice(1)) {
      if (answers[at] && !answers[at].box.value.trim()) { answers[at].box.value = part; grow(answers[at].box); at++ }
      else if (answers.length < model.limits.answers) { insert(part, "", false, at); at++ }
      else { left++ }
    }
    typed()
    said.textContent = left ? `${parts.length} answers pasted; ${left} more than fit (at most ${model.limits.answers}) were left out.` : `${parts.length} answers pasted.`
    said.dataset.kept = "1"
  }
  const draw = () => {
    const content = model.content
    clearTimeout(waits)
    prompt.value = content.prompt ?? ""
    answers = []
    list.replaceChildren()
    for (const one of content.answers ?? []) { insert(one.text, one.note, one.sensitive) }
    earlier.replaceChildren()
    earlier.hidden = !content.earlier
    if (content.earlier) {
      earlier.append(content.earlier, button("plain", "Score without them", () => model.send_msg({earlier: true})))
    }
    example.textContent = content.example
    delete said.dataset.kept
    check()
    requestAnimationFrame(() => { grow(prompt); answers.forEach((one) => grow(one.box)) })
  }

  root.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault()
      send()
    }
  })
  root.addEventListener("focusout", () => { if (waits !== null) { write() } })
  new ResizeObserver(() => { grow(prompt); answers.forEach((one) => grow(one.box)) }).observe(root)
  const seen = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) { return }
    seen.disconnect()
    model.send_msg({seen: true})
  })
  seen.observe(root)

  model.on("content", draw)
  model.on(["blocked", "busy"], check)
  draw()
  return root
}
