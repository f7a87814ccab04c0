// Saves what the server made of a plan: buttons ask, bytes come back, the browser keeps them as a file.
export function render({ model }) {
  const root = document.createElement("div")
  const buttons = document.createElement("div")
  buttons.className = "buttons"
  const said = document.createElement("span")
  said.className = "working"
  said.setAttribute("role", "status")
  const line = document.createElement("div")
  line.className = "command"
  const code = document.createElement("code")
  code.tabIndex = 0
  code.setAttribute("aria-label", "The same on the command line")
  const copy = document.createElement("button")
  copy.type = "button"
  copy.className = "small"
  line.append(code, copy)
  root.append(buttons, line)

  const draw = () => {
    buttons.replaceChildren(...model.choices.map(([form, label, danger]) => {
      const button = document.createElement("button")
      button.type = "button"
      button.className = danger ? "small danger" : "small"
      button.textContent = label
      button.disabled = model.disabled || model.busy !== ""
      button.addEventListener("click", () => model.send_msg({ form }))
      return button
    }), said)
    said.textContent = model.busy
    code.textContent = model.command
    line.style.display = model.command ? "" : "none"
    copy.textContent = "Copy"
  }
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(model.command)
      copy.textContent = "Copied"
    } catch {
      getSelection().selectAllChildren(code) // no clipboard without a secure page: Ctrl-C does it
      copy.textContent = "Press Ctrl-C"
    }
  })
  model.on(["choices", "disabled", "busy", "command"], draw)
  model.on("data", () => {
    if (!model.data || !model.data.byteLength) return
    const url = URL.createObjectURL(new Blob([model.data], { type: "application/octet-stream" }))
    const link = document.createElement("a")
    link.href = url
    link.download = model.file
    link.click()
    setTimeout(() => URL.revokeObjectURL(url), 10_000)
    model.send_msg({ saved: true })
  })
  draw()
  return root
}
